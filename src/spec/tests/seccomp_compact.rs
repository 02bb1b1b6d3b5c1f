use proptest::prelude::*;

use super::*;
use crate::spec::bpf::run;

const WORDS: [u32; 9] = [0, 1, 2, 5, 9, 0x4000_0000, 0x4000_0005, u32::MAX - 1, u32::MAX];

fn data(arch: u32, number: u32, arg: u32) -> [u8; 64] {
    let mut data = [0; 64];
    data[..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (place, word) in (0_u32..).zip(data[16..].as_chunks_mut::<4>().0) {
        *word = arg.rotate_left(place).to_ne_bytes();
    }
    data
}

/// Forward jumps only, and each way ends in an answer: what the kernel's check lets through.
fn programs() -> impl Strategy<Value = Vec<Instruction>> {
    let word = prop::sample::select(WORDS.to_vec());
    let offset = prop::sample::select(vec![NUMBER, NUMBER, ARCH, 16, 20, 24]);
    let question = prop::sample::select(vec![JEQ, JEQ, JGT, JGE, JSET]);
    let one = prop_oneof![
        2 => offset.prop_map(Instruction::load),
        6 => (question, word.clone(), 0..4_u8, 0..4_u8).prop_map(|(c, w, y, n)| Instruction::jump(c, w, y, n)),
        1 => word.clone().prop_map(|word| Instruction::jump(AND, word, 0, 0)),
        1 => (0..4_u32).prop_map(|over| Instruction::jump(JA, over, 0, 0)),
        2 => (0..4_u32).prop_map(Instruction::give),
    ];
    prop::collection::vec(one, 1..40).prop_map(|mut code| {
        code.insert(0, Instruction::load(NUMBER));
        code.extend((0..4).map(Instruction::give));
        code
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_answers_stay(code in programs()) {
        let made = Maker::new(&code).make().unwrap_or_else(|| code.clone());
        for arch in WORDS {
            for number in WORDS.into_iter().flat_map(|word| [word.wrapping_sub(1), word, word.wrapping_add(1)]) {
                for arg in WORDS {
                    let data = data(arch, number, arg);
                    prop_assert_eq!(run(&code, &data), run(&made, &data), "{:x} {:x} {:x}", arch, number, arg);
                }
            }
        }
    }
}

#[test]
fn ranges_and_far_jumps() {
    // Each second number is allowed: nothing can be put together, and halves are far apart.
    let even =
        (0..400_u32).flat_map(|number| [Instruction::jump(JEQ, 2 * number, 0, 1), Instruction::give(1)]);
    let code: Vec<_> = [Instruction::load(NUMBER)]
        .into_iter()
        .chain(even)
        .chain([Instruction::give(0)])
        .collect();
    let made = Maker::new(&code).make().unwrap();
    for number in 0..900 {
        let data = data(7, number, 0);
        assert_eq!(run(&made, &data), run(&code, &data), "{number}");
    }
    // One range instead of 100 questions.
    let low = (0..100_u32).flat_map(|number| [Instruction::jump(JEQ, number, 0, 1), Instruction::give(1)]);
    let code: Vec<_> = [Instruction::load(NUMBER)]
        .into_iter()
        .chain(low)
        .chain([Instruction::give(0)])
        .collect();
    let expected = [
        Instruction::load(ARCH),
        Instruction::load(NUMBER),
        Instruction::jump(JGE, 100, 1, 0),
        Instruction::give(1),
        Instruction::give(0),
    ];
    assert_eq!(compact(code), expected);
}

#[test]
fn what_is_not_known_stays() {
    // A bit of the number, and an instruction that no seccomp program of ours has.
    for odd in [
        vec![Instruction::load(NUMBER), Instruction::jump(JSET, 1, 0, 1)],
        vec![Instruction::jump(0x87, 0, 0, 0), Instruction::load(NUMBER)],
        vec![Instruction::load(ARCH), Instruction::jump(JGE, 1, 0, 1)],
    ] {
        let answers = (0..40).map(Instruction::give);
        let code: Vec<_> = odd.into_iter().chain(answers).collect();
        assert_eq!(compact(code.clone()), code);
    }
}
