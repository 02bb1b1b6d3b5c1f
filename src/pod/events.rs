//! What happens to pods and containers, told to whoever listens.
//!
//! One bounded queue for all: a listener that is slow falls behind alone, and one
//! that fell behind by more than the queue holds is told so and has to list again.
//! Nobody waits for a listener, and without one nothing is rendered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::{ContainerState, SandboxState};
use crate::proto::cri::{ContainerEventResponse, ContainerEventType};

/// How many events a listener may be behind. Each is kept once for all of them.
const QUEUE: usize = 1024;

/// An event as it is sent.
pub type Event = Arc<ContainerEventResponse>;

/// The queue.
#[derive(Debug)]
pub struct Events {
    /// None: closed, berthd stops.
    sender: Mutex<Option<broadcast::Sender<Event>>>,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            sender: Mutex::new(Some(broadcast::Sender::new(QUEUE))),
        }
    }
}

impl Events {
    fn sender(&self) -> MutexGuard<'_, Option<broadcast::Sender<Event>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody listens.
    pub fn has_listeners(&self) -> bool {
        self.sender()
            .as_ref()
            .is_some_and(|sender| sender.receiver_count() > 0)
    }

    pub fn send(&self, event: ContainerEventResponse) {
        if let Some(sender) = &*self.sender() {
            // It fails when nobody listens.
            let _ = sender.send(Arc::new(event));
        }
    }

    /// All events from now on; None when berthd stops.
    pub fn listen(&self) -> Option<broadcast::Receiver<Event>> {
        self.sender().as_ref().map(broadcast::Sender::subscribe)
    }

    /// Ends every listener after what was sent: berthd stops.
    pub fn close(&self) {
        self.sender().take();
    }
}

/// How far the events of one container or sandbox have come. The tasks that start and watch a
/// container go side by side; its events keep their order all the same.
#[derive(Debug)]
pub struct Told(Mutex<Progress>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Nothing,
    Created,
    Started,
    Stopped,
    Deleted,
}

impl Told {
    /// Of a container that is found in this state: what led there was told to
    /// those who listened then.
    pub fn of(state: ContainerState) -> Told {
        Told(Mutex::new(match state {
            ContainerState::Making => Progress::Nothing,
            ContainerState::Created => Progress::Created,
            ContainerState::Running => Progress::Started,
            ContainerState::Exited | ContainerState::Removing => Progress::Stopped,
        }))
    }

    /// The same of a sandbox, which starts with its creation.
    pub fn of_sandbox(state: SandboxState) -> Told {
        Told(Mutex::new(match state {
            SandboxState::Making => Progress::Nothing,
            SandboxState::Ready | SandboxState::Stopping => Progress::Started,
            SandboxState::NotReady | SandboxState::Removing => Progress::Stopped,
        }))
    }

    /// Calls `tell` with `kind` unless that, or what follows on it, was told
    /// already. A stop of one that `has_run` is told after its start.
    pub fn advance(&self, kind: ContainerEventType, has_run: bool, mut tell: impl FnMut(ContainerEventType)) {
        use ContainerEventType as Kind;
        // Held while telling: that is what keeps the order.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match kind {
            Kind::ContainerCreatedEvent => Progress::Created,
            Kind::ContainerStartedEvent => Progress::Started,
            Kind::ContainerStoppedEvent => Progress::Stopped,
            Kind::ContainerDeletedEvent => Progress::Deleted,
        };
        // One that never came to be was never told of.
        let unknown = *told == Progress::Nothing && next != Progress::Created;
        if next <= *told || unknown {
            return;
        }
        if next == Progress::Stopped && *told < Progress::Started && has_run {
            tell(Kind::ContainerStartedEvent);
        }
        *told = next;
        tell(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContainerEventType::{
        ContainerCreatedEvent as C, ContainerDeletedEvent as D, ContainerStartedEvent as S,
        ContainerStoppedEvent as E,
    };

    fn told(state: ContainerState, events: &[(ContainerEventType, bool)]) -> Vec<ContainerEventType> {
        let (told, mut all) = (Told::of(state), Vec::new());
        for (kind, has_run) in events {
            told.advance(*kind, *has_run, |kind| all.push(kind));
        }
        all
    }

    #[test]
    fn order_is_kept() {
        let make = ContainerState::Making;
        assert_eq!(
            told(make, &[(C, false), (S, true), (E, true), (D, true)]),
            [C, S, E, D]
        );
        // The exit is told before the task that started it comes to tell.
        assert_eq!(told(make, &[(C, false), (E, true), (S, true)]), [C, S, E]);
        // A failed start.
        assert_eq!(told(make, &[(C, false), (E, false), (D, false)]), [C, E, D]);
        // Removed before it was started; twice.
        assert_eq!(
            told(make, &[(C, false), (D, false), (D, false), (E, false)]),
            [C, D]
        );
        // Half made and taken back.
        assert_eq!(told(make, &[(E, false), (D, false)]), []);
        assert_eq!(told(ContainerState::Running, &[(S, true), (E, true)]), [E]);
    }

    #[tokio::test]
    async fn one_who_is_behind_is_told_and_others_are_not_hurt() {
        let events = Events::default();
        assert!(!events.has_listeners());
        let mut slow = events.listen().unwrap();
        let mut quick = events.listen().unwrap();
        for n in 0..QUEUE + 5 {
            events.send(ContainerEventResponse {
                container_id: n.to_string(),
                ..Default::default()
            });
            assert_eq!(quick.recv().await.unwrap().container_id, n.to_string());
        }
        assert!(matches!(
            slow.recv().await,
            Err(broadcast::error::RecvError::Lagged(5))
        ));
        events.close();
        assert!(matches!(
            quick.recv().await,
            Err(broadcast::error::RecvError::Closed)
        ));
        assert!(events.listen().is_none());
    }
}
