//! The shim's loop: one thread, one epoll, no call that waits for a client.
//!
//! Children are reaped in one place, by wait4 for any child when SIGCHLD comes:
//! the init, execs, and strangers, which are orphans of the container that were
//! reparented to the shim as their subreaper. As nobody else reaps, a pid means
//! the same process until then.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use prost::Message;
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::{SocketFlags, accept_with, sockopt::socket_peercred},
    process::{WaitOptions, geteuid, wait},
};

use super::{
    connection::{Closed, Connection, Frame},
    line::Source,
    note,
    output::index,
    service::{Caller, Outcome, Service},
    ttrpc::{Code, FrameType, MAX_PAYLOAD, Request, Response, Status},
};
use crate::sys::signalfd;

/// Clients that may be connected at a time.
const MAX_CLIENTS: usize = 64;

/// Requests of one client before the others have their turn.
const TURN: usize = 16;

/// How long the last answers may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// What an event is about, as epoll carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener,
    Children,
    Stdout,
    Stderr,
    /// The clients at the container's stdio.
    Attached,
    /// The counts of the OOM killer.
    Oom,
    Client(u32),
}

/// Numbers below are the fixed tokens.
const FIRST_CLIENT: u64 = 16;

impl From<Token> for epoll::EventData {
    fn from(token: Token) -> epoll::EventData {
        epoll::EventData::new_u64(match token {
            Token::Listener => 0,
            Token::Children => 1,
            Token::Stdout => 2,
            Token::Stderr => 3,
            Token::Attached => 4,
            Token::Oom => 5,
            Token::Client(id) => FIRST_CLIENT + u64::from(id),
        })
    }
}

impl Token {
    fn from_data(data: epoll::EventData) -> Option<Token> {
        match data.u64() {
            0 => Some(Token::Listener),
            1 => Some(Token::Children),
            2 => Some(Token::Stdout),
            3 => Some(Token::Stderr),
            4 => Some(Token::Attached),
            5 => Some(Token::Oom),
            client => client
                .checked_sub(FIRST_CLIENT)
                .and_then(|id| u32::try_from(id).ok())
                .map(Token::Client),
        }
    }
}

#[derive(Debug)]
struct Client {
    id: u32,
    connection: Connection,
    /// Registered for writing too.
    writing: bool,
}

/// The shim as a whole.
#[derive(Debug)]
pub struct EventLoop {
    epoll: OwnedFd,
    listener: OwnedFd,
    children: OwnedFd,
    clients: Vec<Client>,
    next_client: u32,
    /// Which of the init's streams are watched.
    watched: [bool; 2],
    oom_watched: bool,
    service: Service,
}

impl EventLoop {
    /// `listener` is a listening Unix stream socket. SIGCHLD must be blocked.
    pub fn new(listener: OwnedFd, service: Service) -> io::Result<EventLoop> {
        let flags = rustix::fs::fcntl_getfl(&listener)?;
        rustix::fs::fcntl_setfl(&listener, flags | rustix::fs::OFlags::NONBLOCK)?;
        let children = signalfd::children()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, Token::Listener.into(), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &children, Token::Children.into(), epoll::EventFlags::IN)?;
        Ok(EventLoop {
            epoll,
            listener,
            children,
            clients: Vec::new(),
            next_client: 0,
            watched: [false; 2],
            oom_watched: false,
            service,
        })
    }

    /// Serves until the container has ended and everybody connected was told.
    pub fn run(mut self) -> io::Result<()> {
        let mut farewell = None;
        loop {
            self.settle();
            if self.service.is_over() {
                let until = *farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
                let waiting = self.clients.iter().any(|client| client.connection.is_waiting());
                if !waiting || Instant::now() >= until {
                    return Ok(());
                }
            }
            let deadline = farewell.or_else(|| self.service.deadline());
            let mut events = [empty_event(); 16];
            let count = match epoll::wait(&self.epoll, &mut events[..], timeout(deadline).as_ref()) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.iter().take(count) {
                let (data, flags) = (event.data, event.flags);
                match Token::from_data(data) {
                    Some(Token::Listener) => self.accept(),
                    Some(Token::Children) => self.reap(),
                    Some(Token::Stdout) => self.pump(Source::Stdout),
                    Some(Token::Stderr) => self.pump(Source::Stderr),
                    Some(Token::Attached) => self.serve_attached(),
                    Some(Token::Oom) => self.oom_event(),
                    Some(Token::Client(id)) => self.serve(id, flags),
                    None => {}
                }
            }
        }
    }

    /// Answers what has become ready.
    fn settle(&mut self) {
        for (caller, outcome) in self.service.settle() {
            self.answer(caller, outcome);
        }
        // Who was held up by a client that was dropped goes on.
        self.watch_output();
        self.watch_oom();
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(&self.listener, flags) else {
            return;
        };
        let allowed = socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid());
        if !allowed {
            note(format_args!(
                "a client that is neither root nor this user was turned away"
            ));
            return;
        }
        if self.clients.len() >= MAX_CLIENTS {
            note(format_args!(
                "a client was turned away: {MAX_CLIENTS} are connected"
            ));
            return;
        }
        let id = self.next_client;
        self.next_client = self.next_client.wrapping_add(1);
        if let Err(errno) = epoll::add(
            &self.epoll,
            &socket,
            Token::Client(id).into(),
            epoll::EventFlags::IN,
        ) {
            note(format_args!("watch a client: {errno}"));
            return;
        }
        self.clients.push(Client {
            id,
            connection: Connection::new(socket),
            writing: false,
        });
    }

    fn reap(&mut self) {
        // What was queued is one signal however many children ended.
        let mut information = [0; 128];
        while rustix::io::read(&self.children, &mut information).is_ok() {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let Some(code) = status.exit_status().or(signal) else {
                continue;
            };
            if let Some(task) = self.service.task() {
                task.reaped(pid.as_raw_nonzero().get(), code);
            }
        }
    }

    fn pump(&mut self, source: Source) {
        let Some(task) = self.service.task() else { return };
        if task.pump(source) {
            if let Some(stream) = task.stream(source) {
                unwatch(&self.epoll, stream);
            }
            self.watched[index(source)] = false;
            task.close(source);
        }
        self.watch_output();
    }

    fn serve_attached(&mut self) {
        if let Some(task) = self.service.task() {
            task.attached.serve();
        }
        self.watch_output();
    }

    fn serve(&mut self, id: u32, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT)
            && let Some(client) = self.clients.iter_mut().find(|client| client.id == id)
            && let Err(closed) = client.connection.flush()
        {
            return self.drop_client(id, &closed);
        }
        for _ in 0..TURN {
            let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else {
                return;
            };
            match client.connection.read() {
                Ok(Some(frame)) => self.handle(id, frame),
                Ok(None) => break,
                Err(closed) => return self.drop_client(id, &closed),
            }
        }
        self.watch_writing(id);
    }

    /// One frame of a client.
    fn handle(&mut self, client: u32, frame: Frame) {
        let Frame { header, payload, fds } = frame;
        let caller = Caller {
            client,
            stream: header.stream,
        };
        let refused = |code, message: String| Some(Err(Status::new(code, message)));
        let outcome = if header.payload().is_none() {
            refused(
                Code::ResourceExhausted,
                format!("a frame of {} bytes: at most {MAX_PAYLOAD}", header.length),
            )
        } else if header.stream % 2 == 0 {
            refused(
                Code::InvalidArgument,
                format!("stream id {}: a client's are odd", header.stream),
            )
        } else if header.kind != FrameType::Request {
            refused(
                Code::InvalidArgument,
                format!("{:?}: only requests are taken, no streams", header.kind),
            )
        } else {
            match Request::decode(&payload[..]) {
                Ok(request) => {
                    drop(payload);
                    let outcome = self.service.call(caller, &request, &fds);
                    match request.method.as_str() {
                        "Create" => self.watch_output(),
                        "Exec" => self.watch_attached(),
                        _ => {}
                    }
                    outcome
                }
                Err(error) => refused(Code::InvalidArgument, format!("request: {error}")),
            }
        };
        // The answer to a start that failed comes after its record is in place.
        self.settle();
        if let Some(outcome) = outcome {
            self.answer(caller, outcome);
        }
    }

    fn answer(&mut self, caller: Caller, outcome: Outcome) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == caller.client) else {
            return;
        };
        let response = match outcome {
            Ok(payload) => Response {
                status: None,
                payload,
            },
            Err(status) => Response {
                status: Some(status),
                payload: Vec::new(),
            },
        };
        match client.connection.answer(caller.stream, &response) {
            Ok(()) => self.watch_writing(caller.client),
            Err(closed) => self.drop_client(caller.client, &closed),
        }
    }

    /// Watches the container's output: what is open and nobody holds up.
    fn watch_output(&mut self) {
        let Some(task) = self.service.task() else { return };
        for (source, token) in [(Source::Stdout, Token::Stdout), (Source::Stderr, Token::Stderr)] {
            let watched = &mut self.watched[index(source)];
            let done = match (task.stream(source), *watched) {
                (Some(stream), false) => epoll::add(&self.epoll, stream, token.into(), epoll::EventFlags::IN),
                (None, true) => match task.output.descriptor(source) {
                    Some(held) => epoll::delete(&self.epoll, held),
                    None => Ok(()),
                },
                _ => continue,
            };
            *watched = !*watched;
            if let Err(errno) = done {
                note(format_args!("watch the container's output: {errno}"));
            }
        }
    }

    /// Watches the clients at the container's stdio, once there are some.
    fn watch_attached(&mut self) {
        let Some(clients) = self.service.task().and_then(|task| task.attached.descriptor()) else {
            return;
        };
        match epoll::add(
            &self.epoll,
            clients,
            Token::Attached.into(),
            epoll::EventFlags::IN,
        ) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => note(format_args!(
                "watch the clients at the container's stdio: {errno}"
            )),
        }
    }

    /// Watches the counts of the OOM killer, once there is a container that needs it.
    fn watch_oom(&mut self) {
        if self.oom_watched {
            return;
        }
        let task = self.service.task();
        let Some(events) = task.as_ref().and_then(|task| task.oom_descriptor()) else {
            return;
        };
        if let Err(errno) = epoll::add(&self.epoll, events, Token::Oom.into(), epoll::EventFlags::PRI) {
            note(format_args!("watch the counts of the OOM killer: {errno}"));
        }
        self.oom_watched = true;
    }

    fn oom_event(&mut self) {
        if let Some(task) = self.service.task() {
            task.oom_event();
        }
    }

    /// Watches a client for room as long as answers wait for it.
    fn watch_writing(&mut self, id: u32) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else {
            return;
        };
        let waiting = client.connection.is_waiting();
        if waiting == client.writing {
            return;
        }
        client.writing = waiting;
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, waiting);
        if let Err(errno) = epoll::modify(&self.epoll, &client.connection, Token::Client(id).into(), flags) {
            note(format_args!("watch a client: {errno}"));
        }
    }

    fn drop_client(&mut self, id: u32, closed: &Closed) {
        if !matches!(closed, Closed::ByPeer) {
            note(format_args!("a client was dropped: {closed}"));
        }
        if let Some(at) = self.clients.iter().position(|client| client.id == id) {
            let client = self.clients.swap_remove(at);
            unwatch(&self.epoll, client.connection.as_fd());
        }
        self.service.client_gone(id, !self.clients.is_empty());
    }
}

/// Closing alone would not do while a child of the launcher has a copy.
fn unwatch(epoll: &OwnedFd, fd: BorrowedFd<'_>) {
    if let Err(errno) = epoll::delete(epoll, fd) {
        note(format_args!("stop watching a descriptor: {errno}"));
    }
}

fn empty_event() -> epoll::Event {
    epoll::Event {
        flags: epoll::EventFlags::empty(),
        data: epoll::EventData::new_u64(u64::MAX),
    }
}

/// Rounded up, so that a wake is never before its deadline.
fn timeout(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_epoll() {
        for token in [
            Token::Listener,
            Token::Children,
            Token::Stdout,
            Token::Stderr,
            Token::Attached,
            Token::Oom,
            Token::Client(0),
            Token::Client(u32::MAX),
        ] {
            assert_eq!(Token::from_data(token.into()), Some(token));
        }
        assert_eq!(Token::from_data(epoll::EventData::new_u64(u64::MAX)), None);
    }
}
