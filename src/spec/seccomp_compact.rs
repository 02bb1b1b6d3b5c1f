//! A seccomp program made smaller without another answer.
//!
//! The kernel translates a program each time a process loads it, and that took a sixth of an
//! exec: libseccomp asks for each call by itself, for each architecture, which are 1,300
//! instructions with the default profile. Here the program is run for every architecture and
//! every range of numbers that it can tell apart, which gives what is left of it (an answer, or
//! questions about the arguments); then neighbours with the same rest become one range, and the
//! ranges are searched by halves. It is the program that is looked at and not the profile, so
//! what libseccomp decided is what is kept. A program with an instruction that is not known
//! here, or with too much in it, stays as it is.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use super::bpf::{AND, ARCH, Instruction, JA, JEQ, JGE, JGT, JSET, LOAD, NUMBER, RETURN, asks};

/// Most steps that are spent on a program: a fortieth of a second.
const MAX_STEPS: usize = 1 << 21;

/// The same program, or a smaller one that answers the same.
pub fn compact(program: Vec<Instruction>) -> Vec<Instruction> {
    match Maker::new(&program).make() {
        Some(made) if made.len() < program.len() => made,
        _ => program,
    }
}

/// What is left of a program for one architecture and one number.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    Return(u32),
    Ask {
        /// Offset of the word that is asked about.
        field: u32,
        mask: u32,
        code: u16,
        value: u32,
        yes: Rc<Rest>,
        no: Rc<Rest>,
    },
}

/// What the accumulator is.
#[derive(Clone, Copy)]
enum Value {
    Number,
    Arch,
    /// Another word, of which the mask is left.
    Field(u32, u32),
    Unset,
}

/// A range of numbers, from its first one up to the next range.
struct Range {
    first: u32,
    rest: Rc<Rest>,
}

struct Maker<'a> {
    program: &'a [Instruction],
    /// The first number of each range that the program can tell apart.
    firsts: BTreeSet<u32>,
    /// Architectures that the program asked for.
    arches: BTreeSet<u32>,
    steps: usize,
}

impl Maker<'_> {
    fn new(program: &[Instruction]) -> Maker<'_> {
        let asked = program.iter().filter(|one| matches!(one.code, JEQ | JGT | JGE));
        let edges = asked.flat_map(|one| [Some(one.value), one.value.checked_add(1)]);
        Maker {
            program,
            firsts: edges.flatten().chain([0]).collect(),
            arches: BTreeSet::new(),
            steps: 0,
        }
    }

    /// None: the program cannot be looked through.
    fn make(mut self) -> Option<Vec<Instruction>> {
        let none = self.unasked()?;
        let other = self.ranges(none)?;
        let mut sections = Vec::new();
        while let Some(arch) = self
            .arches
            .iter()
            .find(|arch| !sections.iter().any(|(known, _)| known == *arch))
            .copied()
        {
            let ranges = self.ranges(arch)?;
            sections.push((arch, ranges));
        }
        let mut writer = Writer::default();
        let mut first = writer.by_number(&other);
        for (arch, ranges) in &sections {
            let section = writer.by_number(ranges);
            first = writer.ask(JEQ, *arch, section, first);
        }
        debug_assert_eq!(first + 1, writer.reversed.len());
        writer.put(Instruction::load(ARCH));
        writer.reversed.reverse();
        Some(writer.reversed)
    }

    /// A word that the program does not name: it stands for all such architectures.
    fn unasked(&self) -> Option<u32> {
        let named: BTreeSet<u32> = self.program.iter().map(|one| one.value).collect();
        (1..=u32::MAX).find(|word| !named.contains(word))
    }

    fn ranges(&mut self, arch: u32) -> Option<Vec<Range>> {
        let mut found: Vec<Range> = Vec::new();
        for first in self.firsts.clone() {
            let rest = self.rest(0, Value::Unset, arch, first)?;
            match found.last() {
                Some(last) if last.rest == rest => {}
                _ => found.push(Range { first, rest }),
            }
        }
        Some(found)
    }

    fn rest(&mut self, mut place: usize, mut accumulator: Value, arch: u32, number: u32) -> Option<Rc<Rest>> {
        loop {
            self.steps += 1;
            let one = *self.program.get(place).filter(|_| self.steps < MAX_STEPS)?;
            place += 1;
            let known = match one.code {
                LOAD => {
                    accumulator = match one.value {
                        NUMBER => Value::Number,
                        ARCH => Value::Arch,
                        other => Value::Field(other, u32::MAX),
                    };
                    continue;
                }
                AND => {
                    let Value::Field(field, mask) = accumulator else {
                        return None;
                    };
                    accumulator = Value::Field(field, mask & one.value);
                    continue;
                }
                JA => {
                    place += usize::try_from(one.value).ok()?;
                    continue;
                }
                RETURN => return Some(Rc::new(Rest::Return(one.value))),
                JEQ | JGT | JGE | JSET => match accumulator {
                    // Ranges do not tell bits apart.
                    Value::Number if one.code != JSET => asks(one.code, number, one.value),
                    Value::Arch if one.code == JEQ => {
                        self.arches.insert(one.value);
                        asks(one.code, arch, one.value)
                    }
                    Value::Field(..) => None,
                    _ => return None,
                },
                _ => return None,
            };
            let (yes, no) = (place + usize::from(one.yes), place + usize::from(one.no));
            match (known, accumulator) {
                (Some(true), _) => place = yes,
                (Some(false), _) => place = no,
                (None, Value::Field(field, mask)) => {
                    let yes = self.rest(yes, accumulator, arch, number)?;
                    let no = self.rest(no, accumulator, arch, number)?;
                    if yes == no {
                        return Some(yes);
                    }
                    return Some(Rc::new(Rest::Ask {
                        field,
                        mask,
                        code: one.code,
                        value: one.value,
                        yes,
                        no,
                    }));
                }
                (None, _) => return None,
            }
        }
    }
}

/// Writes a program from its end: what a jump goes to is there before the jump is. Places are
/// counted from the end.
#[derive(Default)]
struct Writer {
    reversed: Vec<Instruction>,
    /// Where each answer was written last.
    answers: HashMap<u32, usize>,
}

/// How far a question reaches, and one less: both its ways may need a jump of their own.
const REACH: usize = 254;

impl Writer {
    fn put(&mut self, one: Instruction) -> usize {
        self.reversed.push(one);
        self.reversed.len() - 1
    }

    /// Instructions between the next one and a place.
    fn over(&self, place: usize) -> usize {
        self.reversed.len() - place - 1
    }

    fn ask(&mut self, code: u16, value: u32, yes: usize, no: usize) -> usize {
        let (yes, no) = (self.near(yes), self.near(no));
        let over = |place| u8::try_from(self.over(place)).unwrap_or(u8::MAX);
        self.put(Instruction::jump(code, value, over(yes), over(no)))
    }

    fn near(&mut self, place: usize) -> usize {
        match self.over(place) {
            0..=REACH => place,
            over => self.put(Instruction::jump(
                JA,
                u32::try_from(over).unwrap_or(u32::MAX),
                0,
                0,
            )),
        }
    }

    fn rest(&mut self, rest: &Rest) -> usize {
        match rest {
            Rest::Return(verdict) => match self.answers.get(verdict) {
                Some(place) if self.over(*place) <= REACH / 2 => *place,
                _ => {
                    let place = self.put(Instruction::give(*verdict));
                    self.answers.insert(*verdict, place);
                    place
                }
            },
            Rest::Ask {
                field,
                mask,
                code,
                value,
                yes,
                no,
            } => {
                let (yes, no) = (self.rest(yes), self.rest(no));
                self.ask(*code, *value, yes, no);
                if *mask != u32::MAX {
                    self.put(Instruction::jump(AND, *mask, 0, 0));
                }
                self.put(Instruction::load(*field))
            }
        }
    }

    /// Loads the number and looks for its range.
    fn by_number(&mut self, ranges: &[Range]) -> usize {
        let found = self.search(ranges);
        match ranges {
            [_] => found,
            _ => {
                // What is searched first is what was written last.
                self.put(Instruction::load(NUMBER))
            }
        }
    }

    fn search(&mut self, ranges: &[Range]) -> usize {
        let (below, from) = ranges.split_at(ranges.len() / 2);
        match (below, from) {
            ([], [only, ..]) => self.rest(&only.rest),
            (_, [first, ..]) => {
                let (yes, no) = (self.search(from), self.search(below));
                self.ask(JGE, first.first, yes, no)
            }
            (_, []) => self.reversed.len(),
        }
    }
}

#[cfg(test)]
#[path = "tests/seccomp_compact.rs"]
mod tests;
