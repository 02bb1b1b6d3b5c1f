//! The process of an exec: the container's own, but for what it executes.

use oci_spec::runtime::{Process, Spec};

use super::{Error, plan::process_of};
use crate::proto::plan as wire;

/// What the execs in the container of `spec`, a stored config.json, have in common: the
/// environment, user, capabilities, seccomp, limits and folder are the container's.
pub fn exec_template(spec: &Spec) -> Result<wire::Process, Error> {
    let Some(process) = spec.process() else {
        return Err(Error::spec("process", "is missing"));
    };
    let mut made = process_of(process, spec)?;
    made.args = Vec::new();
    (made.console_width, made.console_height) = (0, 0);
    Ok(made)
}

/// The process of an exec.
pub fn exec_process(
    template: &wire::Process,
    command: &[String],
    terminal: bool,
) -> Result<wire::Process, Error> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "is empty; give the command to execute"));
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(Error::invalid(
            "cmd",
            "an argument holds a NUL byte, which no process can get",
        ));
    }
    let mut made = wire::Process {
        args: command.to_vec(),
        terminal,
        ..template.clone()
    };
    if terminal && !made.env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        made.env.push(b"TERM=xterm".to_vec());
    }
    Ok(made)
}

/// [`exec_process`], with the process as an OCI runtime wants it.
pub fn oci_exec_process(spec: &Spec, command: &[String], terminal: bool) -> Result<wire::Process, Error> {
    let mut made = exec_process(&exec_template(spec)?, command, terminal)?;
    let mut process: Process = spec.process().clone().unwrap_or_default();
    let mut env = process.env().clone().unwrap_or_default();
    if terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process
        .set_args(Some(command.to_vec()))
        .set_env(Some(env))
        .set_terminal(Some(terminal))
        .set_console_size(None);
    made.oci = serde_json::to_vec(&process).map_err(|e| Error::spec("process", e.to_string()))?;
    Ok(made)
}
