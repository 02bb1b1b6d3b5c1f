//! The process: arguments, environment and folder, of the image and the request.

use std::collections::{BTreeMap, HashMap};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};

use super::{Error, Inputs, user::Identity};
use crate::proto::cri::{ContainerConfig, KeyValue};

/// When neither image nor request has one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Annotations `dev.berth.env.NAME` hold the bytes, in base64, of a variable whose
/// value is not UTF-8: config.json cannot, and the CRI's KeyValue can.
pub(super) const ENV_ANNOTATION: &str = "dev.berth.env.";

/// The process, and annotations that belong to it.
pub(super) struct Made {
    pub process: Process,
    pub annotations: HashMap<String, String>,
}

pub(super) fn process(inputs: &Inputs<'_>, identity: &Identity) -> Result<Made, Error> {
    let request = inputs.request;
    let env = environment(inputs, &identity.home)?;
    // The type's defaults are another runtime's: every field of them is set here or in security.rs.
    let mut process = Process::default();
    process
        .set_args(Some(arguments(inputs)?))
        .set_env(Some(env.text))
        .set_cwd(folder(inputs)?.into())
        .set_user(identity.to_oci())
        .set_terminal(Some(request.tty))
        .set_rlimits(Some(vec![open_files(inputs)?]));
    Ok(Made {
        process,
        annotations: env.annotations,
    })
}

/// `command` replaces the image's entrypoint and drops its cmd; `args` replace the cmd.
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, Error> {
    let (request, image) = (inputs.request, inputs.image);
    let mut all = request.command.clone();
    if !request.command.is_empty() {
        all.extend_from_slice(&request.args);
    } else {
        // An entrypoint of one empty string is how image builders reset it.
        if image.entrypoint != [""] {
            all.extend_from_slice(&image.entrypoint);
        }
        all.extend_from_slice(if request.args.is_empty() {
            &image.cmd
        } else {
            &request.args
        });
    }
    if all.is_empty() {
        return Err(Error::Image {
            image: image.name.clone(),
            message: "has neither entrypoint nor cmd, and the request no command: set command".into(),
        });
    }
    let impossible = |argument: &String| argument.contains('\0');
    if request.command.iter().chain(&request.args).any(impossible) {
        return Err(Error::invalid(
            "command",
            "an argument holds a NUL byte, which no process can get",
        ));
    }
    if all.iter().any(impossible) {
        return Err(Error::Image {
            image: image.name.clone(),
            message: "an argument of its entrypoint or cmd holds a NUL byte, which no process can get".into(),
        });
    }
    Ok(all)
}

struct Environment {
    text: Vec<String>,
    annotations: HashMap<String, String>,
}

/// In order: PATH, TERM of a terminal, HOSTNAME, the image's, the request's, HOME.
/// A later value replaces an earlier one in its place; an image's name without
/// "=" takes the variable away.
fn environment(inputs: &Inputs<'_>, home: &str) -> Result<Environment, Error> {
    let mut variables = Variables::default();
    variables.set(split(DEFAULT_PATH));
    if inputs.request.tty {
        variables.set(split("TERM=xterm"));
    }
    variables.set(("HOSTNAME", inputs.sandbox.hostname.as_bytes()));
    for entry in &inputs.image.env {
        if entry.contains('\0') || entry.starts_with('=') {
            return Err(Error::Image {
                image: inputs.image.name.clone(),
                message: format!("environment entry {entry:?} is not \"KEY=value\""),
            });
        }
        match entry.split_once('=') {
            Some((key, value)) => variables.set((key, value.as_bytes())),
            None => variables.unset(entry),
        }
    }
    for KeyValue { key, value } in &inputs.request.envs {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains(&0) {
            return Err(Error::invalid(
                "envs",
                format!("variable {key:?}: a key must not be empty or hold '=', and no NUL byte is possible"),
            ));
        }
        variables.set((key, value));
    }
    if !variables.values.contains_key("HOME") {
        variables.set(("HOME", home.as_bytes()));
    }
    Ok(variables.finish())
}

fn split(entry: &'static str) -> (&'static str, &'static [u8]) {
    let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
    (key, value.as_bytes())
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Variables<'a> {
    order: Vec<&'a str>,
    values: BTreeMap<&'a str, &'a [u8]>,
}

impl<'a> Variables<'a> {
    fn set(&mut self, (key, value): (&'a str, &'a [u8])) {
        if self.values.insert(key, value).is_none() {
            self.order.push(key);
        }
    }

    fn unset(&mut self, key: &str) {
        if self.values.remove(key).is_some() {
            self.order.retain(|known| *known != key);
        }
    }

    fn finish(self) -> Environment {
        let mut environment = Environment {
            text: Vec::with_capacity(self.order.len()),
            annotations: HashMap::new(),
        };
        for key in self.order {
            let value = self.values.get(key).copied().unwrap_or_default();
            environment
                .text
                .push(format!("{key}={}", String::from_utf8_lossy(value)));
            if std::str::from_utf8(value).is_err() {
                environment
                    .annotations
                    .insert(format!("{ENV_ANNOTATION}{key}"), BASE64.encode(value));
            }
        }
        environment
    }
}

/// The environment of a spec as bytes: the spec's own text, but for values that
/// only an annotation can hold, unless the spec was edited since.
pub(super) fn environment_bytes(env: &[String], annotations: &HashMap<String, String>) -> Vec<Vec<u8>> {
    let raw = |entry: &str| {
        let (key, text) = entry.split_once('=')?;
        let bytes = BASE64
            .decode(annotations.get(&format!("{ENV_ANNOTATION}{key}"))?)
            .ok()?;
        (String::from_utf8_lossy(&bytes) == text).then(|| [key.as_bytes(), b"=", &bytes].concat())
    };
    env.iter()
        .map(|entry| raw(entry).unwrap_or_else(|| entry.clone().into_bytes()))
        .collect()
}

/// The request's folder, else the image's, else "/".
fn folder(inputs: &Inputs<'_>) -> Result<String, Error> {
    let asked = &inputs.request.working_dir;
    if !asked.is_empty() {
        if !asked.starts_with('/') || asked.contains('\0') {
            return Err(Error::invalid(
                "working_dir",
                format!("{asked:?} is not an absolute path"),
            ));
        }
        return Ok(asked.clone());
    }
    let image = &inputs.image.working_dir;
    if image.is_empty() {
        return Ok("/".into());
    }
    if image.contains('\0') {
        return Err(Error::Image {
            image: inputs.image.name.clone(),
            message: "the working directory holds a NUL byte".into(),
        });
    }
    // Builders accept "WORKDIR app" as the first one: it is below the root.
    Ok(if image.starts_with('/') {
        image.clone()
    } else {
        format!("/{image}")
    })
}

fn open_files(inputs: &Inputs<'_>) -> Result<PosixRlimit, Error> {
    let (soft, hard) = inputs.host.nofile;
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(soft)
        .hard(hard)
        .build()
        .map_err(|e| Error::spec("process.rlimits", e.to_string()))
}

/// Where the log is written: the pod's log folder and the container's path in it.
pub(super) fn log_path(log_directory: &str, request: &ContainerConfig) -> Result<Option<String>, Error> {
    let relative = request.log_path.as_str();
    if log_directory.is_empty() || relative.is_empty() {
        return Ok(None);
    }
    if !log_directory.starts_with('/') {
        return Err(Error::invalid(
            "log_directory",
            format!("{log_directory:?} is not an absolute path"),
        ));
    }
    let leaves = relative.split('/').any(|part| part == "..");
    if leaves || relative.ends_with('/') || relative.contains('\0') {
        return Err(Error::invalid(
            "log_path",
            format!("{relative:?} is not the path of a file below the pod's log directory"),
        ));
    }
    let (folder, file) = (
        log_directory.trim_end_matches('/'),
        relative.trim_start_matches('/'),
    );
    Ok(Some(format!("{folder}/{file}")))
}

#[cfg(test)]
#[path = "tests/process.rs"]
mod tests;
