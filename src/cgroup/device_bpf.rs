//! Device rules of cgroup v2: a small program that the kernel asks at each open and mknod.

use std::os::fd::AsFd;

use crate::proto::plan::DeviceRule;
use crate::sys::bpf::{self, Instruction};

use super::{Cgroup, Error, Result};

/// Puts a program for `rules` in the place of those that are attached.
pub fn apply(cgroup: &Cgroup, rules: &[DeviceRule]) -> Result<()> {
    let error = |step| {
        move |errno| Error::DeviceProgram {
            cgroup: cgroup.path.clone(),
            step,
            errno,
        }
    };
    let Some(folder) = cgroup.hierarchies.iter().find(|h| h.is_v2()) else {
        return Err(cgroup.no_controller("devices", "devices.deny", "a"));
    };
    // BPF wants a descriptor that was opened for reading, not with O_PATH.
    let folder = rustix::fs::open(
        folder.folder(&cgroup.path),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(error("open the cgroup folder"))?;
    let program = assemble(rules).map_err(|reason| Error::Value {
        cgroup: cgroup.path.clone(),
        reason,
    })?;
    let old = bpf::device_programs(folder.as_fd()).map_err(error("ask for attached programs"))?;
    let program = bpf::load_device_program(&program).map_err(error("load (bpf PROG_LOAD)"))?;
    // All attached programs must agree, so while both are there no more is allowed
    // than by either of them.
    bpf::attach_device_program(folder.as_fd(), program.as_fd()).map_err(error("attach (bpf PROG_ATTACH)"))?;
    for id in old {
        bpf::detach_device_program(folder.as_fd(), id).map_err(error("detach the one before"))?;
    }
    Ok(())
}

// Operations of linux/bpf.h and bpf_common.h, class and mode together.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const MOVE_NUMBER: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND_NUMBER: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
// 32 bits wide, so that majors above 2^31 are not taken for negative numbers; Linux 5.1.
const UNLESS_NUMBER: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const IF_NUMBER: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const UNLESS: u8 = 0x5e; // BPF_JMP32 | BPF_JNE | BPF_X
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

// Registers: the answer, scratch (at first the context), and what is asked.
const ANSWER: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// BPF_DEVCG_* of linux/bpf.h.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// The rules backwards, the last one that matches being the answer; no match: no access.
fn assemble(rules: &[DeviceRule]) -> std::result::Result<Vec<Instruction>, String> {
    // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, SCRATCH, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_NUMBER, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        instruction(LOAD_WORD, MINOR, SCRATCH, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let block = assemble_rule(rule)?;
        let catches_all = block.len() == 2;
        program.extend(block);
        if catches_all {
            // The verifier refuses code that cannot be reached.
            return Ok(program);
        }
    }
    program.extend(answer(false));
    Ok(program)
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE_NUMBER, ANSWER, 0, 0, i32::from(allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn assemble_rule(rule: &DeviceRule) -> std::result::Result<Vec<Instruction>, String> {
    let kind = match rule.kind.as_str() {
        "a" => None,
        "b" => Some(BLOCK),
        "c" => Some(CHAR),
        other => return Err(format!("device rule of kind {other:?}: it must be a, b or c")),
    };
    let mut access = 0;
    for letter in rule.access.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => {
                return Err(format!(
                    "device rule with access {other:?}: it must be of r, w and m"
                ));
            }
        };
    }
    // Each condition jumps over the rest of the block when it fails.
    let mut conditions = Vec::new();
    if let Some(kind) = kind {
        conditions.push(vec![instruction(UNLESS_NUMBER, KIND, 0, 0, kind)]);
    }
    if access != ALL {
        // A rule that allows must cover all that is asked; one that denies, any of it.
        let failing = if rule.allow {
            instruction(UNLESS, SCRATCH, ACCESS, 0, 0)
        } else {
            instruction(IF_NUMBER, SCRATCH, 0, 0, 0)
        };
        conditions.push(vec![
            instruction(MOVE, SCRATCH, ACCESS, 0, 0),
            instruction(AND_NUMBER, SCRATCH, 0, 0, access),
            failing,
        ]);
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            conditions.push(vec![instruction(
                UNLESS_NUMBER,
                register,
                0,
                0,
                number.cast_signed(),
            )]);
        }
    }
    let mut block: Vec<Instruction> = conditions.into_iter().flatten().collect();
    block.extend(answer(rule.allow));
    let length = block.len();
    for (at, jump) in block.iter_mut().enumerate() {
        if matches!(jump.code, UNLESS_NUMBER | IF_NUMBER | UNLESS) {
            // Counted from the instruction after the jump.
            jump.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
        }
    }
    Ok(block)
}
