//! What parent and child say to each other until the exec: packets on a socket pair
//! that closes on exec, so that end-of-file means success.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use super::step::Failure;

/// What a child says.
pub enum Word {
    /// The root is there; the master side of the terminal when one was asked for.
    Ready(Option<OwnedFd>),
    /// Another process goes on in the place of the one that was cloned, which ends.
    Moved(OwnedFd),
    /// Everything is mounted, the root is still the host's: it waits for the hooks.
    Hooks,
    Failed(Failure),
    /// It has executed, or is dead.
    End,
}

const READY: u8 = 0xff;
const HOOKS: u8 = 0xfe;
const MOVED: u8 = 0xfd;

/// The parent's end and the child's.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (parent, child) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // 0, 1 and 2 are overwritten in the child.
    Ok((parent, rustix::io::fcntl_dupfd_cloexec(&child, 3)?))
}

/// Parent: lets the child go on.
pub fn allow(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, &[1], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Child: waits for [`allow`]; false when the parent is gone.
pub fn wait(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [0u8; 1];
    loop {
        match recv(socket, &mut byte, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Ok((count, _)) => return count == 1,
            Err(_) => return false,
        }
    }
}

/// Child: says Ready, and gives the terminal's master side to the parent.
pub fn say_ready(socket: BorrowedFd<'_>, console: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    say(socket, READY, console)
}

/// Child: says which process, by its pidfd, goes on in its place.
pub fn say_moved(socket: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    say(socket, MOVED, Some(pidfd))
}

fn say(socket: BorrowedFd<'_>, word: u8, with: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [with.unwrap_or(socket)];
    if with.is_some() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&[word])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Child: says that the hooks can run.
pub fn say_hooks(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, &[HOOKS], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Child: says what failed. Nobody may be listening any more.
pub fn say_failed(socket: BorrowedFd<'_>, failure: &Failure) {
    let mut buffer = [0; Failure::ENCODED];
    let length = failure.encode(&mut buffer);
    let _ = send(
        socket,
        buffer.get(..length).unwrap_or_default(),
        SendFlags::NOSIGNAL,
    );
}

/// Parent: waits for the next word.
pub fn hear(socket: BorrowedFd<'_>) -> Result<Word, Errno> {
    let mut buffer = [0; Failure::ENCODED];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match recvmsg(socket.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // The child died with words of ours unread.
            Err(Errno::CONNRESET) => return Ok(Word::End),
            answer => break answer?,
        }
    };
    let message = buffer.get(..received.bytes).unwrap_or_default();
    let mut given = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match message {
        [] => Ok(Word::End),
        [HOOKS] => Ok(Word::Hooks),
        [READY] => Ok(Word::Ready(given.take())),
        [MOVED] => given.take().map(Word::Moved).ok_or(Errno::BADMSG),
        _ => Failure::decode(message).map(Word::Failed).ok_or(Errno::BADMSG),
    }
}
