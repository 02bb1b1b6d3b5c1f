//! What a verb answers when it fails: a ttrpc status, made in one place.

use std::fmt::Display;

use prost::Message;
use rustix::io::Errno;

use super::{
    state::Illegal,
    ttrpc::{Code, Status},
};
use crate::{
    launcher::{self, Cause},
    proto::{google::protobuf::Any, plan::ExitRecord},
};

/// A status that is not OK.
pub type Fault = Status;

/// The type_url of the record in the details of a failed start.
pub const EXIT_RECORD: &str = "berth.plan.v1.ExitRecord";

pub fn new(code: Code, message: impl Into<String>) -> Fault {
    Status::new(code, message)
}

pub fn invalid(message: impl Into<String>) -> Fault {
    new(Code::InvalidArgument, message)
}

pub fn internal(step: &str, error: impl Display) -> Fault {
    new(Code::Internal, format!("{step}: {error}"))
}

pub fn illegal(illegal: Illegal) -> Fault {
    new(Code::FailedPrecondition, illegal.to_string())
}

/// A program could not be executed: the message for people and, in the details,
/// the code that the process has ended with.
pub fn start_failed(code: i32, message: String) -> Fault {
    let record = ExitRecord {
        code,
        message: message.clone(),
        ..ExitRecord::default()
    };
    let mut fault = new(Code::FailedPrecondition, message);
    fault.details.push(Any {
        type_url: EXIT_RECORD.into(),
        value: record.encode_to_vec(),
    });
    fault
}

/// A container that could not be made; the error names the step.
pub fn launch_failed(error: &launcher::Error) -> Fault {
    let code = match error.cause() {
        Cause::Request => Code::InvalidArgument,
        Cause::State => Code::FailedPrecondition,
        Cause::Resources => Code::ResourceExhausted,
        Cause::Launcher => Code::Internal,
    };
    new(code, error.to_string())
}

/// A signal that could not be sent.
pub fn signal(whom: &str, signal: i32, errno: Errno) -> Fault {
    match errno {
        Errno::SRCH => new(Code::NotFound, format!("{whom} has ended")),
        Errno::INVAL => invalid(format!("signal {signal} does not exist")),
        errno => internal(&format!("send signal {signal} to {whom}"), errno),
    }
}

/// The message in an open field; `name` is the only type it may have there.
pub fn unpack<M: Message + Default>(any: Option<Any>, name: &str) -> Result<M, Fault> {
    let any = any.ok_or_else(|| invalid(format!("a {name} is missing")))?;
    if any.type_url != name {
        return Err(invalid(format!("type {:?}: want {name}", any.type_url)));
    }
    M::decode(&any.value[..]).map_err(|error| invalid(format!("{name}: {error}")))
}
