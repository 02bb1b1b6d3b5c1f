//! Seccomp rules to the program that the kernel runs.
//!
//! libseccomp compiles. Ahead of its program stands a short one of our own, for
//! what the library cannot do: calls newer than its tables, and ENOSYS for calls
//! newer than the profile. Without that a C library that tries a new call first
//! (clone3, faccessat2, fchmodat2) would see EPERM and give up instead of falling
//! back (moby 42680; runc does the same).

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek},
    sync::{Arc, Mutex, PoisonError},
};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use sha2::{Digest, Sha256};

use super::Error;

/// Calls that libseccomp 2.5 does not know, with the number that all architectures
/// share since Linux 5.1; kernel 5.18 to 6.18.
const NEW_CALLS: [(&str, u32); 19] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The most instructions that the kernel takes, BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;
/// Programs kept; one node sees few profiles.
const MAX_CACHED: usize = 64;
const EPERM: i32 = 1;
const ENOSYS: u32 = 38;

/// A program and the flags to load it with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// An array of struct sock_filter.
    pub bytes: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_*
    pub flags: u32,
}

static CACHE: Mutex<Option<HashMap<[u8; 32], Arc<Program>>>> = Mutex::new(None);

/// Compiles the rules of a spec; equal rules are compiled once.
pub(super) fn compile(rules: &LinuxSeccomp) -> Result<Arc<Program>, Error> {
    let text = serde_json::to_vec(rules).map_err(|e| Error::spec("linux.seccomp", e.to_string()))?;
    let key: [u8; 32] = Sha256::digest(text).into();
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = cache.get_or_insert_default();
    if let Some(known) = cache.get(&key) {
        return Ok(Arc::clone(known));
    }
    let program = Arc::new(Program {
        bytes: program(rules)?,
        flags: flags(rules)?,
    });
    if cache.len() >= MAX_CACHED {
        cache.clear();
    }
    cache.insert(key, Arc::clone(&program));
    Ok(program)
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
    let mut bytes = prelude.finish();
    bytes.extend(export(&filter)?);
    if bytes.len() / 8 > MAX_INSTRUCTIONS {
        return Err(Error::Seccomp {
            profile: "of the container".into(),
            message: format!(
                "{} instructions, the kernel takes {MAX_INSTRUCTIONS}",
                bytes.len() / 8
            ),
        });
    }
    Ok(bytes)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, Error> {
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
    Ok(bytes)
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
struct Machine {
    library: ScmpArch,
    /// AUDIT_ARCH_*, what the kernel says in seccomp_data.
    audit: u32,
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

/// The program ahead of the library's.
struct Prelude {
    arches: Vec<Machine>,
    /// Calls and what becomes of them.
    calls: Vec<(u32, u32)>,
    /// The highest call that the profile names, by architecture.
    last: Vec<u32>,
    /// Calls above that get ENOSYS.
    stub: bool,
    permissive: bool,
}

impl Prelude {
    fn new(rules: &LinuxSeccomp, arches: Vec<Machine>) -> Prelude {
        use LinuxSeccompAction as Act;
        let default = rules.default_action();
        let permissive = matches!(default, Act::ScmpActAllow | Act::ScmpActLog | Act::ScmpActTrace);
        Prelude {
            last: vec![0; arches.len()],
            arches,
            calls: Vec::new(),
            // Whoever sets an errno of their own for the rest wants just that.
            stub: !permissive && rules.default_errno_ret().is_none_or(|errno| errno == ENOSYS),
            permissive,
        }
    }

    /// Notes that the profile knows this call, whatever it says of it.
    fn seen(&mut self, name: &str) {
        let new = new_call(name);
        for (machine, last) in self.arches.iter().zip(&mut self.last) {
            let known = ScmpSyscall::from_name_by_arch(name, machine.library).ok();
            let number = known
                .and_then(|call| u32::try_from(call.as_raw_syscall()).ok())
                .or(new);
            *last = number.map_or(*last, |number| number.max(*last));
        }
    }

    /// A call that the library does not know. One that nobody knows is passed over:
    /// profiles name the calls of all architectures.
    fn add(&mut self, name: &str, act: ScmpAction, rule: &LinuxSyscall) -> Result<(), Error> {
        let Some(number) = new_call(name) else {
            return Ok(());
        };
        if rule.args().as_ref().is_some_and(|args| !args.is_empty()) {
            // Left to the default: that is stricter, unless the default allows.
            return if self.permissive {
                Err(Error::unsupported(
                    format!("seccomp rule for {name}"),
                    "conditions on arguments need a newer libseccomp",
                ))
            } else {
                Ok(())
            };
        }
        if !self.calls.iter().any(|(known, _)| *known == number) {
            self.calls.push((number, verdict(act)));
        }
        Ok(())
    }

    fn finish(self) -> Vec<u8> {
        let mut code: Vec<Instruction> = Vec::new();
        if self.calls.is_empty() && !self.stub {
            return Vec::new();
        }
        code.push(Instruction::load(ARCH));
        for (machine, last) in self.arches.iter().zip(&self.last) {
            if machine.audit == 0 || *last == 0 {
                continue;
            }
            let mut section = vec![
                Instruction::load(NUMBER),
                // Calls of x32 are numbered from here.
                Instruction::jump(JGE, 0x4000_0000, 0, 1),
                Instruction::to_end(),
            ];
            for (number, verdict) in &self.calls {
                section.push(Instruction::jump(JEQ, *number, 0, 1));
                section.push(Instruction::give(*verdict));
            }
            if self.stub {
                section.push(Instruction::jump(JGT, *last, 0, 1));
                section.push(Instruction::give(verdict(ScmpAction::Errno(38))));
            }
            section.push(Instruction::to_end());
            // At most 5 + 2 * 19 + 2 instructions: the offset fits in a byte.
            let over = u8::try_from(section.len()).unwrap_or(u8::MAX);
            code.push(Instruction::jump(JEQ, machine.audit, 0, over));
            code.extend(section);
        }
        let length = code.len();
        for (place, instruction) in code.iter_mut().enumerate() {
            if instruction.code == JA {
                instruction.value = u32::try_from(length - place - 1).unwrap_or(u32::MAX);
            }
        }
        code.iter().flat_map(Instruction::bytes).collect()
    }
}

fn new_call(name: &str) -> Option<u32> {
    // The one new call that only one architecture has.
    if name == "uretprobe" && cfg!(target_arch = "x86_64") {
        return Some(335);
    }
    NEW_CALLS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// SECCOMP_RET_*
fn verdict(act: ScmpAction) -> u32 {
    match act {
        ScmpAction::KillProcess => 0x8000_0000,
        ScmpAction::Trap => 0x0003_0000,
        ScmpAction::Errno(errno) => 0x0005_0000 | (errno.unsigned_abs() & 0xffff),
        ScmpAction::Trace(message) => 0x7ff0_0000 | u32::from(message),
        ScmpAction::Log => 0x7ffc_0000,
        ScmpAction::Allow => 0x7fff_0000,
        // Of a thread, and of any action that a later libseccomp may add.
        _ => 0,
    }
}

/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// Classic BPF, uapi/linux/bpf_common.h.
const LOAD: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RETURN: u16 = 0x06;

/// struct sock_filter
struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

impl Instruction {
    fn load(offset: u32) -> Instruction {
        Instruction::jump(LOAD, offset, 0, 0)
    }

    fn jump(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
        Instruction { code, yes, no, value }
    }

    /// To the library's program; the distance is filled in at the end.
    fn to_end() -> Instruction {
        Instruction::jump(JA, 0, 0, 0)
    }

    fn give(verdict: u32) -> Instruction {
        Instruction::jump(RETURN, verdict, 0, 0)
    }

    fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.code.to_ne_bytes();
        let [w, x, y, z] = self.value.to_ne_bytes();
        [a, b, self.yes, self.no, w, x, y, z]
    }
}

#[cfg(test)]
#[path = "tests/seccomp_compile.rs"]
mod tests;
