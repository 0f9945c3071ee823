//! Device rules against a plain reading of them, v2's by an interpreter of the program; runs anywhere.
use proptest::prelude::*;

use super::lines::State;
use super::{ALL, Kind, MKNOD, READ, Rule, WRITE, effective, program};
use crate::spec::DeviceRule;

fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
    let number = |n: i64| (n >= 0).then_some(n);
    DeviceRule { allow, kind: kind.into(), major: number(major), minor: number(minor), access: access.into() }
}

/// What a container without special devices gets.
fn usual() -> Vec<DeviceRule> {
    vec![
        rule(false, "", -1, -1, "rwm"),
        rule(true, "c", -1, -1, "m"),
        rule(true, "b", -1, -1, "m"),
        rule(true, "c", 1, 3, "rwm"),
        rule(true, "c", 1, 9, "rwm"),
        rule(true, "c", 136, -1, "rwm"),
    ]
}

/// The instructions that `program` uses, as the kernel runs them.
fn run(words: &[u64], kind: u32, access: u8, major: u32, minor: u32) -> bool {
    let context = [u32::from(access) << 16 | kind, major, minor];
    let mut registers = [0u64; 11];
    let mut at = 0usize;
    let mut reached = vec![false; words.len()];
    loop {
        reached[at] = true;
        let [code, both, o0, o1, i0, i1, i2, i3] = words[at].to_ne_bytes();
        let (dst, src) = (usize::from(both & 15), usize::from(both >> 4));
        let offset = i16::from_le_bytes([o0, o1]);
        let immediate = i64::from(i32::from_le_bytes([i0, i1, i2, i3])).cast_unsigned();
        at += 1;
        let mut jump = |holds: bool| {
            if holds {
                at += usize::try_from(offset).unwrap();
            }
        };
        match code {
            0x61 => registers[dst] = u64::from(context[usize::try_from(offset).unwrap() / 4]),
            0xb7 => registers[dst] = immediate,
            0xbf => registers[dst] = registers[src],
            0x57 => registers[dst] &= immediate,
            0x77 => registers[dst] >>= immediate,
            0x15 => jump(registers[dst] == immediate),
            0x55 => jump(registers[dst] != immediate),
            0x45 => jump(registers[dst] & immediate != 0),
            0x95 => return registers[0] == 1,
            other => panic!("opcode {other:#x}"),
        }
    }
}

/// Each access by itself: the last rule that speaks of it decides.
fn read(rules: &[Rule], kind: Kind, access: u8, major: u32, minor: u32) -> bool {
    [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        let speaks = |rule: &&Rule| {
            rule.access & bit != 0
                && rule.kind.is_none_or(|k| k == kind)
                && rule.major.is_none_or(|m| m == major)
                && rule.minor.is_none_or(|m| m == minor)
        };
        rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
    })
}

/// The kernel's v1 rule: with a default of deny one exception has to cover the access, with allow none may touch it.
fn read_v1(state: &State, kind: Kind, access: u8, major: u32, minor: u32) -> bool {
    let mut met = state
        .exceptions
        .iter()
        .filter(|((k, ma, mi), _)| *k == kind && ma.is_none_or(|m| m == major) && mi.is_none_or(|m| m == minor));
    match state.allows {
        false => met.any(|(_, held)| access & !held == 0),
        true => met.all(|(_, held)| access & held == 0),
    }
}

fn rules() -> impl Strategy<Value = Vec<DeviceRule>> {
    let number = || prop::sample::select(vec![-1i64, -1, 1, 2, 3]);
    let access = prop::sample::select(vec!["", "r", "w", "m", "rw", "rm", "wm", "rwm"]);
    let kind = prop::sample::select(vec!["", "a", "b", "c"]);
    let one = (any::<bool>(), kind, number(), number(), access);
    prop::collection::vec(
        one.prop_map(|(allow, kind, major, minor, access)| rule(allow, kind, major, minor, access)),
        1..10,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn the_program_decides_as_the_rules_read(given in rules()) {
        let all: Vec<Rule> = given.iter().map(|rule| Rule::new(rule).unwrap()).collect();
        let words = program::assemble(&effective(&given).unwrap());
        for (number, kind) in [(1, Kind::Block), (2, Kind::Char)] {
            for access in 1..=ALL {
                for (major, minor) in [(1, 1), (1, 2), (2, 3), (3, 1), (4, 4)] {
                    prop_assert_eq!(
                        run(&words, number, access, major, minor),
                        read(&all, kind, access, major, minor),
                        "{:?} {} {}:{}", kind, access, major, minor
                    );
                }
            }
        }
    }

    #[test]
    fn v1_lines_never_allow_more_than_the_rules(given in rules()) {
        let rules = effective(&given).unwrap();
        let Ok(state) = State::new(&rules) else { return Ok(()) };
        for kind in [Kind::Block, Kind::Char] {
            for access in [MKNOD, READ, WRITE] {
                for (major, minor) in [(1, 1), (1, 2), (2, 3), (3, 1), (4, 4)] {
                    prop_assert_eq!(
                        read_v1(&state, kind, access, major, minor),
                        read(&rules, kind, access, major, minor),
                        "{:?} {} {}:{}", kind, access, major, minor
                    );
                }
            }
        }
    }
}

#[test]
fn every_instruction_can_be_reached() {
    // As the verifier sees it: follow both ways of every jump.
    for given in [
        usual(),
        vec![rule(true, "a", -1, -1, "rwm")],
        vec![rule(false, "a", -1, -1, "")],
        vec![rule(true, "c", 1, 3, "r")],
    ] {
        let words = program::assemble(&effective(&given).unwrap());
        let mut reached = vec![false; words.len()];
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let [code, _, o0, o1, ..] = words[at].to_ne_bytes();
            if code != 0x95 {
                open.push(at + 1);
            }
            if [0x15, 0x55, 0x45].contains(&code) {
                open.push(at + 1 + usize::try_from(i16::from_le_bytes([o0, o1])).unwrap());
            }
        }
        assert!(reached.iter().all(|reached| *reached), "{given:?}");
    }
}

#[test]
fn the_usual_rules_open_null_and_refuse_disks() {
    let words = program::assemble(&effective(&usual()).unwrap());
    assert!(run(&words, 2, READ | WRITE, 1, 3));
    assert!(run(&words, 2, READ | WRITE, 136, 7));
    assert!(run(&words, 1, MKNOD, 8, 0));
    assert!(!run(&words, 1, READ, 8, 0));
    assert!(!run(&words, 2, READ, 1, 1));
    assert_eq!(words.len(), 6 + 2 * 5 + 4 + 2 * 3 + 4, "{words:x?}");
}

#[test]
fn accesses_given_apart_add_up() {
    let given = [rule(false, "", -1, -1, ""), rule(true, "c", 1, 3, "r"), rule(true, "c", 1, 3, "w")];
    let rules = effective(&given).unwrap();
    assert!(run(&program::assemble(&rules), 2, READ | WRITE, 1, 3));
    let state = State::new(&rules).unwrap();
    assert!(read_v1(&state, Kind::Char, READ | WRITE, 1, 3));
}

#[test]
fn v1_refuses_a_hole_in_a_wider_rule() {
    let given = [rule(false, "", -1, -1, ""), rule(true, "c", -1, -1, "rw"), rule(false, "c", 1, 1, "w")];
    let error = State::new(&effective(&given).unwrap()).unwrap_err().to_string();
    assert!(error.contains("deny c 1:1 w") && error.contains("cannot take back"), "{error}");
}

#[test]
fn malformed_rules_are_refused() {
    for (given, expected) in [
        (rule(true, "p", 1, 1, "r"), "its type"),
        (rule(true, "c", 1, 1, "rx"), "its access"),
        (rule(true, "c", 4096, 1, "r"), "out of range"),
        (rule(true, "c", 1, 1 << 20, "r"), "out of range"),
        (DeviceRule { major: Some(-2), ..rule(true, "c", 1, 1, "r") }, "out of range"),
    ] {
        let error = Rule::new(&given).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
