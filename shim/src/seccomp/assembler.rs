//! Classic BPF instructions laid down from the end of the program towards its start, so that every jump's target is known.
//! Pure; driven by `tree`.
//! Owns the instructions so far and the nearest copy of each return.
//! Must never emit an instruction that the kernel's constant-allow analysis does not follow before the number has decided.

use std::collections::HashMap;

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jt: u8,
    pub(super) jf: u8,
    pub(super) k: u32,
}

impl Instruction {
    pub(super) fn to_bytes(self) -> [u8; 8] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_AT_LEAST: u16 = 0x35;
pub(super) const JUMP_ANY_BIT: u16 = 0x45;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;

/// Where a branch may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Return(u32),
    /// An instruction, counted from the program's end.
    At(usize),
}

#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// The last instruction of the program is the first here.
    reversed: Vec<Instruction>,
    returns: HashMap<u32, usize>,
}

impl Assembler {
    /// The program from its first instruction, which is the one laid down last.
    pub(super) fn finish(self) -> Vec<Instruction> {
        self.reversed.into_iter().rev().collect()
    }

    /// A conditional jump in front of everything so far.
    pub(super) fn branch(&mut self, code: u16, k: u32, mut then: Target, mut otherwise: Target) -> Target {
        if then == otherwise {
            return then;
        }
        loop {
            match (self.distance(then), self.distance(otherwise)) {
                (Some(jt), Some(jf)) => return self.push(Instruction { code, jt, jf, k }),
                (None, _) => then = self.bring_near(then),
                (Some(_), None) => otherwise = self.bring_near(otherwise),
            }
        }
    }

    /// An instruction that falls through to `next`.
    pub(super) fn before(&mut self, code: u16, k: u32, next: Target) -> Target {
        if next != Target::At(self.reversed.len().wrapping_sub(1)) {
            self.bring_near(next);
        }
        self.push(Instruction { code, jt: 0, jf: 0, k })
    }

    /// From the instruction to be laid down next; None: too far for a conditional jump, or not laid down yet.
    fn distance(&self, target: Target) -> Option<u8> {
        let at = match target {
            Target::Return(value) => *self.returns.get(&value)?,
            Target::At(at) => at,
        };
        u8::try_from(self.reversed.len() - at - 1).ok()
    }

    /// A copy of a return, or a long jump, right here.
    fn bring_near(&mut self, target: Target) -> Target {
        match target {
            Target::Return(k) => {
                let Target::At(at) = self.push(Instruction { code: RETURN, jt: 0, jf: 0, k }) else { return target };
                self.returns.insert(k, at);
                target
            }
            Target::At(at) => {
                let distance = u32::try_from(self.reversed.len() - at - 1).unwrap_or(u32::MAX);
                self.push(Instruction { code: JUMP, jt: 0, jf: 0, k: distance })
            }
        }
    }

    fn push(&mut self, instruction: Instruction) -> Target {
        self.reversed.push(instruction);
        Target::At(self.reversed.len() - 1)
    }
}
