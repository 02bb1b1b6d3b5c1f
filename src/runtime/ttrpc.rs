//! A ttrpc client: calls to one shim over one connection, any number at a time.
//!
//! One task owns the socket. A call hands it the request and waits for its
//! answer, so dropping a call's future leaves the stream of frames whole: the
//! answer is thrown away when it comes. Nobody holds a lock over a wait.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc};

use prost::Message;
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use crate::shim::{
    connection::{Closed, Connection, Frame},
    ttrpc::{self, FrameType, Request, Response},
};

/// Calls that may wait for the socket.
const BACKLOG: usize = 8;

/// The connection broke, or a message was over 4 MiB.
#[derive(Debug, PartialEq, Eq)]
pub struct Disconnected;

/// A call that the task has yet to send.
#[derive(Debug)]
struct Call {
    request: Request,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Response>,
}

/// A handle; the connection is closed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    /// Boxed: the channel has room for 32 of them however many may wait, and each of a
    /// node's shims has one.
    calls: mpsc::Sender<Box<Call>>,
}

impl Client {
    /// Takes a connected socket; within a runtime.
    pub fn new(socket: UnixStream) -> Client {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(drive(Arc::new(socket), receiver));
        Client { calls: sender }
    }

    /// Calls a method of the task service; `fds` go with the frame.
    pub async fn call(
        &self,
        method: &str,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<Response, Disconnected> {
        let (answer, answered) = oneshot::channel();
        let request = Request {
            service: ttrpc::TASK_SERVICE.into(),
            method: method.into(),
            payload,
            ..Request::default()
        };
        let call = Box::new(Call { request, fds, answer });
        self.calls.send(call).await.map_err(|_| Disconnected)?;
        answered.await.map_err(|_| Disconnected)
    }

    /// The other end has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }

    /// Returns when the other end has closed the connection.
    pub async fn closed(&self) {
        self.calls.closed().await;
    }
}

/// Owns the socket until either end is done with it. Whoever still waits for an
/// answer then learns it from the sender that is dropped.
async fn drive(socket: Arc<UnixStream>, mut calls: mpsc::Receiver<Box<Call>>) {
    let mut connection = Connection::new(Arc::clone(&socket));
    let mut open: BTreeMap<u32, oneshot::Sender<Response>> = BTreeMap::new();
    let mut next = 1u32;
    loop {
        let waiting = connection.is_waiting();
        let interest = if waiting {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        tokio::select! {
            call = calls.recv(), if !waiting => {
                let Some(call) = call else { return };
                let Call { request, fds, answer } = *call;
                // Too long for a frame: the caller learns it from the dropped sender.
                let Some(frame) = ttrpc::frame(next, FrameType::Request, &request) else { continue };
                if connection.send(frame, fds).is_err() {
                    return;
                }
                open.insert(next, answer);
                next = next.wrapping_add(2);
            }
            ready = socket.ready(interest) => {
                let Ok(ready) = ready else { return };
                if ready.is_writable() && flush(&socket, &mut connection).is_err() {
                    return;
                }
                loop {
                    match read(&socket, &mut connection) {
                        Ok(Some(frame)) => deliver(&mut open, &frame),
                        Ok(None) => break,
                        Err(_) => return,
                    }
                }
            }
        }
    }
}

/// The next whole frame; nothing when tokio has to wait for more bytes.
fn read(socket: &UnixStream, connection: &mut Connection<Arc<UnixStream>>) -> Result<Option<Frame>, Closed> {
    let mut end = None;
    let frame = socket.try_io(Interest::READABLE, || match connection.read() {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Err(closed) => {
            end = Some(closed);
            Err(io::ErrorKind::BrokenPipe.into())
        }
    });
    end.map_or(Ok(frame.ok()), Err)
}

/// Sends what the socket takes; tokio waits for the rest.
fn flush(socket: &UnixStream, connection: &mut Connection<Arc<UnixStream>>) -> Result<(), Closed> {
    let mut end = None;
    let _ = socket.try_io(Interest::WRITABLE, || match connection.flush() {
        Ok(()) if connection.is_waiting() => Err(io::ErrorKind::WouldBlock.into()),
        Ok(()) => Ok(()),
        Err(closed) => {
            end = Some(closed);
            Err(io::ErrorKind::BrokenPipe.into())
        }
    });
    end.map_or(Ok(()), Err)
}

fn deliver(open: &mut BTreeMap<u32, oneshot::Sender<Response>>, frame: &Frame) {
    let Some(answer) = open.remove(&frame.header.stream) else {
        return;
    };
    if let (FrameType::Response, Ok(response)) = (frame.header.kind, Response::decode(&frame.payload[..])) {
        // The caller may have left.
        let _ = answer.send(response);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair() -> (Client, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            Client::new(ours),
            Connection::new(theirs.into_std().unwrap().into()),
        )
    }

    async fn next(server: &mut Connection) -> Frame {
        loop {
            if let Some(frame) = server.read().unwrap() {
                return frame;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn echo(frame: &Frame) -> Response {
        let request = Request::decode(&frame.payload[..]).unwrap();
        Response {
            status: None,
            payload: request.payload,
        }
    }

    #[tokio::test]
    async fn answers_find_their_calls_in_any_order() {
        let (client, mut server) = pair();
        let calls: Vec<_> = (0..3u8)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move { client.call("State", vec![number], Vec::new()).await })
            })
            .collect();
        let mut frames = Vec::new();
        for _ in 0..3 {
            frames.push(next(&mut server).await);
        }
        for frame in frames.iter().rev() {
            server.answer(frame.header.stream, &echo(frame)).unwrap();
        }
        for (call, number) in calls.into_iter().zip(0u8..) {
            assert_eq!(call.await.unwrap().unwrap().payload, [number]);
        }
    }

    #[tokio::test]
    async fn a_dropped_call_does_not_disturb_the_next() {
        let (client, mut server) = pair();
        let first = tokio::time::timeout(
            Duration::from_millis(20),
            client.call("Wait", vec![1], Vec::new()),
        )
        .await;
        assert!(first.is_err());
        let second = tokio::spawn(async move { client.call("State", vec![2], Vec::new()).await });
        for _ in 0..2 {
            let frame = next(&mut server).await;
            server.answer(frame.header.stream, &echo(&frame)).unwrap();
        }
        assert_eq!(second.await.unwrap().unwrap().payload, [2]);
    }

    #[tokio::test]
    async fn a_closed_connection_ends_every_call() {
        let (client, server) = pair();
        let call = client.call("Wait", Vec::new(), Vec::new());
        let close = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(server);
        };
        assert_eq!(tokio::join!(call, close).0, Err(Disconnected));
        client.closed().await;
        assert!(client.is_closed());
    }

    #[tokio::test]
    async fn a_large_request_waits_for_room() {
        let (client, mut server) = pair();
        let payload = vec![7; 3 << 20];
        let call = tokio::spawn(async move { client.call("Create", payload, Vec::new()).await });
        let frame = next(&mut server).await;
        assert_eq!(echo(&frame).payload.len(), 3 << 20);
        server.answer(frame.header.stream, &Response::default()).unwrap();
        assert!(call.await.unwrap().is_ok());
    }
}
