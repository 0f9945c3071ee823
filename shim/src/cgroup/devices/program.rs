//! Device rules as a BPF program for cgroup v2: the kernel runs it for each open and mknod of a device node.
//! Pure; launcher and live update.
//! Owns nothing.
//! Must never leave an instruction that cannot be reached: the verifier refuses the whole program.

use super::{Kind, Rule};

/// `struct bpf_insn`: opcode, registers (destination low), jump offset, immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn word(self) -> u64 {
        let [o0, o1] = self.offset.to_le_bytes();
        let [i0, i1, i2, i3] = self.immediate.to_le_bytes();
        let bytes = [self.code, self.registers, o0, o1, i0, i1, i2, i3];
        // The kernel reads the struct, not a number.
        u64::from_ne_bytes(bytes)
    }
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_ANY_BIT: u8 = 0x45;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
/// The accesses that no rule has granted yet.
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Rules from the last to the first, each access bit decided by the first rule that speaks of it; what is left over at the
/// end is denied.
pub(super) fn assemble(rules: &[Rule]) -> Vec<u64> {
    let mut code = Vec::with_capacity(16 + 6 * rules.len());
    let one = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    code.push(one(LOAD_WORD, TYPE | CONTEXT << 4, 0, 0));
    code.push(one(MOVE_REGISTER, ACCESS | TYPE << 4, 0, 0));
    code.push(one(SHIFT_RIGHT, ACCESS, 0, 16));
    code.push(one(AND, TYPE, 0, 0xffff));
    code.push(one(LOAD_WORD, MAJOR | CONTEXT << 4, 4, 0));
    code.push(one(LOAD_WORD, MINOR | CONTEXT << 4, 8, 0));

    let mut exits = [Vec::new(), Vec::new()];
    let [denying, allowing] = &mut exits;
    let mut at_end = false;
    for rule in rules.iter().rev() {
        if rule.is_everything() {
            at_end = rule.allow;
            break;
        }
        let kind = rule.kind.map(|kind| if kind == Kind::Block { 1 } else { 2 });
        let tests = [(TYPE, kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        let tests: Vec<(u8, u32)> =
            tests.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
        let mut past = tests.len() + if rule.allow { 2 } else { 1 };
        for (register, value) in tests {
            past -= 1;
            // Both fit: a few instructions, and numbers of at most 20 bits.
            let (offset, value) = (i16::try_from(past).unwrap_or(0), i32::try_from(value).unwrap_or(-1));
            code.push(one(JUMP_NOT_EQUAL, register, offset, value));
        }
        if rule.allow {
            code.push(one(AND, ACCESS, 0, !i32::from(rule.access)));
            allowing.push(code.len());
            code.push(one(JUMP_EQUAL, ACCESS, 0, 0));
        } else {
            denying.push(code.len());
            code.push(one(JUMP_ANY_BIT, ACCESS, 0, i32::from(rule.access)));
        }
    }

    for value in [at_end, !at_end] {
        let jumps = if value { &exits[1] } else { &exits[0] };
        if value != at_end && jumps.is_empty() {
            continue;
        }
        let here = code.len();
        for at in jumps {
            if let Some(jump) = code.get_mut(*at) {
                // A program long enough to overflow this is longer than any list of devices; the verifier would refuse it.
                jump.offset = i16::try_from(here - at - 1).unwrap_or(-1);
            }
        }
        code.push(one(MOVE, RESULT, 0, i32::from(value)));
        code.push(one(EXIT, 0, 0, 0));
    }
    code.into_iter().map(Instruction::word).collect()
}
