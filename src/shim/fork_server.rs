//! The fork server: the process that shims are copies of.
//!
//! To copy a process as small as this costs less than half of what it costs to execute
//! a program: on a virtual machine the look of the C library at the processor takes 0.3 ms
//! alone, for each CPUID is a way to the hypervisor and back. So berthd executes the shim's
//! program once, and asks that process for each shim.
//!
//! A shim is made as a child of berthd (CLONE_PARENT), which waits for it; the server
//! keeps nothing of it. The shim answers by itself: one that berthd does not hear of any
//! more, because the server was given up meanwhile, notices that and ends. The server
//! ends when berthd does, at the end of its socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    io::Errno,
    net::{RecvFlags, Shutdown, shutdown},
    process::{PidfdFlags, fchdir, getpid, pidfd_open, setsid},
    thread::set_name,
};

use super::{Error, rights, take_stdin};
use crate::sys::{
    arguments::Arguments,
    clone::{Forked, clone_sibling},
    descriptor, signal,
};

/// The first argument of the server.
pub const FLAG: &str = "-fork-server";
/// The second one: it makes room for the arguments of a shim, "berth-shim -id ID" with an
/// ID of 64 bytes.
pub const ROOM: &str = "makes-room-for-the-id-of-a-container-in-what-ps-shows..";

/// The longest id; longer ones do not fit into a path either.
const MOST: usize = 255;

/// What a shim is made of.
#[derive(Debug)]
pub struct Beginning<Fd> {
    /// The listening socket.
    pub listener: Fd,
    /// The container's state folder.
    pub folder: Fd,
    /// Its standard error.
    pub log: Fd,
}

/// berthd: asks for a shim; the answer is for [`answer`]. Does not wait.
///
/// # Errors
/// Those of sendmsg(2): the server is gone, or has not read what it was asked before.
pub fn ask(socket: BorrowedFd<'_>, id: &str, with: &Beginning<BorrowedFd<'_>>) -> Result<(), Errno> {
    send(socket, id.as_bytes(), &[with.listener, with.folder, with.log])
}

/// berthd: the shim that was made, by its number and its pidfd, or why there is none. Does
/// not wait.
///
/// # Errors
/// Those of recvmsg(2), AGAIN when there is no answer yet; PIPE when the server is gone.
pub fn answer(socket: BorrowedFd<'_>) -> Result<Result<(u32, OwnedFd), Errno>, Errno> {
    let mut message = [0; 4];
    let (length, mut fds) = packet(socket, &mut message, RecvFlags::DONTWAIT)?;
    let word = i32::from_ne_bytes(message);
    match (length, u32::try_from(word), fds.pop()) {
        (0, _, _) => Err(Errno::PIPE),
        (4, Ok(pid), Some(pidfd)) => Ok(Ok((pid, pidfd))),
        (4, Err(_), None) => Ok(Err(Errno::from_raw_os_error(word.wrapping_neg()))),
        _ => Err(Errno::PROTO),
    }
}

/// berthd: gives a server up. What it was asked for last has been made in time, and is the
/// answer, or ends by itself.
pub fn give_up(socket: BorrowedFd<'_>) -> Option<(u32, OwnedFd)> {
    // Whoever sends after this is told that nobody hears it.
    let _ = shutdown(socket, Shutdown::Both);
    answer(socket).ok().and_then(Result::ok)
}

/// The life of the server. Returns in each shim, with its id and its listening socket, and
/// when berthd is gone: None.
pub fn serve() -> Result<Option<(String, OwnedFd)>, Error> {
    let failed = |step| move |errno| Error::Daemon { step, errno };
    set_name(c"berth-forks").map_err(failed("set name"))?;
    setsid().map_err(failed("setsid"))?;
    signal::block_all().map_err(failed("block signals"))?;
    descriptor::close_all_but(&[]).map_err(failed("close inherited descriptors"))?;
    let socket = take_stdin().map_err(Error::Socket)?;
    let mut arguments = Arguments::find().map_err(Error::Socket)?;
    loop {
        let mut message = [0; MOST];
        let (length, fds) =
            packet(socket.as_fd(), &mut message, RecvFlags::empty()).map_err(failed("receive"))?;
        if length == 0 {
            return Ok(None);
        }
        let id = message.get(..length).and_then(|id| str::from_utf8(id).ok());
        let refused = match (id, <[OwnedFd; 3]>::try_from(fds)) {
            (Some(id), Ok([listener, folder, log])) => match clone_sibling(0) {
                Ok(Forked::Child) => {
                    return match begin(id, &folder, &log, &mut arguments, socket.as_fd()) {
                        Ok(()) => Ok(Some((id.to_owned(), listener))),
                        // berthd has given up: it has had another one made, or is gone.
                        Err(Errno::PIPE | Errno::CONNRESET) => Ok(None),
                        Err(errno) => refuse(socket.as_fd(), errno)
                            .map(|()| None)
                            .map_err(failed("answer")),
                    };
                }
                Ok(Forked::Parent { .. }) => Ok(()),
                Err(errno) => refuse(socket.as_fd(), errno),
            },
            _ => refuse(socket.as_fd(), Errno::INVAL),
        };
        match refused {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(failed("answer")(errno)),
        }
    }
}

/// The first steps of a shim; the last one tells berthd of it.
fn begin(
    id: &str,
    folder: &OwnedFd,
    log: &OwnedFd,
    arguments: &mut Arguments,
    socket: BorrowedFd<'_>,
) -> Result<(), Errno> {
    descriptor::install(log.as_fd(), 2)?;
    fchdir(folder)?;
    arguments.replace(&[b"berth-shim", b"-id", id.as_bytes()]);
    let me = getpid();
    let pidfd = pidfd_open(me, PidfdFlags::empty())?;
    send(socket, &me.as_raw_nonzero().get().to_ne_bytes(), &[pidfd.as_fd()])
}

fn refuse(socket: BorrowedFd<'_>, errno: Errno) -> Result<(), Errno> {
    send(socket, &errno.raw_os_error().wrapping_neg().to_ne_bytes(), &[])
}

fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    // A packet goes whole or not at all.
    rights::send(socket, message, fds).map(drop)
}

/// One packet's length, and the descriptors that came with it; 0 bytes at the end.
fn packet(
    socket: BorrowedFd<'_>,
    message: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut fds = Vec::new();
    loop {
        match rights::receive(socket, message, flags, &mut fds) {
            Err(Errno::INTR) => {}
            // It died with words of ours unread.
            Err(Errno::CONNRESET) => return Ok((0, Vec::new())),
            answer => return answer.map(|length| (length, fds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn answers_are_a_shim_or_an_error_or_the_end() {
        let (berthd, server) = pair();
        assert_eq!(answer(berthd.as_fd()).unwrap_err(), Errno::AGAIN);
        refuse(server.as_fd(), Errno::NOMEM).unwrap();
        assert_eq!(answer(berthd.as_fd()).unwrap().unwrap_err(), Errno::NOMEM);
        let null = super::super::null().unwrap();
        send(server.as_fd(), &7i32.to_ne_bytes(), &[null.as_fd()]).unwrap();
        assert_eq!(answer(berthd.as_fd()).unwrap().unwrap().0, 7);
        // A pid without a pidfd, and the other way round.
        send(server.as_fd(), &7i32.to_ne_bytes(), &[]).unwrap();
        assert_eq!(answer(berthd.as_fd()).unwrap_err(), Errno::PROTO);
        send(server.as_fd(), &(-7i32).to_ne_bytes(), &[null.as_fd()]).unwrap();
        assert_eq!(answer(berthd.as_fd()).unwrap_err(), Errno::PROTO);
        drop(server);
        assert_eq!(answer(berthd.as_fd()).unwrap_err(), Errno::PIPE);
        let with = Beginning {
            listener: null.as_fd(),
            folder: null.as_fd(),
            log: null.as_fd(),
        };
        assert_eq!(ask(berthd.as_fd(), "id", &with).unwrap_err(), Errno::PIPE);
    }

    #[test]
    fn who_is_given_up_has_answered_or_is_told() {
        let null = super::super::null().unwrap();
        let late = |server: &OwnedFd| send(server.as_fd(), &7i32.to_ne_bytes(), &[null.as_fd()]);
        let (berthd, server) = pair();
        assert!(give_up(berthd.as_fd()).is_none());
        assert_eq!(late(&server).unwrap_err(), Errno::PIPE);
        let (berthd, server) = pair();
        late(&server).unwrap();
        assert_eq!(give_up(berthd.as_fd()).unwrap().0, 7);
        assert_eq!(late(&server).unwrap_err(), Errno::PIPE);
    }

    #[test]
    fn there_is_room_for_the_arguments_of_a_shim() {
        let server = ["berth-shim", FLAG, ROOM].map(|argument| argument.len() + 1);
        let shim = ["berth-shim".len() + 1, "-id".len() + 1, 64 + 1];
        assert_eq!(server.iter().sum::<usize>(), shim.iter().sum::<usize>());
    }
}
