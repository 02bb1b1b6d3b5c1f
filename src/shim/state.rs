//! The states of a process that the shim runs: the init, or an exec.
//!
//! ```text
//!               start                 pause
//!   Created ------------> Running <----------> Paused
//!      |                     |        resume      |
//!      |  exit               |  exit              |  exit
//!      +---------------> Stopped <----------------+
//! ```
//!
//! `Created`: an init has its root and waits; an exec is a description without a
//! process. A start that fails ends the process: `exit`. An exec is never paused
//! by itself; it stands still with its container and stays `Running` here.

use crate::proto::containerd::v1::types::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Paused,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Start,
    Pause,
    Resume,
    Exit,
}

/// The event does not fit the state; for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the process is {}: {}", .state.name(), .event.remedy())]
pub struct Illegal {
    pub state: State,
    pub event: Event,
}

impl State {
    /// The state after `event`.
    pub fn next(self, event: Event) -> Result<State, Illegal> {
        match (self, event) {
            (State::Created, Event::Start) | (State::Paused, Event::Resume) => Ok(State::Running),
            (State::Running, Event::Pause) => Ok(State::Paused),
            (State::Created | State::Running | State::Paused, Event::Exit) => Ok(State::Stopped),
            (state, event) => Err(Illegal { state, event }),
        }
    }

    /// As the task service says it.
    pub fn status(self) -> Status {
        match self {
            State::Created => Status::Created,
            State::Running => Status::Running,
            State::Paused => Status::Paused,
            State::Stopped => Status::Stopped,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

impl Event {
    fn remedy(self) -> &'static str {
        match self {
            Event::Start => "only a created one can be started",
            Event::Pause => "only a running one can be paused",
            Event::Resume => "only a paused one can be resumed",
            Event::Exit => "it has ended before",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event::*, State::*};

    #[test]
    fn every_pair() {
        let table = [
            (Created, Start, Some(Running)),
            (Created, Pause, None),
            (Created, Resume, None),
            (Created, Exit, Some(Stopped)),
            (Running, Start, None),
            (Running, Pause, Some(Paused)),
            (Running, Resume, None),
            (Running, Exit, Some(Stopped)),
            (Paused, Start, None),
            (Paused, Pause, None),
            (Paused, Resume, Some(Running)),
            (Paused, Exit, Some(Stopped)),
            (Stopped, Start, None),
            (Stopped, Pause, None),
            (Stopped, Resume, None),
            (Stopped, Exit, None),
        ];
        for (state, event, after) in table {
            assert_eq!(state.next(event).ok(), after, "{state:?} {event:?}");
        }
    }

    #[test]
    fn an_illegal_event_says_what_would_be_legal() {
        let error = Stopped.next(Start).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the process is stopped: only a created one can be started"
        );
    }
}
