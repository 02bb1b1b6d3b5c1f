//! Capabilities as sets of 64 bits: bit N stands for capability N of capabilities(7).
#![allow(unsafe_code)]

use rustix::io::Errno;

use super::check;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3 of linux/capability.h.
const VERSION: u32 = 0x2008_0522;
/// No kernel knows more; PR_CAPBSET_READ tells where it ends.
const HIGHEST: u32 = 63;

/// The sets that capset(2) changes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// The sets of the calling thread.
///
/// # Errors
/// Those of capget(2).
pub fn get() -> Result<Sets, Errno> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 means two halves; both structures live across the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) })?;
    let whole = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: whole(halves[0].effective, halves[1].effective),
        permitted: whole(halves[0].permitted, halves[1].permitted),
        inheritable: whole(halves[0].inheritable, halves[1].inheritable),
    })
}

/// Sets those of the calling thread.
///
/// # Errors
/// EPERM when a set is asked that the thread may not have.
pub fn set(sets: Sets) -> Result<(), Errno> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let low = |set: u64| (set & u64::from(u32::MAX)).try_into().unwrap_or(0);
    let high = |set: u64| (set >> 32).try_into().unwrap_or(0);
    let halves = [
        Half {
            effective: low(sets.effective),
            permitted: low(sets.permitted),
            inheritable: low(sets.inheritable),
        },
        Half {
            effective: high(sets.effective),
            permitted: high(sets.permitted),
            inheritable: high(sets.inheritable),
        },
    ];
    // SAFETY: version 3 means two halves; both structures live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) })?;
    Ok(())
}

/// Whether the bounding set of the calling thread has the capability; None: this kernel knows
/// no such one, nor any of a higher number.
fn in_bounding(capability: u32) -> Option<bool> {
    // SAFETY: takes integers.
    let read = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
    (read >= 0).then_some(read == 1)
}

/// The bounding set of the calling thread.
#[must_use]
pub fn bounding() -> u64 {
    let known = (0..=HIGHEST).map_while(in_bounding);
    (0..)
        .zip(known)
        .fold(0, |set, (at, held)| set | u64::from(held) << at)
}

/// All capabilities that this kernel has.
#[must_use]
pub fn known() -> u64 {
    let known = (0..=HIGHEST).map_while(in_bounding);
    (0..).zip(known).fold(0, |set, (at, _)| set | 1 << at)
}

/// Drops every capability from the bounding set that is not in `keep`.
///
/// # Errors
/// EPERM without CAP_SETPCAP, unless there is nothing to be dropped.
pub fn limit_bounding(keep: u64) -> Result<(), Errno> {
    for capability in (0..=HIGHEST).filter(|capability| keep & (1 << capability) == 0) {
        // SAFETY: takes integers.
        let dropped = check(libc::c_long::from(unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0)
        }));
        match dropped {
            Ok(_) => {}
            // Past the last one.
            Err(Errno::INVAL) => break,
            Err(_) if in_bounding(capability) == Some(false) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `set`: each must be permitted and inheritable.
///
/// # Errors
/// EPERM when one is not.
pub fn set_ambient(set: u64) -> Result<(), Errno> {
    // SAFETY: takes integers.
    check(libc::c_long::from(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    }))?;
    for capability in 0..=HIGHEST {
        if set & (1 << capability) != 0 {
            // SAFETY: takes integers.
            check(libc::c_long::from(unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    libc::c_ulong::from(capability),
                    0,
                    0,
                )
            }))?;
        }
    }
    Ok(())
}
