//! A remote command's session: a process's ends on one side, a client's streams on
//! the other, whatever transport carries them.

use std::{future::pending, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::join3;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::sleep,
};
use tracing::debug;

use super::{
    Error, Session, TerminalSize,
    backend::{EndOfInput, Input, Output, Resize},
    link::{CHUNK, Inbound, Item, Limits, Link, Lost, Outbound, flagged},
    status::{Outcome, StatusForm},
};

/// How long output may stay silent after the process has ended: whoever else holds
/// it open (a child in the background) must not hold the session for ever. All that
/// the process itself wrote has been read by then.
const QUIET: Duration = Duration::from_secs(10);
/// Most bytes of an unfinished resize message.
const MAX_RESIZE: usize = 1024;

/// A client's streams.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Option<Inbound>,
    pub(super) stdout: Option<Outbound>,
    pub(super) stderr: Option<Outbound>,
    pub(super) resize: Option<Inbound>,
    pub(super) error: Outbound,
    /// Our halves of streams that only the client sends on.
    pub(super) silent: Vec<Outbound>,
    pub(super) form: StatusForm,
}

/// Starts a process and follows it to its end, or to the client's. Output is written
/// before the status, and the status before the connection is closed.
pub(super) async fn run(
    link: Link,
    mut streams: Streams,
    start: impl Future<Output = Result<Session, Error>> + Send + 'static,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    // A task of its own: what is half started is not to be cancelled.
    let started = tokio::spawn(start);
    let (stdin, resize) = (streams.stdin.take(), streams.resize.take());
    let outcome = {
        let work = async {
            match started.await {
                Ok(Ok(session)) => {
                    let client = Client {
                        stdin,
                        resize,
                        stdout: streams.stdout.as_mut(),
                        stderr: streams.stderr.as_mut(),
                    };
                    follow(session, client).await
                }
                Ok(Err(error)) => Outcome::Failed(error.to_string()),
                Err(error) => Outcome::Failed(format!("start the session: {error}")),
            }
        };
        tokio::select! {
            outcome = work => outcome,
            () = link.gone() => return debug!("streaming client is gone"),
            () = link.idle(limits.idle) => return debug!("streaming connection was idle too long"),
            () = flagged(&mut stop) => Outcome::Failed("berthd is stopping".into()),
        }
    };
    finish(streams, &outcome).await;
    link.close(limits.idle).await;
}

/// Says how it ended and closes what is open.
pub(super) async fn finish(mut streams: Streams, outcome: &Outcome) {
    for output in [&mut streams.stdout, &mut streams.stderr].into_iter().flatten() {
        output.finish().await;
    }
    if let Some(status) = outcome.encode(streams.form) {
        // Who does not want to know is not told.
        let _ = streams.error.write(status).await;
    }
    streams.error.finish().await;
    for mut half in streams.silent {
        half.finish().await;
    }
}

/// The client's streams while the process runs.
struct Client<'a> {
    stdin: Option<Inbound>,
    resize: Option<Inbound>,
    stdout: Option<&'a mut Outbound>,
    stderr: Option<&'a mut Outbound>,
}

async fn follow(session: Session, client: Client<'_>) -> Outcome {
    let (sender, exited) = watch::channel(false);
    let exit = async {
        let result = session.exit.await;
        // Without outputs nobody listens.
        let _ = sender.send(true);
        result
    };
    let stdout = output(session.stdout, client.stdout, exited.clone());
    let stderr = output(session.stderr, client.stderr, exited);
    let input = async {
        let ended = match client.stdin {
            Some(from) => input(from, session.stdin).await,
            None => false,
        };
        if !ended || session.end_of_input == EndOfInput::Closes {
            pending::<()>().await;
        }
    };
    let resizes = async {
        if let (Some(from), Some(resize)) = (client.resize, session.resize) {
            resizes(from, resize).await;
        }
        pending::<()>().await;
    };
    tokio::select! {
        (result, (), ()) = join3(exit, stdout, stderr) => match result {
            Ok(0) => Outcome::Success,
            Ok(code) => Outcome::Exited(code),
            Err(error) => Outcome::Failed(error.to_string()),
        },
        () = input => Outcome::Success,
        () = resizes => Outcome::Success,
    }
}

/// Passes the client's input on; true when the client has ended it. A process that
/// reads no more (or never did) does not stop the client: the rest is dropped.
async fn input(mut from: Inbound, mut to: Option<Input>) -> bool {
    while let Some(item) = from.next().await {
        match (item, &mut to) {
            (Item::Data(chunk), Some(stdin)) => {
                let written = async {
                    stdin.write_all(&chunk.bytes).await?;
                    stdin.flush().await
                };
                if written.await.is_err() {
                    to = None;
                }
            }
            (Item::Data(_), None) => {}
            (Item::End, to) => {
                if let Some(mut stdin) = to.take() {
                    // It is dropped next, which closes it too.
                    let _ = stdin.shutdown().await;
                }
                return true;
            }
            (Item::Reset, _) => return true,
        }
    }
    false
}

/// Passes a process's output on until it ends. When the client has reset the stream
/// the process goes on writing into nothing, and its other streams into theirs.
async fn output(from: Option<Output>, mut to: Option<&mut Outbound>, mut exited: watch::Receiver<bool>) {
    let mut buffer = BytesMut::new();
    if let Some(mut from) = from {
        loop {
            if buffer.capacity() < CHUNK / 4 {
                buffer.reserve(CHUNK);
            }
            tokio::select! {
                read = from.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                () = quiet(&mut exited) => break,
            }
            let bytes = buffer.split().freeze();
            match &to {
                Some(outbound) => match outbound.write(bytes).await {
                    Ok(()) => {}
                    Err(Lost::Reset) => to = None,
                    Err(Lost::Gone) => return,
                },
                None => drop(bytes),
            }
        }
    }
    if let Some(outbound) = to {
        outbound.finish().await;
    }
}

async fn quiet(exited: &mut watch::Receiver<bool>) {
    flagged(exited).await;
    sleep(QUIET).await;
}

async fn resizes(mut from: Inbound, resize: Resize) {
    let mut sizes = Sizes::default();
    while let Some(Item::Data(chunk)) = from.next().await {
        for size in sizes.push(&chunk.bytes) {
            resize(size).await;
        }
    }
}

/// Reads resize messages: JSON objects one after the other, cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    buffer: Vec<u8>,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

impl Sizes {
    /// The sizes that are complete with these bytes; what is no size is dropped.
    pub(super) fn push(&mut self, bytes: &Bytes) -> Vec<TerminalSize> {
        self.buffer.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut messages = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Size>();
        let mut unfinished = false;
        for message in messages.by_ref() {
            match message {
                Ok(Size { width, height }) if width > 0 && height > 0 => {
                    found.push(TerminalSize { width, height });
                }
                Ok(_) => {}
                Err(error) => {
                    unfinished = error.is_eof();
                    break;
                }
            }
        }
        let used = if unfinished {
            messages.byte_offset()
        } else {
            self.buffer.len()
        };
        self.buffer.drain(..used);
        if self.buffer.len() > MAX_RESIZE {
            self.buffer.clear();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_may_be_cut_anywhere() {
        let wire = b"{\"Width\":80,\"Height\":24}\n{\"Width\":0,\"Height\":1}{\"width\":132,\"height\":43}";
        let wanted = [
            TerminalSize {
                width: 80,
                height: 24,
            },
            TerminalSize {
                width: 132,
                height: 43,
            },
        ];
        for cut in 0..wire.len() {
            let mut sizes = Sizes::default();
            let mut found = sizes.push(&Bytes::copy_from_slice(&wire[..cut]));
            found.extend(sizes.push(&Bytes::copy_from_slice(&wire[cut..])));
            assert_eq!(found, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_size_is_dropped() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.push(&Bytes::from_static(b"nonsense")), []);
        assert_eq!(sizes.push(&Bytes::from(vec![b'['; 5000])), []);
        let size = sizes.push(&Bytes::from_static(b"{\"Width\":1,\"Height\":2}"));
        assert_eq!(size, [TerminalSize { width: 1, height: 2 }]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            Sizes::default().push(&Bytes::from(bytes));
        }
    }
}
