//! Clients at the init's stdio: `kubectl attach`, any number at a time, also those
//! of a berthd that was started anew.
//!
//! A client sends one end of a pipe for each stream that it joins; the pipe itself
//! is its queue. What does not fit waits here, at most one read of the container's
//! output for each client, and until it has gone that stream is not read any
//! further: so a client loses no byte, and its pace is the container's. A client
//! that takes nothing for [`PATIENCE`] is dropped, and the container, its log and
//! the other clients go on: that is the longest that one can hold them up.
//!
//! Input goes the other way with the same rule and no limit of time: while the
//! container does not read, its clients' pipes are not read.
//!
//! An epoll of its own, made for the first client, is one descriptor in the
//! shim's: a container that nobody attaches to pays nothing.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

use super::{
    endpoint::{Endpoint, Written, set_nonblocking},
    exec::{check_id, pick},
    fault::{self, Fault},
    line::Source,
    note,
    output::index,
    ttrpc::Code,
};
use crate::proto::{plan, task::ExecProcessRequest};

/// Clients that may be attached at a time.
const MAX_CLIENTS: usize = 64;

/// How long a client may take nothing while output waits for it.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of input that are read at once.
const CHUNK: usize = 16 * 1024;

/// Whose event it is: three for each client, the container's own input is 0.
const INPUT: u64 = 0;
const ROLES: u64 = 3;

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Attached,
    /// It was dropped, for it did not read.
    Slow,
}

#[derive(Debug)]
struct Client {
    id: String,
    number: u64,
    stdin: Option<Endpoint>,
    outputs: [Option<Endpoint>; 2],
    /// Everything of it is closed; kept for whoever asks for its fate.
    slow: bool,
}

/// The clients, and the write end of the init's standard input.
#[derive(Debug, Default)]
pub struct Attached {
    epoll: Option<OwnedFd>,
    clients: Vec<Client>,
    next: u64,
    terminal: bool,
    input: Option<Endpoint>,
    /// The end of a client's input is the end of the container's.
    once: bool,
    /// The input is closed as soon as what waits for the container is written.
    closing: bool,
}

impl Attached {
    /// For a terminal there is no end of input but the end of the terminal.
    pub fn new(once: bool, terminal: bool) -> Attached {
        Attached {
            next: 1,
            once: once && !terminal,
            terminal,
            ..Attached::default()
        }
    }

    /// What clients send goes to `to`, made non-blocking here.
    pub fn set_input(&mut self, to: OwnedFd) -> Result<(), Errno> {
        set_nonblocking(&to)?;
        self.input = Some(Endpoint::new(to, INPUT));
        Ok(())
    }

    /// A client joins; `open` says which of the container's streams are open. A
    /// stream that is not is at its end for the client at once.
    pub fn add(
        &mut self,
        request: ExecProcessRequest,
        fds: &[OwnedFd],
        open: [bool; 2],
    ) -> Result<(), Fault> {
        check_id(&request.exec_id)?;
        let plan::Attach {} = fault::unpack(request.spec, ATTACH)?;
        if request.terminal != self.terminal || (self.terminal && !request.stderr.is_empty()) {
            return Err(fault::invalid(format!(
                "attach {}: the container has {} terminal; with one there is no stderr",
                request.exec_id,
                if self.terminal { "a" } else { "no" }
            )));
        }
        if self.clients.len() >= MAX_CLIENTS {
            // Those that have left too, whose input the container does not take.
            self.clients
                .retain(|client| !client.slow && client.outputs.iter().any(Option::is_some));
        }
        if self.clients.len() >= MAX_CLIENTS {
            let message = format!("{MAX_CLIENTS} clients are attached to the container");
            return Err(fault::new(Code::ResourceExhausted, message));
        }
        let number = self.next;
        self.next += 1;
        let end = |name: &str, role: u64| {
            if name.is_empty() {
                return Ok(None);
            }
            let fd = pick(name, fds)?;
            set_nonblocking(&fd).map_err(|errno| fault::internal("prepare a client's pipe", errno))?;
            Ok::<_, Fault>(Some(Endpoint::new(fd, number * ROLES + role)))
        };
        let mut client = Client {
            id: request.exec_id,
            number,
            stdin: end(&request.stdin, 0)?,
            outputs: [end(&request.stdout, 1)?, end(&request.stderr, 2)?],
            slow: false,
        };
        if self.input.is_none() || self.closing {
            client.stdin = None;
        }
        for (output, open) in client.outputs.iter_mut().zip(open) {
            output.take_if(|_| !open);
        }
        self.make_epoll()?;
        self.clients.push(client);
        self.settle();
        Ok(())
    }

    fn make_epoll(&mut self) -> Result<(), Fault> {
        if self.epoll.is_none() {
            let made = epoll::create(epoll::CreateFlags::CLOEXEC);
            self.epoll = Some(made.map_err(|errno| fault::internal("make an epoll for clients", errno))?);
        }
        Ok(())
    }

    /// Readable when [`Attached::serve`] has something to do.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.epoll.as_ref().map(OwnedFd::as_fd)
    }

    pub fn fate(&self, id: &str) -> Option<Fate> {
        let client = self.clients.iter().find(|client| client.id == id)?;
        Some(if client.slow { Fate::Slow } else { Fate::Attached })
    }

    /// Hands output to every client of the stream.
    pub fn deliver(&mut self, source: Source, bytes: &[u8]) {
        for client in &mut self.clients {
            let output = &mut client.outputs[index(source)];
            if let Some(to) = output
                && to.write(bytes) == Written::Gone
            {
                close(self.epoll.as_ref(), output);
            }
        }
        self.settle();
    }

    /// A client has yet to take what was read last: the stream is not to be read.
    pub fn holds(&self, source: Source) -> bool {
        let mut outputs = self
            .clients
            .iter()
            .filter_map(|client| client.outputs[index(source)].as_ref());
        outputs.any(Endpoint::is_waiting)
    }

    /// The container's stream has ended: so it has for its clients, and with the
    /// last of its streams a client has left.
    pub fn end(&mut self, source: Source) {
        for client in &mut self.clients {
            if client.outputs[index(source)].is_some() {
                close(self.epoll.as_ref(), &mut client.outputs[index(source)]);
                if client.outputs.iter().all(Option::is_none) {
                    close(self.epoll.as_ref(), &mut client.stdin);
                }
            }
        }
        self.settle();
    }

    /// Ends the container's input when all that waits for it is written.
    pub fn close_input(&mut self) {
        self.closing = true;
        for client in &mut self.clients {
            close(self.epoll.as_ref(), &mut client.stdin);
        }
        self.settle();
    }

    /// The container has ended: nobody reads its input.
    pub fn drop_input(&mut self) {
        close(self.epoll.as_ref(), &mut self.input);
        self.close_input();
    }

    /// When [`Attached::expire`] must be called.
    pub fn deadline(&self) -> Option<Instant> {
        let outputs = self
            .clients
            .iter()
            .flat_map(|client| client.outputs.iter().flatten());
        outputs
            .filter_map(Endpoint::waits_since)
            .min()
            .map(|since| since + PATIENCE)
    }

    /// Drops the clients that have taken nothing for [`PATIENCE`], or with `all`
    /// whoever has something to take.
    pub fn expire(&mut self, all: bool) {
        let now = Instant::now();
        for client in &mut self.clients {
            let mut outputs = client.outputs.iter().flatten().filter_map(Endpoint::waits_since);
            if !outputs.any(|since| all || now >= since + PATIENCE) {
                continue;
            }
            note(format_args!(
                "attach {}: dropped, it does not read its output",
                client.id
            ));
            client.slow = true;
            let [stdout, stderr] = &mut client.outputs;
            for end in [stdout, stderr, &mut client.stdin] {
                close(self.epoll.as_ref(), end);
            }
        }
        self.settle();
    }

    /// Serves what has become ready.
    pub fn serve(&mut self) {
        let Some(epoll) = &self.epoll else { return };
        let mut events = [const {
            epoll::Event {
                flags: epoll::EventFlags::empty(),
                data: epoll::EventData::new_u64(u64::MAX),
            }
        }; 16];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = epoll::wait(epoll, &mut events[..], Some(&now)).unwrap_or(0);
        for event in events.iter().take(count) {
            let (data, flags) = (event.data, event.flags);
            match data.u64() {
                INPUT => self.flush_input(),
                token => self.serve_client(token / ROLES, token % ROLES, flags),
            }
        }
        self.settle();
    }

    fn serve_client(&mut self, number: u64, role: u64, flags: epoll::EventFlags) {
        let Some(at) = self.clients.iter().position(|client| client.number == number) else {
            return;
        };
        let output = match role {
            0 => return self.read_input(at),
            1 => &mut self.clients[at].outputs[0],
            _ => &mut self.clients[at].outputs[1],
        };
        // Its other end is closed: the client has left, but its input may hold more.
        let left = flags.contains(epoll::EventFlags::ERR);
        if let Some(to) = output
            && (left || to.flush() == Written::Gone)
        {
            close(self.epoll.as_ref(), output);
        }
    }

    fn read_input(&mut self, at: usize) {
        let (Some(from), Some(to)) = (&self.clients[at].stdin, &mut self.input) else {
            return;
        };
        if to.is_waiting() {
            return;
        }
        let mut chunk = vec![0; CHUNK];
        match rustix::io::read(from, &mut chunk[..]) {
            Ok(count) if count > 0 => {
                if to.write(&chunk[..count]) == Written::Gone {
                    self.drop_input();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                close(self.epoll.as_ref(), &mut self.clients[at].stdin);
                if self.once {
                    self.close_input();
                }
            }
        }
    }

    fn flush_input(&mut self) {
        if let Some(to) = &mut self.input
            && to.flush() == Written::Gone
        {
            self.drop_input();
        }
    }

    /// Forgets who has left, and watches what is to be watched.
    fn settle(&mut self) {
        if self.closing {
            // What waits for the container is written first.
            let done = self.input.as_ref().is_some_and(|input| !input.is_waiting());
            if done {
                close(self.epoll.as_ref(), &mut self.input);
            }
        }
        self.clients.retain(|client| {
            client.slow || client.stdin.is_some() || client.outputs.iter().any(Option::is_some)
        });
        let Some(epoll) = &self.epoll else { return };
        let full = self.input.as_ref().is_some_and(Endpoint::is_waiting);
        if let Some(input) = &mut self.input {
            input.watch(epoll, full.then_some(epoll::EventFlags::OUT));
        }
        for client in &mut self.clients {
            if let Some(stdin) = &mut client.stdin {
                stdin.watch(epoll, (!full).then_some(epoll::EventFlags::IN));
            }
            for output in client.outputs.iter_mut().flatten() {
                // That the other end was closed is told without being asked for.
                let mut flags = epoll::EventFlags::empty();
                flags.set(epoll::EventFlags::OUT, output.is_waiting());
                output.watch(epoll, Some(flags));
            }
        }
    }
}

/// The type_url of the request.
pub const ATTACH: &str = "berth.plan.v1.Attach";

fn close(epoll: Option<&OwnedFd>, end: &mut Option<Endpoint>) {
    if let (Some(mut end), Some(epoll)) = (end.take(), epoll) {
        end.watch(epoll, None);
    }
}
