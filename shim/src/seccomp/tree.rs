//! The decision tree: architecture, then the call's number by halves, then, where the rules ask for it, its arguments.
//! Pure; from a checked policy to instructions.
//! Owns nothing beyond one compilation.
//! Must never be longer or deeper than it need be: every container pays for loading it, and each load walks it for every number.

use super::assembler::{
    AND, Assembler, Instruction, JUMP_ANY_BIT, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, LOAD, Target,
};
use super::policy::{Check, Condition, Outcome, Policy, Segment, Test};

const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// How many single numbers one leaf tells apart one after the other, instead of by halves: one instruction each, not two.
const EXCEPTIONS: usize = 4;

pub(super) fn assemble(policy: &Policy) -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    let checks: Vec<Target> = policy.checks.iter().map(|check| lay_check(&mut assembler, check)).collect();
    let mut sections = Vec::with_capacity(policy.tokens.len());
    for (token, segments) in policy.tokens.iter().rev() {
        let leaves = leaves(segments);
        let root = lay_halves(&mut assembler, segments, &leaves, &checks);
        let section = match root {
            Target::Return(_) => root,
            Target::At(_) => assembler.before(LOAD, NUMBER, root),
        };
        sections.push((*token, section));
    }
    let mut dispatch = Target::Return(policy.bad_arch);
    for (token, section) in sections {
        dispatch = assembler.branch(JUMP_EQUAL, token, section, dispatch);
    }
    assembler.before(LOAD, ARCH, dispatch);
    assembler.finish()
}

/// A run of segments decided by comparing with single numbers: everything is `base` but the exceptions.
#[derive(Debug, Clone)]
struct Leaf {
    segments: std::ops::Range<usize>,
    base: Outcome,
}

/// Cuts the segments into the runs that make the shortest program: each exception costs one instruction, and so does each
/// cut. The best cut of every prefix follows from those of shorter ones.
fn leaves(segments: &[Segment]) -> Vec<Leaf> {
    let mut best: Vec<(usize, usize, Outcome)> = vec![(0, 0, Outcome::Return(0))];
    for end in 1..=segments.len() {
        let mut chosen: Option<(usize, usize, Outcome)> = None;
        for start in (end.saturating_sub(2 * EXCEPTIONS + 1)..end).rev() {
            let Some((exceptions, base)) = exceptions(segments, start..end) else { continue };
            let Some((before, ..)) = best.get(start) else { continue };
            let cost = before + exceptions + 1;
            if chosen.is_none_or(|(least, ..)| cost < least) {
                chosen = Some((cost, start, base));
            }
        }
        best.extend(chosen);
    }
    let mut leaves = Vec::new();
    let mut end = segments.len();
    while let Some((_, start, base)) = best.get(end).filter(|_| end > 0) {
        leaves.push(Leaf { segments: *start..end, base: *base });
        end = *start;
    }
    leaves.reverse();
    leaves
}

/// The fewest exceptions of a run, and what the rest of it then is; None when it is not one leaf.
fn exceptions(segments: &[Segment], range: std::ops::Range<usize>) -> Option<(usize, Outcome)> {
    let run = segments.get(range.clone())?;
    let wide = |i: usize| {
        let first = segments.get(i).map_or(0, |segment| u64::from(segment.first));
        segments.get(i + 1).map_or(1 << 32, |next| u64::from(next.first)) - first > 1
    };
    run.iter()
        .map(|segment| segment.outcome)
        .filter_map(|base| {
            let others = || range.clone().zip(run).filter(|(_, segment)| segment.outcome != base);
            let count = others().count();
            (count <= EXCEPTIONS && others().all(|(i, _)| !wide(i))).then_some((count, base))
        })
        .min()
}

fn lay_halves(assembler: &mut Assembler, segments: &[Segment], leaves: &[Leaf], checks: &[Target]) -> Target {
    let (left, right) = leaves.split_at(leaves.len() / 2);
    match (left, right) {
        ([], [leaf]) => lay_leaf(assembler, segments, leaf, checks),
        (_, [first, ..]) => {
            let at = segments.get(first.segments.start).map_or(0, |segment| segment.first);
            let upper = lay_halves(assembler, segments, right, checks);
            let lower = lay_halves(assembler, segments, left, checks);
            assembler.branch(JUMP_AT_LEAST, at, upper, lower)
        }
        (_, []) => Target::Return(super::action::KILL_PROCESS),
    }
}

fn lay_leaf(assembler: &mut Assembler, segments: &[Segment], leaf: &Leaf, checks: &[Target]) -> Target {
    let mut target = of(leaf.base, checks);
    for segment in segments.get(leaf.segments.clone()).unwrap_or_default().iter().rev() {
        if segment.outcome != leaf.base {
            target = assembler.branch(JUMP_EQUAL, segment.first, of(segment.outcome, checks), target);
        }
    }
    target
}

fn of(outcome: Outcome, checks: &[Target]) -> Target {
    match outcome {
        Outcome::Return(value) => Target::Return(value),
        Outcome::Check(number) => checks.get(number).copied().unwrap_or(Target::Return(super::action::KILL_PROCESS)),
    }
}

/// A point to jump to, and the point just behind its load for whoever has that word in the accumulator already.
#[derive(Clone, Copy)]
struct Entry {
    start: Target,
    loaded: Option<(u32, Target)>,
}

impl Entry {
    fn holding(&self, offset: u32) -> Target {
        match self.loaded {
            Some((loaded, behind)) if loaded == offset => behind,
            _ => self.start,
        }
    }
}

fn lay_check(assembler: &mut Assembler, check: &Check) -> Target {
    let mut next = Entry { start: Target::Return(check.otherwise), loaded: None };
    for alternative in check.alternatives.iter().rev() {
        let mut entry = Entry { start: Target::Return(alternative.action), loaded: None };
        for condition in alternative.conditions.iter().rev() {
            entry = lay_condition(assembler, condition, entry, next);
        }
        next = entry;
    }
    next.start
}

fn lay_condition(assembler: &mut Assembler, condition: &Condition, holds: Entry, fails: Entry) -> Entry {
    let (yes, no) = if condition.negated { (fails, holds) } else { (holds, fails) };
    let lower = 16 + 8 * condition.index;
    let upper = lower + 4;
    match condition.test {
        Test::Masked { mask, value } => {
            let ((mask_low, mask_high), (low, high)) = (halves(mask), halves(value));
            // The upper half comes last: it is nearly always right, and a next alternative starts with the lower one.
            let rest = match mask_high {
                0 => yes,
                _ => lay_word(assembler, upper, mask_high, high, (yes, no)),
            };
            match mask_low {
                0 => rest,
                _ => lay_word(assembler, lower, mask_low, low, (rest, no)),
            }
        }
        Test::Greater { than } => lay_order(assembler, condition, JUMP_GREATER, than, (yes, no)),
        Test::AtLeast { value } => lay_order(assembler, condition, JUMP_AT_LEAST, value, (yes, no)),
    }
}

/// `word & mask == value`.
fn lay_word(assembler: &mut Assembler, offset: u32, mask: u32, value: u32, (yes, no): (Entry, Entry)) -> Entry {
    let behind = match (mask, value) {
        (u32::MAX, _) => assembler.branch(JUMP_EQUAL, value, yes.holding(offset), no.holding(offset)),
        (_, 0) => assembler.branch(JUMP_ANY_BIT, mask, no.holding(offset), yes.holding(offset)),
        _ => {
            let compare = assembler.branch(JUMP_EQUAL, value, yes.start, no.start);
            assembler.before(AND, mask, compare)
        }
    };
    Entry { start: assembler.before(LOAD, offset, behind), loaded: Some((offset, behind)) }
}

/// A comparison of the whole argument by `code`, upper half first.
fn lay_order(
    assembler: &mut Assembler,
    condition: &Condition,
    code: u16,
    value: u64,
    (yes, no): (Entry, Entry),
) -> Entry {
    let (lower, upper) = (16 + 8 * condition.index, 20 + 8 * condition.index);
    let (low, high) = halves(value);
    let behind = assembler.branch(code, low, yes.holding(lower), no.holding(lower));
    let start = assembler.before(LOAD, lower, behind);
    if !condition.has_upper_half {
        return Entry { start, loaded: Some((lower, behind)) };
    }
    let equal = assembler.branch(JUMP_EQUAL, high, start, no.holding(upper));
    let behind = assembler.branch(JUMP_GREATER, high, yes.holding(upper), equal);
    Entry { start: assembler.before(LOAD, upper, behind), loaded: Some((upper, behind)) }
}

/// Lower, upper.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
