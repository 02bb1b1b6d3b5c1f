//! The program ahead of libseccomp's: calls that the library does not know, and
//! ENOSYS for calls that the profile does not know.
//!
//! Without the latter a C library that tries a new call first (clone3, faccessat2,
//! fchmodat2) would see EPERM and give up instead of falling back (moby 42680; runc
//! does the same).

use libseccomp::{ScmpAction, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::{
    Error,
    bpf::{ARCH, Instruction, JA, JEQ, JGE, JGT, NUMBER},
    seccomp_compile::Machine,
};

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

/// A new call that only x86_64 has: its number is another call's elsewhere.
const URETPROBE: (&str, u32) = ("uretprobe", 335);
const AUDIT_X86_64: u32 = 0xc000_003e;

const ENOSYS: u32 = 38;

/// The program ahead of the library's.
pub(super) struct Prelude {
    arches: Vec<Machine>,
    /// Calls that only this module knows, and what becomes of them.
    calls: Vec<(String, u32)>,
    /// The highest call that the profile names, by architecture.
    last: Vec<u32>,
    /// Calls above that get ENOSYS.
    stub: bool,
    permissive: bool,
}

impl Prelude {
    pub fn new(rules: &LinuxSeccomp, arches: Vec<Machine>) -> Prelude {
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
    pub fn seen(&mut self, name: &str) {
        for (machine, last) in self.arches.iter().zip(&mut self.last) {
            let known = ScmpSyscall::from_name_by_arch(name, machine.library).ok();
            let number = known
                .and_then(|call| u32::try_from(call.as_raw_syscall()).ok())
                .or_else(|| new_call(name, machine));
            *last = number.map_or(*last, |number| number.max(*last));
        }
    }

    /// A call that the library does not know. One that nobody knows is passed over:
    /// profiles name the calls of all architectures.
    pub fn add(&mut self, name: &str, act: ScmpAction, rule: &LinuxSyscall) -> Result<(), Error> {
        if !self
            .arches
            .iter()
            .any(|machine| new_call(name, machine).is_some())
        {
            return Ok(());
        }
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
        if !self.calls.iter().any(|(known, _)| known == name) {
            self.calls.push((name.to_owned(), verdict(act)));
        }
        Ok(())
    }

    pub fn finish(self) -> Vec<Instruction> {
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
            for (name, verdict) in &self.calls {
                if let Some(number) = new_call(name, machine) {
                    section.push(Instruction::jump(JEQ, number, 0, 1));
                    section.push(Instruction::give(*verdict));
                }
            }
            if self.stub {
                section.push(Instruction::jump(JGT, *last, 0, 1));
                section.push(Instruction::give(verdict(ScmpAction::Errno(38))));
            }
            section.push(Instruction::to_end());
            // At most 6 + 2 * 20 instructions: the offset fits in a byte.
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
        code
    }
}

fn new_call(name: &str, machine: &Machine) -> Option<u32> {
    if name == URETPROBE.0 {
        return (machine.audit == AUDIT_X86_64).then_some(URETPROBE.1);
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
