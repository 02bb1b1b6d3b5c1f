//! Running a plugin: environment and configuration in, result or error out.
//! A plugin is somebody else's program: its time and its output are bounded.

use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

/// Most bytes of output that are read, of each stream.
const MAX_OUTPUT: usize = 1024 * 1024;
/// Most bytes of a plugin's words that go into an error.
const MAX_WORDS: usize = 2048;
/// How long output is awaited after the plugin has ended: a process that it left
/// behind may hold the pipe for ever.
const LINGER: Duration = Duration::from_millis(500);

/// Why a plugin's run failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot be run: {0}")]
    Start(io::Error),
    #[error("cannot be talked to: {0}")]
    Pipe(io::Error),
    #[error("did not end within {:.0} s and was killed", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("printed more than {MAX_OUTPUT} bytes and was killed")]
    TooMuch,
    /// The plugin's own error, by the specification.
    #[error("{msg}{} (code {code})", if details.is_empty() { String::new() } else { format!(": {details}") })]
    Refused { code: u64, msg: String, details: String },
    #[error("{status}, and said: {words}")]
    Died { status: ExitStatus, words: String },
}

#[derive(Deserialize)]
struct PluginError {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Runs a plugin with `input` on stdin; gives its stdout.
pub async fn run(
    plugin: &Path,
    env: &[(&'static str, OsString)],
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let child = Command::new(plugin)
        .envs(env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it started dies with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::Start)?;
    let mut plugin = Running(child);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let talked = timeout(limit, talk(&mut plugin.0, input, &mut stdout, &mut stderr)).await;
    let status = match talked {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            plugin.kill().await;
            return Err(failure);
        }
        Err(_) => {
            plugin.kill().await;
            return Err(Failure::TimedOut(limit));
        }
    };
    if status.success() {
        return Ok(stdout);
    }
    Err(match serde_json::from_slice::<PluginError>(&stdout) {
        Ok(PluginError { code, msg, details }) => Failure::Refused {
            code,
            msg: words(msg.as_bytes()),
            details: if details.trim().is_empty() {
                String::new()
            } else {
                words(details.as_bytes())
            },
        },
        Err(_) => {
            let said = if stderr.is_empty() { &stdout } else { &stderr };
            let words = words(said);
            Failure::Died { status, words }
        }
    })
}

/// Feeds the plugin, reads all of its output and waits for its end.
async fn talk(
    child: &mut Child,
    input: &[u8],
    stdout: &mut Vec<u8>,
    stderr: &mut Vec<u8>,
) -> Result<ExitStatus, Failure> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its configuration says why by its exit.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let output = async { tokio::try_join!(feed, read(out, stdout), read(err, stderr)) };
    tokio::pin!(output);
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(Failure::Pipe)?,
            read = &mut output, if open => {
                read?;
                open = false;
            }
        }
    };
    if open && let Ok(read) = timeout(LINGER, output).await {
        read?;
    }
    Ok(status)
}

async fn read(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), Failure> {
    let Some(mut from) = from else {
        return Ok(());
    };
    while from.read_buf(into).await.map_err(Failure::Pipe)? > 0 {
        if into.len() > MAX_OUTPUT {
            return Err(Failure::TooMuch);
        }
    }
    Ok(())
}

/// A plugin that was started. What it started dies with it when it is given up, be
/// it that berthd stops; what it leaves behind when it ends is its own business.
struct Running(Child);

impl Running {
    async fn kill(&mut self) {
        self.kill_group();
        let _ = self.0.kill().await;
    }

    fn kill_group(&self) {
        // None once it is reaped: then its number may be another's.
        let group = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// The end of what a plugin said, as one line that can be shown.
fn words(bytes: &[u8]) -> String {
    let tail = bytes
        .get(bytes.len().saturating_sub(MAX_WORDS)..)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(tail);
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.is_empty() { "nothing".into() } else { line }
}
