//! Errors of the command, each one line for people.

use std::path::PathBuf;

use tonic::Code;

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code of `run` when the container could not be run, as with docker.
const NOT_RUN: u8 = 125;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("address {0:?}: not of the form unix:///path/to/socket")]
    Address(String),
    #[error("connect to berthd at {path}: {reason}; is berthd running? --address names another socket")]
    Connect { path: PathBuf, reason: String },
    /// berthd answered with an error.
    #[error("{step} {object}: {}", describe(status))]
    Call {
        step: &'static str,
        object: String,
        status: Box<tonic::Status>,
    },
    #[error("no container is named {0:?}; `berth ps -a` lists them")]
    NoContainer(String),
    #[error(
        "{name:?} is the start of several ids or the name of several containers: {found}; give more of the id"
    )]
    Ambiguous { name: String, found: String },
    #[error("no pod is named {0:?}; `berth ps -a` lists containers with their pods")]
    NoPod(String),
    #[error("pod {0} has no timeline: it was made by an earlier version of berthd")]
    NoTimeline(String),
    #[error("no image is named {0:?}; `berth images` lists them")]
    NoImage(String),
    #[error("remove container {0}: it is running; stop it first, or use --force")]
    Running(String),
    #[error("container {0} has no log: it was created without a log path")]
    NoLog(String),
    #[error("variable {0}: it is not set here; write {0}=VALUE")]
    NoVariable(String),
    #[error("{step} {}: {source}", path.display())]
    File {
        step: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{step}: {source}")]
    Io {
        step: &'static str,
        source: std::io::Error,
    },
    /// The init could not be executed: the container has exited with this code.
    #[error("start container {name}: {message}")]
    Start {
        name: String,
        message: String,
        code: i32,
    },
    #[error("answer of berthd: {0} is missing")]
    Missing(&'static str),
    /// `run` failed before the container's command ran.
    #[error("{0}")]
    Run(Box<Error>),
}

/// For `map_err` of a call: names what was done to which object.
pub(super) fn call(step: &'static str, object: impl Into<String>) -> impl FnOnce(tonic::Status) -> Error {
    let object = object.into();
    move |status| Error::Call {
        step,
        object,
        status: Box::new(status),
    }
}

impl Error {
    pub(super) fn of_run(self) -> Error {
        Error::Run(Box::new(self))
    }

    /// 1, or in `run` 125, and 126 and 127 for a command that cannot be
    /// executed or is not there.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Run(error) => match **error {
                Error::Start { code: 126, .. } => 126,
                Error::Start { code: 127, .. } => 127,
                _ => NOT_RUN,
            },
            _ => FAILED,
        }
    }
}

/// berthd's messages say everything; the code is added where the message alone
/// would not tell what to do.
fn describe(status: &tonic::Status) -> String {
    let message = status.message().trim();
    match status.code() {
        Code::Unavailable if message.is_empty() => "berthd went away".into(),
        Code::Unimplemented => format!("{message} (not implemented by this berthd)"),
        Code::PermissionDenied if message.is_empty() => "permission denied; try as root".into(),
        code if message.is_empty() => code.description().to_lowercase(),
        _ => message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_leaves_with_the_codes_that_docker_uses() {
        let start = |code| {
            let (name, message) = ("c".to_owned(), "no".to_owned());
            Error::Start { name, message, code }.of_run().exit_code()
        };
        assert_eq!([start(126), start(127), start(128)], [126, 127, 125]);
        assert_eq!(Error::NoContainer("c".into()).of_run().exit_code(), 125);
        assert_eq!(Error::NoContainer("c".into()).exit_code(), 1);
    }

    #[test]
    fn an_answer_without_words_still_says_something() {
        let error = call("stop container", "c")(tonic::Status::new(Code::NotFound, ""));
        assert!(error.to_string().len() > "stop container c: ".len(), "{error}");
    }
}
