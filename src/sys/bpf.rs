//! bpf(2) as far as device programs of cgroups need it.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

/// `struct bpf_insn`: operation, registers (destination low, source high), offset, immediate.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

// Commands and values of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
/// As many programs on one cgroup as the kernel allows.
const QUERY_MAX: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, attribute: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: `attribute` is the command's part of union bpf_attr, of the size given;
    // the callers keep alive what it points to.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(fd).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the kernel just made this descriptor for us (close-on-exec, as all of bpf).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a device program.
///
/// # Errors
/// EINVAL or EACCES from the verifier; EPERM without CAP_BPF.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let mut load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        ..Load::default()
    };
    owned(bpf(PROG_LOAD, &mut load)?)
}

/// The ids of the device programs attached to the cgroup itself.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN or CAP_BPF.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = vec![0u32; QUERY_MAX];
    let mut query = Query {
        target_fd: number(cgroup),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: u32::try_from(QUERY_MAX).map_err(|_| Errno::INVAL)?,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    ids.truncate(usize::try_from(query.prog_cnt).unwrap_or(0));
    Ok(ids)
}

/// Attaches a program beside those that are there: all of them must allow an access.
///
/// # Errors
/// Those of BPF_PROG_ATTACH.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attach = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    bpf(PROG_ATTACH, &mut attach)?;
    Ok(())
}

/// Detaches the program with this id; one that is gone is no error.
///
/// # Errors
/// Those of BPF_PROG_DETACH.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // union bpf_attr starts with the id here; next_id and open_flags follow.
    let program = match bpf(PROG_GET_FD_BY_ID, &mut [id, 0, 0]) {
        Err(Errno::NOENT) => return Ok(()),
        answer => owned(answer?)?,
    };
    let mut attach = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(std::os::fd::AsFd::as_fd(&program)),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        ..Attach::default()
    };
    match bpf(PROG_DETACH, &mut attach) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
