//! The socket over which a runtime hands over the master side of a terminal.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recvmsg, socket_with,
};

/// The runtime has ended when this is waited for: the words are in the socket.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

#[derive(Debug)]
pub struct ConsoleSocket {
    socket: OwnedFd,
    folder: PathBuf,
    name: String,
}

impl ConsoleSocket {
    /// Listens as `name` in the folder. The runtime runs in that folder and is told the
    /// name alone, for the path may be longer than an address can be.
    pub fn new(folder: &Path, name: &str) -> Result<ConsoleSocket, Errno> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let opened = open(
            folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let short = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
        let _ = rustix::fs::unlinkat(CWD, short.as_str(), rustix::fs::AtFlags::empty());
        bind(&socket, &SocketAddrUnix::new(short.as_str())?)?;
        listen(&socket, 1)?;
        Ok(ConsoleSocket {
            socket,
            folder: folder.to_owned(),
            name: name.to_owned(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The master side that was sent.
    pub fn receive(self) -> Result<OwnedFd, Errno> {
        wait(&self.socket)?;
        let peer = accept_with(&self.socket, SocketFlags::CLOEXEC)?;
        wait(&peer)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // The message itself is the terminal's name.
        let mut name = [0; 256];
        let mut parts = [IoSliceMut::new(&mut name)];
        recvmsg(&peer, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut messages = control.drain();
        let master = messages.find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        master.ok_or(Errno::BADMSG)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.folder.join(&self.name));
    }
}

fn wait(socket: &OwnedFd) -> Result<(), Errno> {
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&PATIENCE)) {
            Err(Errno::INTR) => {}
            Ok(0) => return Err(Errno::TIMEDOUT),
            answer => return answer.map(drop),
        }
    }
}
