//! Instructions of classic BPF (uapi/linux/bpf_common.h), as far as seccomp programs have
//! them.

/// Offsets in struct seccomp_data.
pub const NUMBER: u32 = 0;
pub const ARCH: u32 = 4;

/// The accumulator becomes the word at an offset.
pub const LOAD: u16 = 0x20;
pub const AND: u16 = 0x54;
/// By the distance that the value gives.
pub const JA: u16 = 0x05;
pub const JEQ: u16 = 0x15;
pub const JGT: u16 = 0x25;
pub const JGE: u16 = 0x35;
/// Whether there is a bit that both have.
pub const JSET: u16 = 0x45;
pub const RETURN: u16 = 0x06;

/// struct sock_filter
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub yes: u8,
    pub no: u8,
    pub value: u32,
}

impl Instruction {
    pub fn load(offset: u32) -> Instruction {
        Instruction::jump(LOAD, offset, 0, 0)
    }

    pub fn jump(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
        Instruction { code, yes, no, value }
    }

    /// To the end of the program; the distance is filled in when there is one.
    pub fn to_end() -> Instruction {
        Instruction::jump(JA, 0, 0, 0)
    }

    pub fn give(verdict: u32) -> Instruction {
        Instruction::jump(RETURN, verdict, 0, 0)
    }

    pub fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.code.to_ne_bytes();
        let [w, x, y, z] = self.value.to_ne_bytes();
        [a, b, self.yes, self.no, w, x, y, z]
    }

    pub fn of_bytes([a, b, yes, no, w, x, y, z]: [u8; 8]) -> Instruction {
        Instruction {
            code: u16::from_ne_bytes([a, b]),
            yes,
            no,
            value: u32::from_ne_bytes([w, x, y, z]),
        }
    }
}

/// What a jump says of the accumulator; None: it is not one that asks.
pub fn asks(code: u16, accumulator: u32, value: u32) -> Option<bool> {
    Some(match code {
        JEQ => accumulator == value,
        JGT => accumulator > value,
        JGE => accumulator >= value,
        JSET => accumulator & value != 0,
        _ => return None,
    })
}

/// What the kernel's machine would answer. `data` is a struct seccomp_data.
#[cfg(test)]
pub fn run(program: &[Instruction], data: &[u8; 64]) -> u32 {
    let (mut place, mut accumulator) = (0, 0);
    loop {
        let one = program[place];
        place += 1;
        let offset = one.value as usize;
        match one.code {
            LOAD => accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap()),
            AND => accumulator &= one.value,
            RETURN => return one.value,
            JA => place += offset,
            code => {
                let yes = asks(code, accumulator, one.value).unwrap();
                place += usize::from(if yes { one.yes } else { one.no });
            }
        }
    }
}
