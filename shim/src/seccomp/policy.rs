//! A checked profile: for every architecture the whole range of numbers, cut into segments of one outcome each.
//! Pure; between the OCI profile, which is strings, and `tree`, which only sees numbers.
//! Owns the segments and the argument checks they share.
//! Must never resolve a name that an architecture lacks to anything but "no rule", as every runtime does.

use std::collections::{BTreeMap, HashMap};

use super::SeccompError;
use super::action;
use super::arch::Arch;
use crate::spec::{Seccomp, SeccompArg};

/// A whole filter.
#[derive(Debug)]
pub(super) struct Policy {
    /// By `seccomp_data.arch`, the most frequent first.
    pub(super) tokens: Vec<(u32, Vec<Segment>)>,
    /// What calls of any other architecture get.
    pub(super) bad_arch: u32,
    /// Argument checks, by the number in [`Outcome::Check`].
    pub(super) checks: Vec<Check>,
    pub(super) notifies: bool,
}

/// The numbers from `first` to the next segment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first: u32,
    pub(super) outcome: Outcome,
}

/// What a number alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Outcome {
    Return(u32),
    Check(usize),
}

/// Alternatives tried in order; the first whose conditions all hold decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Check {
    pub(super) alternatives: Vec<Alternative>,
    pub(super) otherwise: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Alternative {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// A test of one argument, in the upper (when the architecture has one) and the lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) test: Test,
    /// The condition holds when the test does not.
    pub(super) negated: bool,
    pub(super) has_upper_half: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Test {
    /// `argument & mask == value`.
    Masked {
        mask: u64,
        value: u64,
    },
    Greater {
        than: u64,
    },
    AtLeast {
        value: u64,
    },
}

/// What the rules say about one number so far.
#[derive(Default)]
struct Calls {
    /// A rule without conditions decides alone, wherever it stands; the first of them counts.
    always: Option<u32>,
    alternatives: Vec<Alternative>,
}

impl Policy {
    pub(super) fn new(profile: &Seccomp, native: Arch) -> Result<Policy, SeccompError> {
        let default = action::parse(&profile.default_action, profile.default_errno_ret)?;
        let actions = profile
            .syscalls
            .iter()
            .map(|rule| match rule.names.is_empty() {
                true => Err(SeccompError::NoNames { action: rule.action.clone() }),
                false => action::parse(&rule.action, rule.errno_ret),
            })
            .collect::<Result<Vec<u32>, _>>()?;
        let notifies = actions.contains(&action::NOTIFY);
        let notifies_write = || {
            let mut rules = profile.syscalls.iter().zip(&actions).filter(|(_, action)| **action == action::NOTIFY);
            rules.any(|(rule, _)| rule.names.iter().any(|name| name == "write"))
        };
        if default == action::NOTIFY || notifies_write() {
            return Err(SeccompError::NotifyDeadlock);
        }
        if notifies && profile.listener_path.is_empty() {
            return Err(SeccompError::NoListener);
        }

        let mut asked = vec![native];
        for name in &profile.architectures {
            asked.extend(Arch::from_profile(name)?);
        }
        let mut shared = Checks::default();
        let mut tokens: Vec<(u32, Vec<Segment>)> = Vec::new();
        for arch in native.family().iter().copied().filter(|arch| asked.contains(arch)) {
            let segments = segments(profile, &actions, default, arch, &mut shared)?;
            match tokens.iter_mut().find(|(token, _)| *token == arch.token()) {
                Some((_, whole)) => replace_from(whole, Arch::X32_BIT, &segments),
                None => tokens.push((arch.token(), segments)),
            }
        }
        if let Some((_, whole)) = tokens.iter_mut().find(|(token, _)| *token == Arch::X86_64.token()) {
            close_x32(whole, asked.contains(&Arch::X32));
        }
        for (_, segments) in &mut tokens {
            segments.dedup_by(|later, earlier| later.outcome == earlier.outcome);
        }
        Ok(Policy { tokens, bad_arch: action::KILL_PROCESS, checks: shared.list, notifies })
    }
}

/// Checks, each once.
#[derive(Default)]
struct Checks {
    list: Vec<Check>,
    known: HashMap<Check, usize>,
}

impl Checks {
    fn outcome(&mut self, alternatives: Vec<Alternative>, otherwise: u32) -> Outcome {
        let mut kept = Check { alternatives: Vec::with_capacity(alternatives.len()), otherwise };
        for mut alternative in alternatives {
            if alternative.conditions.iter().any(|c| c.constant() == Some(false)) {
                continue;
            }
            alternative.conditions.retain(|c| c.constant().is_none());
            if alternative.conditions.is_empty() {
                kept.otherwise = alternative.action;
                break;
            }
            kept.alternatives.push(alternative);
        }
        while kept.alternatives.last().is_some_and(|last| last.action == kept.otherwise) {
            kept.alternatives.pop();
        }
        if kept.alternatives.is_empty() {
            return Outcome::Return(kept.otherwise);
        }
        let number = *self.known.entry(kept).or_insert_with_key(|check| {
            self.list.push(check.clone());
            self.list.len() - 1
        });
        Outcome::Check(number)
    }
}

/// The whole range of numbers for one architecture.
fn segments(
    profile: &Seccomp,
    actions: &[u32],
    default: u32,
    arch: Arch,
    checks: &mut Checks,
) -> Result<Vec<Segment>, SeccompError> {
    let numbers = arch.calls();
    let mut calls: BTreeMap<u32, Calls> = BTreeMap::new();
    let mut highest = None;
    for (rule, action) in profile.syscalls.iter().zip(actions) {
        let ways = conditions(rule.names.first().map_or("", String::as_str), &rule.args, arch)?;
        for number in rule.names.iter().filter_map(|name| numbers.get(name.as_str()).copied()) {
            if number < arch.private_calls() {
                highest = highest.max(Some(number));
            }
            let call = calls.entry(number).or_default();
            // A rule that repeats the default is no rule: it must not hide conditional ones.
            if *action == default {
                continue;
            }
            match ways.is_empty() {
                true => call.always = call.always.or(Some(*action)),
                false => call.alternatives.extend(
                    ways.iter().map(|conditions| Alternative { conditions: conditions.clone(), action: *action }),
                ),
            }
        }
    }

    let newer = Outcome::Return(highest.map_or(default, |_| action::for_unknown_calls(default)));
    let unknown_from = highest.map_or(0, |highest| highest.saturating_add(1));
    let between = |number: u32| if number < unknown_from { Outcome::Return(default) } else { newer };
    let mut segments = vec![Segment { first: 0, outcome: between(0) }];
    let mut push = |first: u32, outcome: Outcome| {
        if segments.last().is_some_and(|last| last.first == first) {
            segments.pop();
        }
        segments.push(Segment { first, outcome });
    };
    let mut tail_done = false;
    for (number, call) in calls {
        if number > unknown_from && !tail_done {
            push(unknown_from, newer);
            tail_done = true;
        }
        let outcome = match call.always {
            Some(action) => Outcome::Return(action),
            None => checks.outcome(call.alternatives, default),
        };
        push(number, outcome);
        if let Some(next) = number.checked_add(1) {
            push(next, between(next));
        }
    }
    if !tail_done {
        push(unknown_from, newer);
    }
    Ok(segments)
}

/// The conditions of one rule as alternatives of conditions that must all hold. Two conditions on one argument cannot be one
/// libseccomp rule, so every runtime takes all conditions of such a rule as alternatives.
fn conditions(syscall: &str, args: &[SeccompArg], arch: Arch) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let all = args.iter().map(|arg| Condition::new(syscall, arg, arch)).collect::<Result<Vec<_>, _>>()?;
    let repeated =
        args.iter().enumerate().any(|(i, arg)| args.iter().skip(i + 1).any(|other| other.index == arg.index));
    Ok(match (all.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, true) => all.into_iter().map(|condition| vec![condition]).collect(),
        (false, false) => vec![all],
    })
}

impl Condition {
    fn new(syscall: &str, arg: &SeccompArg, arch: Arch) -> Result<Condition, SeccompError> {
        if arg.index > 5 {
            return Err(SeccompError::ArgumentIndex { index: arg.index, syscall: syscall.to_owned() });
        }
        let masked = |mask: u64, value: u64| Test::Masked { mask, value };
        let (mut test, negated) = match arg.op.as_str() {
            "SCMP_CMP_EQ" => (masked(u64::MAX, arg.value), false),
            "SCMP_CMP_NE" => (masked(u64::MAX, arg.value), true),
            "SCMP_CMP_MASKED_EQ" => (masked(arg.value, arg.value_two), false),
            "SCMP_CMP_GT" => (Test::Greater { than: arg.value }, false),
            "SCMP_CMP_LE" => (Test::Greater { than: arg.value }, true),
            "SCMP_CMP_GE" => (Test::AtLeast { value: arg.value }, false),
            "SCMP_CMP_LT" => (Test::AtLeast { value: arg.value }, true),
            operator => {
                let (operator, syscall) = (operator.to_owned(), syscall.to_owned());
                return Err(SeccompError::UnknownOperator { operator, index: arg.index, syscall });
            }
        };
        if let (Test::Masked { mask, value }, true) = (&mut test, arch.is_32_bit()) {
            // -1 is written with all 64 bits in profiles; a 32-bit process can only show 32 of them.
            *mask &= 0xffff_ffff;
            if *value >> 32 == 0xffff_ffff {
                *value &= 0xffff_ffff;
            }
        }
        Ok(Condition { index: arg.index, test, negated, has_upper_half: !arch.is_32_bit() })
    }

    /// Whether it holds for every argument, or for none.
    fn constant(&self) -> Option<bool> {
        let most = if self.has_upper_half { u64::MAX } else { u64::from(u32::MAX) };
        let holds = match self.test {
            Test::Masked { mask, value } if value & !mask != 0 => false,
            Test::Masked { mask: 0, .. } | Test::AtLeast { value: 0 } => true,
            Test::Greater { than } if than >= most => false,
            Test::AtLeast { value } if value > most => false,
            Test::Masked { .. } | Test::Greater { .. } | Test::AtLeast { .. } => return None,
        };
        Some(holds != self.negated)
    }
}

/// Puts `upper`'s segments from number `from` on in the place of `whole`'s.
fn replace_from(whole: &mut Vec<Segment>, from: u32, upper: &[Segment]) {
    whole.retain(|segment| segment.first < from);
    let before = upper.iter().rev().find(|segment| segment.first <= from);
    whole.extend(before.map(|segment| Segment { first: from, ..*segment }));
    whole.extend(upper.iter().filter(|segment| segment.first > from));
}

/// Without x32 among the architectures its numbers are another architecture's. The number -1, which a tracer sets to skip a
/// call, stays what it is to x86_64: a call that does not exist.
fn close_x32(whole: &mut Vec<Segment>, has_x32: bool) {
    let none = whole.iter().rev().find(|segment| segment.first < Arch::X32_BIT).copied();
    if !has_x32 {
        let bad = Segment { first: Arch::X32_BIT, outcome: Outcome::Return(action::KILL_PROCESS) };
        replace_from(whole, Arch::X32_BIT, &[bad]);
    }
    if let Some(none) = none {
        replace_from(whole, u32::MAX, &[Segment { first: u32::MAX, ..none }]);
    }
}
