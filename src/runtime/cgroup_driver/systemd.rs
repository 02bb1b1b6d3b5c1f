//! One D-Bus connection to systemd, of berthd's own. It is made when it is first
//! needed and again whenever it breaks: the message bus may be restarted, and
//! systemd may execute itself anew, in the middle of anything.
//!
//! So no call is trusted to answer, and no signal to come: every call may be made
//! twice, and the end of a job is also looked for in what the kernel has.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::sync::broadcast;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, connection, fdo};

use super::unit::Property;

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// systemd itself, without the message bus: used while that is not there.
const PRIVATE: &str = "unix:path=/run/systemd/private";

/// How long one call may take.
const CALL: Duration = Duration::from_secs(10);
/// How long it is tried again to reach a systemd that is not there. Kubelets wait two minutes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries, and between two looks at what a job has done.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a job may take: the longest is to stop a scope, see `TimeoutStopUSec`.
const JOB: Duration = Duration::from_secs(60);

/// Why systemd did not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("systemd answers neither on the system bus nor on {PRIVATE}: {0}")]
    Unreachable(zbus::Error),
    #[error("{method} of {unit}: {source}")]
    Call {
        method: &'static str,
        unit: String,
        source: zbus::Error,
    },
    #[error("the job of {unit} ended as {result:?}: see `systemctl status {unit}`")]
    Job { unit: String, result: String },
    #[error("the job of {unit} has not ended after {} s: see `systemctl list-jobs`", JOB.as_secs())]
    Slow { unit: String },
}

impl Error {
    /// There is no such unit.
    pub fn is_absent(&self) -> bool {
        self.name()
            .is_some_and(|name| name == "org.freedesktop.systemd1.NoSuchUnit")
    }

    /// The unit is there already.
    pub fn is_there(&self) -> bool {
        self.name()
            .is_some_and(|name| name == "org.freedesktop.systemd1.UnitExists")
    }

    /// systemd's own name for what is wrong.
    fn name(&self) -> Option<&str> {
        match self {
            Error::Call {
                source: zbus::Error::MethodError(name, ..),
                ..
            } => Some(name.as_str()),
            _ => None,
        }
    }

    /// Nobody may have heard the call, or the answer was lost.
    fn is_transient(&self) -> bool {
        use fdo::Error as Fdo;
        match self {
            Error::Unreachable(_) => true,
            Error::Call { source, .. } => match source {
                zbus::Error::FDO(error) => !matches!(
                    **error,
                    Fdo::InvalidArgs(_)
                        | Fdo::AccessDenied(_)
                        | Fdo::AuthFailed(_)
                        | Fdo::NotSupported(_)
                        | Fdo::LimitsExceeded(_)
                        | Fdo::UnknownMethod(_)
                        | Fdo::UnknownObject(_)
                        | Fdo::UnknownInterface(_)
                        | Fdo::UnknownProperty(_)
                        | Fdo::PropertyReadOnly(_)
                        | Fdo::FileExists(_)
                        | Fdo::FileNotFound(_)
                        | Fdo::InvalidSignature(_)
                ),
                zbus::Error::InputOutput(_) | zbus::Error::InvalidReply => true,
                _ => false,
            },
            Error::Job { .. } | Error::Slow { .. } => false,
        }
    }
}

/// A job that has ended: its path, its result.
type Ended = (OwnedObjectPath, String);

#[derive(Clone, Debug)]
struct Link {
    connection: Connection,
    ended: broadcast::Sender<Ended>,
    /// Without the message bus, messages have no destination.
    direct: bool,
}

/// systemd, as process 1.
#[derive(Debug, Default)]
pub struct Systemd {
    link: Mutex<Option<Link>>,
}

impl Systemd {
    /// Whether it answers now; its version.
    pub async fn version(&self) -> Result<String, Error> {
        let link = self.link().await?;
        let body = (MANAGER, "Version");
        let answer = call(&link, "org.freedesktop.DBus.Properties", "Get", "systemd", &body).await?;
        let value = answer.body().deserialize::<zbus::OwnedVariant>();
        let version = value.map(|value| value.to_string()).unwrap_or_default();
        Ok(version.trim_matches('"').to_owned())
    }

    /// Starts a scope. `is_done` looks at the kernel: whether the scope has its process.
    pub async fn start_scope(
        &self,
        unit: &str,
        properties: &[Property],
        is_done: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let none: [(&str, Vec<Property>); 0] = [];
        let body = (unit, "fail", properties, none.as_slice());
        self.job("StartTransientUnit", unit, &body, is_done).await
    }

    /// Stops a unit; one that is not there is no error. `is_done`: it has no cgroup any more.
    pub async fn stop(&self, unit: &str, is_done: impl Fn() -> bool) -> Result<(), Error> {
        match self.job("StopUnit", unit, &(unit, "replace"), is_done).await {
            Err(error) if !error.is_absent() => return Err(error),
            _ => {}
        }
        match self.call("ResetFailedUnit", unit, &(unit,)).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Changes properties until the unit is gone.
    pub async fn set_properties(&self, unit: &str, properties: &[Property]) -> Result<(), Error> {
        self.call("SetUnitProperties", unit, &(unit, true, properties))
            .await?;
        Ok(())
    }

    /// A call that is made again until it is answered.
    async fn call<B>(&self, method: &'static str, unit: &str, body: &B) -> Result<Message, Error>
    where
        B: serde::Serialize + zbus::DynamicType + Sync,
    {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = match self.link().await {
                Ok(link) => call(&link, MANAGER, method, unit, body).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.is_transient() && Instant::now() < until => self.lost(&error).await,
                answer => return answer,
            }
        }
    }

    /// A call that begins a job, and its end.
    async fn job<B>(
        &self,
        method: &'static str,
        unit: &str,
        body: &B,
        is_done: impl Fn() -> bool,
    ) -> Result<(), Error>
    where
        B: serde::Serialize + zbus::DynamicType + Sync,
    {
        let until = Instant::now() + PATIENCE;
        let mut again = false;
        loop {
            let tried = async {
                let link = self.link().await?;
                // Before the call: a job may have ended before its answer is here.
                let ended = link.ended.subscribe();
                let answer = call(&link, MANAGER, method, unit, body).await?;
                let job = answer.body().deserialize::<OwnedObjectPath>();
                let job = job.map_err(|source| Error::Call {
                    method,
                    unit: unit.into(),
                    source,
                })?;
                wait(unit, &job, ended, &is_done).await
            };
            match tried.await {
                // It was made by a call whose answer was lost, or is being made.
                Err(error) if error.is_there() && again => return settled(unit, &is_done).await,
                Err(error) if error.is_transient() && Instant::now() < until => {
                    again = true;
                    self.lost(&error).await;
                }
                answer => return answer,
            }
        }
    }

    async fn lost(&self, error: &Error) {
        tracing::warn!(%error, "systemd is asked again");
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tokio::time::sleep(PAUSE).await;
    }

    async fn link(&self) -> Result<Link, Error> {
        let present = self.link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(link) = present.filter(|link| !link.connection.is_closed()) {
            return Ok(link);
        }
        let bus = connection::Builder::system().method_timeout(CALL).build();
        let link = match open(bus.await, false).await {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(%error, "the system bus does not help; systemd is asked directly");
                let direct = connection::Builder::address(PRIVATE)
                    .p2p()
                    .method_timeout(CALL)
                    .build();
                open(direct.await, true).await.map_err(Error::Unreachable)?
            }
        };
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }
}

/// Has a connection tell of jobs that end.
async fn open(connection: zbus::Result<Connection>, direct: bool) -> zbus::Result<Link> {
    let connection = connection?;
    let (ended, _) = broadcast::channel(1024);
    let mut messages = MessageStream::from(&connection);
    let link = Link {
        connection,
        ended,
        direct,
    };
    if !direct {
        let rule = format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'");
        let bus = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        link.connection
            .call_method(Some(bus), path, Some(bus), "AddMatch", &(rule.as_str(),))
            .await?;
        // To a connection without the bus, systemd tells everything.
        link.connection
            .call_method(Some(SERVICE), MANAGER_PATH, Some(MANAGER), "Subscribe", &())
            .await?;
    }
    let tell = link.ended.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if message
                .header()
                .member()
                .is_some_and(|member| member == "JobRemoved")
                && let Ok((_, job, _, result)) = message
                    .body()
                    .deserialize::<(u32, OwnedObjectPath, String, String)>()
            {
                // Without anybody who waits there is nobody to tell.
                let _ = tell.send((job, result));
            }
        }
    });
    Ok(link)
}

async fn call<B>(
    link: &Link,
    interface: &str,
    method: &'static str,
    unit: &str,
    body: &B,
) -> Result<Message, Error>
where
    B: serde::Serialize + zbus::DynamicType + Sync,
{
    let destination = (!link.direct).then_some(SERVICE);
    let called = link
        .connection
        .call_method(destination, MANAGER_PATH, Some(interface), method, body);
    called.await.map_err(|source| Error::Call {
        method,
        unit: unit.into(),
        source,
    })
}

/// The end of a job that nobody will tell of.
async fn settled(unit: &str, is_done: &impl Fn() -> bool) -> Result<(), Error> {
    let until = Instant::now() + JOB;
    while Instant::now() < until {
        if is_done() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(Error::Slow { unit: unit.into() })
}

/// The end of a job, told or seen.
async fn wait(
    unit: &str,
    job: &OwnedObjectPath,
    mut ended: broadcast::Receiver<Ended>,
    is_done: &impl Fn() -> bool,
) -> Result<(), Error> {
    let until = Instant::now() + JOB;
    while Instant::now() < until {
        match tokio::time::timeout(PAUSE, ended.recv()).await {
            Ok(Ok((path, result))) if path == *job => {
                return match result.as_str() {
                    "done" => Ok(()),
                    _ => Err(Error::Job {
                        unit: unit.into(),
                        result,
                    }),
                };
            }
            Ok(Ok(_)) => {}
            // Nothing for a while, messages were lost, or the connection was: the kernel knows.
            Ok(Err(broadcast::error::RecvError::Closed)) => {
                tokio::time::sleep(PAUSE).await;
                if is_done() {
                    return Ok(());
                }
            }
            Ok(Err(_)) | Err(_) => {
                if is_done() {
                    return Ok(());
                }
            }
        }
    }
    Err(Error::Slow { unit: unit.into() })
}
