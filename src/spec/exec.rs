//! The process of an exec: the container's own, but for what it executes.

use oci_spec::runtime::Spec;

use super::{Error, plan::process_of};
use crate::proto::plan as wire;

/// The process of an exec in the container of `spec`, a stored config.json: the
/// environment, user, capabilities, seccomp, limits and folder are the container's.
pub fn exec_process(spec: &Spec, command: &[String], terminal: bool) -> Result<wire::Process, Error> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "is empty; give the command to execute"));
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(Error::invalid(
            "cmd",
            "an argument holds a NUL byte, which no process can get",
        ));
    }
    let Some(process) = spec.process() else {
        return Err(Error::spec("process", "is missing"));
    };
    let mut made = process_of(process, spec)?;
    made.args = command.to_vec();
    made.terminal = terminal;
    (made.console_width, made.console_height) = (0, 0);
    if terminal && !made.env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        made.env.push(b"TERM=xterm".to_vec());
    }
    Ok(made)
}
