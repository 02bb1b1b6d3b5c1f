//! Seccomp rules to the program that the kernel runs.
//!
//! libseccomp compiles; ahead of its program stands a short one of our own, see
//! `seccomp_prelude.rs`, and both together are made smaller (`seccomp_compact.rs`). With
//! the default profile that takes some milliseconds, so programs are kept.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::{Error, bpf::Instruction, seccomp_compact::compact, seccomp_prelude::Prelude};

/// The most instructions that the kernel takes, BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;
/// Programs kept; one node sees few profiles.
const MAX_CACHED: usize = 64;
const EPERM: i32 = 1;

/// A program and the flags to load it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// An array of struct sock_filter.
    pub bytes: Bytes,
    /// SECCOMP_FILTER_FLAG_*
    pub flags: u32,
}

/// What rules were compiled to, the latest first.
static CACHE: Mutex<VecDeque<(LinuxSeccomp, Program)>> = Mutex::new(VecDeque::new());

/// Compiles the rules of a spec, or finds what equal rules compiled to. Nobody
/// waits for another's compilation: two at the same time come to the same.
pub(super) fn compile(rules: &LinuxSeccomp) -> Result<Program, Error> {
    if let Some(known) = known(rules) {
        return Ok(known);
    }
    let program = Program {
        bytes: program(rules)?.into(),
        flags: flags(rules)?,
    };
    let mut kept = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    kept.truncate(MAX_CACHED - 1);
    kept.push_front((rules.clone(), program.clone()));
    Ok(program)
}

fn known(rules: &LinuxSeccomp) -> Option<Program> {
    let mut kept = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = kept.iter().position(|one| one.0 == *rules)?;
    let found = kept.remove(place)?;
    let program = found.1.clone();
    kept.push_front(found);
    Some(program)
}

/// No list means SPEC_ALLOW: the kernel's default against speculation is too slow
/// for a filter that everyone has, and the runtimes agreed to leave it off.
fn flags(rules: &LinuxSeccomp) -> Result<u32, Error> {
    let Some(list) = rules.flags() else {
        return Ok(4);
    };
    list.iter().try_fold(0, |bits, flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Ok(bits | 1),
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => Ok(bits | 2),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Ok(bits | 4),
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Err(Error::unsupported(
            "seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
            "it belongs to notification, which is not there yet",
        )),
    })
}

fn program(rules: &LinuxSeccomp) -> Result<Vec<u8>, Error> {
    let code = compact(both(rules)?);
    if code.len() > MAX_INSTRUCTIONS {
        return Err(Error::Seccomp {
            profile: "of the container".into(),
            message: format!("{} instructions, the kernel takes {MAX_INSTRUCTIONS}", code.len()),
        });
    }
    Ok(code.iter().flat_map(Instruction::bytes).collect())
}

/// Our program and the library's.
fn both(rules: &LinuxSeccomp) -> Result<Vec<Instruction>, Error> {
    let default = action(rules.default_action(), rules.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(library("start a filter"))?;
    // A tree instead of a list of comparisons: the time of a call is that of 7, not of 300.
    filter
        .set_ctl_optimize(2)
        .map_err(library("set the kind of search"))?;
    let arches = arches(rules);
    for arch in &arches {
        filter
            .add_arch(arch.library)
            .map_err(library("add an architecture"))?;
    }
    let mut prelude = Prelude::new(rules, arches);
    for rule in rules.syscalls().iter().flatten() {
        let act = action(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            prelude.seen(name);
            if act == default {
                continue;
            }
            match ScmpSyscall::from_name(name) {
                Ok(call) => add(&mut filter, call, act, rule).map_err(library(name))?,
                Err(_) => prelude.add(name, act, rule)?,
            }
        }
    }
    let mut code = prelude.finish();
    code.extend(export(&filter)?);
    Ok(code)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<Instruction>, Error> {
    let step = "export the seccomp program to";
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| Error::io(step, "memfd")(e.into()))?;
    filter
        .export_bpf(&memory)
        .map_err(library("export the program"))?;
    let mut file = File::from(memory);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(Error::io(step, "memfd"))?;
    let (whole, _) = bytes.as_chunks();
    Ok(whole.iter().copied().map(Instruction::of_bytes).collect())
}

/// Adds a rule. Conditions on different arguments must all hold; several on one
/// argument are alternatives, as the OCI runtimes have it.
fn add(
    filter: &mut ScmpFilterContext,
    call: ScmpSyscall,
    act: ScmpAction,
    rule: &LinuxSyscall,
) -> Result<(), libseccomp::error::SeccompError> {
    let args = rule.args().as_deref().unwrap_or_default();
    let repeated = args
        .iter()
        .any(|arg| args.iter().filter(|other| other.index() == arg.index()).count() > 1);
    if args.is_empty() {
        filter.add_rule(act, call)?;
    } else if repeated {
        for arg in args {
            filter.add_rule_conditional(act, call, &[compare(arg)])?;
        }
    } else {
        let all: Vec<ScmpArgCompare> = args.iter().map(compare).collect();
        filter.add_rule_conditional(act, call, &all)?;
    }
    Ok(())
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or_default(),
        ),
    };
    ScmpArgCompare::new(index, operator, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Error> {
    let number = |errno: Option<u32>| match errno.map(i32::try_from) {
        None => Ok(EPERM),
        // The kernel's own limit, MAX_ERRNO.
        Some(Ok(number)) if number <= 4095 => Ok(number),
        Some(_) => Err(Error::spec(
            "linux.seccomp",
            format!("errnoRet {errno:?} is above 4095"),
        )),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number(errno)?),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(number(errno)?).unwrap_or(1)),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::unsupported(
                "seccomp action SCMP_ACT_NOTIFY",
                "notification of another process is not there yet",
            ));
        }
    })
}

/// For `map_err`: what the library was asked to do.
fn library(step: &str) -> impl FnOnce(libseccomp::error::SeccompError) -> Error + use<> {
    let step = step.to_owned();
    move |e| Error::Seccomp {
        profile: "of the container".into(),
        message: format!("{step}: {e}"),
    }
}

/// An architecture of the filter.
#[derive(Clone, Copy)]
pub(super) struct Machine {
    pub library: ScmpArch,
    /// AUDIT_ARCH_*, what the kernel says in seccomp_data.
    pub audit: u32,
}

/// The architectures of the rules, the native one always with them. One that this
/// libseccomp does not know cannot run here either.
fn arches(rules: &LinuxSeccomp) -> Vec<Machine> {
    let asked = rules.architectures().iter().flatten();
    let mut machines = vec![ScmpArch::native()];
    for arch in asked {
        if let Some(library) = library_arch(*arch)
            && !machines.contains(&library)
        {
            machines.push(library);
        }
    }
    machines
        .into_iter()
        .map(|library| Machine {
            library,
            audit: audit(library),
        })
        .collect()
}

fn library_arch(arch: Arch) -> Option<ScmpArch> {
    Some(match arch {
        Arch::ScmpArchNative => ScmpArch::native(),
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        _ => return None,
    })
}

/// uapi/linux/audit.h; 0 for x32, which has the number of x86_64 and is left to the
/// library's program.
fn audit(arch: ScmpArch) -> u32 {
    match arch {
        ScmpArch::X86 => 0x4000_0003,
        ScmpArch::X8664 => 0xc000_003e,
        ScmpArch::Arm => 0x4000_0028,
        ScmpArch::Aarch64 => 0xc000_00b7,
        ScmpArch::Riscv64 => 0xc000_00f3,
        ScmpArch::S390 => 0x0000_0016,
        ScmpArch::S390X => 0x8000_0016,
        ScmpArch::Ppc64Le => 0xc000_0015,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "tests/seccomp_compile.rs"]
mod tests;
