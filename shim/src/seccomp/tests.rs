//! The compiler against a plain reading of the profile, by an interpreter of classic BPF; runs anywhere, needs nothing.
use std::collections::HashMap;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::arch::Arch;
use super::default::profile_for;
use super::{MAX_INSTRUCTIONS, Program, SeccompError, cache_key, compile_for, default_profile};
use crate::spec::{Capabilities, Seccomp, SeccompArg, SeccompRule};

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const EAFNOSUPPORT: u32 = 0x0005_0061;

static CALLS: LazyLock<HashMap<Arch, HashMap<&'static str, u32>>> = LazyLock::new(|| {
    [Arch::X86_64, Arch::X32, Arch::I386, Arch::Aarch64, Arch::Arm]
        .into_iter()
        .map(|arch| (arch, arch.calls()))
        .collect()
});

fn number(arch: Arch, name: &str) -> u32 {
    CALLS[&arch][name]
}

#[derive(Debug, Clone)]
struct Call {
    token: u32,
    number: u32,
    args: [u64; 6],
}

/// What the kernel's interpreter does with a program of loads, masks, jumps and returns. The number of steps comes back too.
fn run(program: &Program, call: &Call) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend(call.number.to_le_bytes());
    data.extend(call.token.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    call.args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let code: Vec<&[u8]> = program.as_bytes().chunks_exact(8).collect();
    let (mut at, mut accumulator, mut steps) = (0usize, 0u32, 0);
    loop {
        let [c0, c1, jt, jf, k @ ..] = code[at] else { unreachable!() };
        let k = u32::from_le_bytes(k.try_into().unwrap());
        at += 1;
        steps += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { *jt } else { *jf });
        match u16::from_le_bytes([*c0, *c1]) {
            0x20 => {
                let offset = k as usize;
                assert_eq!(offset % 4, 0);
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x45 => jump(accumulator & k != 0),
            0x06 => return (k, steps),
            other => panic!("opcode {other:#x}"),
        }
    }
}

/// The meaning of a profile, read rule by rule, with nothing shared with the compiler but the tables of numbers.
fn read(profile: &Seccomp, native: Arch, call: &Call) -> u32 {
    let asked = |arch: Arch| arch == native || profile.architectures.iter().any(|name| name == arch.profile_name());
    let arch = match (native, call.token) {
        (Arch::X86_64, 0xc000_003e) if call.number >= Arch::X32_BIT && call.number != u32::MAX => Arch::X32,
        (Arch::X86_64, 0xc000_003e) => Arch::X86_64,
        (Arch::X86_64, 0x4000_0003) => Arch::I386,
        (Arch::Aarch64, 0xc000_00b7) => Arch::Aarch64,
        (Arch::Aarch64, 0x4000_0028) => Arch::Arm,
        _ => return KILL_PROCESS,
    };
    if !asked(arch) {
        return KILL_PROCESS;
    }
    let value = |action: &str, errno: Option<u32>| match action {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | errno.unwrap_or(1),
        "SCMP_ACT_ERRNO" => 0x0005_0000 | errno.unwrap_or(1),
        other => panic!("{other}"),
    };
    let default = value(&profile.default_action, profile.default_errno_ret);
    let named =
        |rule: &SeccompRule| rule.names.iter().any(|name| CALLS[&arch].get(name.as_str()) == Some(&call.number));
    let mut rules: Vec<(u32, &SeccompRule)> = profile
        .syscalls
        .iter()
        .filter(|rule| named(rule))
        .map(|rule| (value(&rule.action, rule.errno_ret), rule))
        .filter(|(value, _)| *value != default)
        .collect();
    if rules.is_empty() {
        let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
        let highest =
            names.filter_map(|n| CALLS[&arch].get(n.as_str())).filter(|n| **n < 0xf_0000 || arch != Arch::Arm).max();
        let milder = matches!(profile.default_action.as_str(), "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE");
        let listed = profile.syscalls.iter().any(named);
        return match highest {
            Some(highest) if call.number > *highest && !milder && !listed => ENOSYS,
            _ => default,
        };
    }
    rules.sort_by_key(|(_, rule)| !rule.args.is_empty());
    let holds = |arg: &SeccompArg| {
        let (given, narrow) = (call.args[arg.index as usize], matches!(arch, Arch::I386 | Arch::Arm));
        let shorten = |value: u64| if narrow && value >> 32 == 0xffff_ffff { value & 0xffff_ffff } else { value };
        match arg.op.as_str() {
            "SCMP_CMP_EQ" => given == shorten(arg.value),
            "SCMP_CMP_NE" => given != shorten(arg.value),
            "SCMP_CMP_LT" => given < arg.value,
            "SCMP_CMP_LE" => given <= arg.value,
            "SCMP_CMP_GT" => given > arg.value,
            "SCMP_CMP_GE" => given >= arg.value,
            "SCMP_CMP_MASKED_EQ" => given & arg.value == shorten(arg.value_two),
            other => panic!("{other}"),
        }
    };
    for (value, rule) in rules {
        let repeated = (0..6).any(|i| rule.args.iter().filter(|arg| arg.index == i).count() > 1);
        let matches = match (rule.args.is_empty(), repeated) {
            (true, _) => true,
            (false, true) => rule.args.iter().any(holds),
            (false, false) => rule.args.iter().all(holds),
        };
        if matches {
            return value;
        }
    }
    default
}

fn rule(names: &[&str], action: &str, args: &[(u32, &str, u64, u64)]) -> SeccompRule {
    SeccompRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: action.to_owned(),
        errno_ret: None,
        args: args
            .iter()
            .map(|(index, op, value, value_two)| SeccompArg {
                index: *index,
                value: *value,
                value_two: *value_two,
                op: format!("SCMP_CMP_{op}"),
            })
            .collect(),
    }
}

fn profile(default: &str, rules: Vec<SeccompRule>) -> Seccomp {
    Seccomp { default_action: default.to_owned(), syscalls: rules, ..Seccomp::default() }
}

fn call(arch: Arch, name: &str, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { token: arch.token(), number: number(arch, name), args: all }
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let pool: Vec<&'static str> = {
        let mut names: Vec<&str> = CALLS.values().flat_map(|calls| calls.keys().copied()).collect();
        names.sort_unstable();
        names.dedup();
        names.extend(["no_such_call", "socket", "socket", "clone", "clone", "read"]);
        names
    };
    prop::collection::vec(prop::sample::select(pool).prop_map(str::to_owned), 1..40)
}

fn action() -> impl Strategy<Value = (String, Option<u32>)> {
    prop_oneof![
        4 => Just(("SCMP_ACT_ALLOW".to_owned(), None)),
        4 => (prop::option::of(0u32..4096)).prop_map(|errno| ("SCMP_ACT_ERRNO".to_owned(), errno)),
        1 => (prop::option::of(0u32..4096)).prop_map(|errno| ("SCMP_ACT_TRACE".to_owned(), errno)),
        1 => prop::sample::select(vec!["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "LOG"])
            .prop_map(|name| (format!("SCMP_ACT_{name}"), None)),
    ]
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..4,
        1 => prop::sample::select(vec![0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX, u64::MAX - 1, 1 << 63, 0x7e02_0000, 38]),
        1 => any::<u64>(),
        1 => any::<u32>().prop_map(u64::from),
    ]
}

fn arg() -> impl Strategy<Value = SeccompArg> {
    let ops = prop::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    let masked = prop_oneof![Just(0xffff_ffffu64), Just(0), Just(3), word()];
    (0u32..4, ops, word(), masked).prop_map(|(index, op, value, mask)| match op {
        "MASKED_EQ" => SeccompArg { index, value: mask, value_two: value, op: format!("SCMP_CMP_{op}") },
        _ => SeccompArg { index, value, value_two: 0, op: format!("SCMP_CMP_{op}") },
    })
}

fn profiles() -> impl Strategy<Value = Seccomp> {
    let args = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(arg(), 1..4)];
    let rules = (names(), action(), args).prop_map(|(names, (action, errno_ret), args)| SeccompRule {
        names,
        action,
        errno_ret,
        args,
    });
    let archs = prop::sample::subsequence(
        vec!["X86_64", "X32", "X86", "AARCH64", "ARM", "S390X"]
            .into_iter()
            .map(|a| format!("SCMP_ARCH_{a}"))
            .collect::<Vec<_>>(),
        0..=6,
    );
    (action(), archs, prop::collection::vec(rules, 0..12)).prop_map(
        |((default_action, default_errno_ret), architectures, syscalls)| Seccomp {
            default_action,
            default_errno_ret,
            architectures,
            syscalls,
            ..Seccomp::default()
        },
    )
}

fn numbers_of_interest(profile: &Seccomp, arch: Arch) -> Vec<u32> {
    let named = profile.syscalls.iter().flat_map(|rule| &rule.names).filter_map(|name| CALLS[&arch].get(name.as_str()));
    let mut numbers: Vec<u32> = named.flat_map(|n| [n.wrapping_sub(1), *n, n + 1]).collect();
    numbers.extend([
        0,
        1,
        469,
        470,
        1000,
        0xf_0000,
        0xf_0005,
        0x3fff_ffff,
        0x4000_0000,
        0x4000_0220,
        0x7fff_ffff,
        u32::MAX,
    ]);
    numbers.push(u32::MAX - 1);
    numbers
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn a_program_decides_as_its_profile_reads(
        profile in profiles(),
        native in prop::sample::select(vec![Arch::X86_64, Arch::Aarch64]),
        args in prop::collection::vec(prop::array::uniform6(word()), 12),
    ) {
        let program = compile_for(&profile, native).unwrap();
        for arch in [Arch::X86_64, Arch::X32, Arch::I386, Arch::Aarch64, Arch::Arm] {
            for (i, number) in numbers_of_interest(&profile, arch).into_iter().enumerate() {
                let mut args = args[i % args.len()];
                if arch.token() & 0x8000_0000 == 0 {
                    args = args.map(|arg| arg & 0xffff_ffff);
                }
                let call = Call { token: arch.token(), number, args };
                prop_assert_eq!(run(&program, &call).0, read(&profile, native, &call), "{:x?}", call);
            }
        }
        for token in [0, 0x8000_0016, u32::MAX] {
            prop_assert_eq!(run(&program, &Call { token, number: 0, args: [0; 6] }).0, KILL_PROCESS);
        }
    }

    #[test]
    fn every_operator_decides_as_written(arg in arg(), given in prop::array::uniform6(word()), narrow: bool) {
        let arch = if narrow { Arch::I386 } else { Arch::X86_64 };
        let mut profile = profile("SCMP_ACT_ERRNO", vec![rule(&["prctl"], "SCMP_ACT_ALLOW", &[])]);
        profile.architectures = vec!["SCMP_ARCH_X86".to_owned()];
        profile.syscalls[0].args = vec![arg.clone()];
        let program = compile_for(&profile, Arch::X86_64).unwrap();
        for near in [given[0], arg.value, arg.value.wrapping_sub(1), arg.value.wrapping_add(1), arg.value_two] {
            let mut args = given;
            args[arg.index as usize] = near;
            let args = args.map(|value| if narrow { value & 0xffff_ffff } else { value });
            let call = Call { token: arch.token(), number: number(arch, "prctl"), args };
            prop_assert_eq!(run(&program, &call).0, read(&profile, Arch::X86_64, &call), "{:x?}", call);
        }
    }
}

#[test]
fn the_default_profile_decides_as_it_reads_for_every_number() {
    for (native, held) in [(Arch::X86_64, 0), (Arch::X86_64, u32::MAX >> 18), (Arch::Aarch64, 0)] {
        let profile = profile_for(native, held);
        let program = compile_for(&profile, native).unwrap();
        for arch in native.family() {
            let base = if *arch == Arch::X32 { Arch::X32_BIT } else { 0 };
            let by_argument =
                ["socket", "socketcall", "clone", "clone3", "personality"].map(|name| CALLS[arch].get(name).copied());
            let values = [0, 38, 40, 8, 0x1_0000_0026, 0x1_0000_0028, 0x1000_0000, 0xffff_ffff];
            for number in (base..base + 600).chain([0xf_0005, u32::MAX]) {
                for first in &values[..if by_argument.contains(&Some(number)) { values.len() } else { 1 }] {
                    let mut call = Call { token: arch.token(), number, args: [*first, 0, 0, 0, 0, 0] };
                    if call.token & 0x8000_0000 == 0 {
                        call.args[0] &= 0xffff_ffff;
                    }
                    assert_eq!(run(&program, &call).0, read(&profile, native, &call), "{call:x?}");
                }
            }
        }
    }
}

#[test]
fn the_default_profile_is_short_and_shallow() {
    for (native, longest) in [(Arch::X86_64, 420), (Arch::Aarch64, 330)] {
        let program = compile_for(&profile_for(native, 0), native).unwrap();
        let deepest =
            (0..500).map(|number| run(&program, &Call { token: native.token(), number, args: [0; 6] }).1).max();
        println!("{native:?}: {} instructions, at most {deepest:?} steps", program.instructions());
        assert!(program.instructions() <= longest, "{}", program.instructions());
        assert!(deepest <= Some(20), "{deepest:?}");
    }
}

#[test]
fn the_default_profile_refuses_the_attack_surface() {
    let program = compile_for(&default_profile(&Capabilities::default()), Arch::X86_64).unwrap();
    let gives = |arch: Arch, name: &str, args: &[u64]| run(&program, &call(arch, name, args)).0;
    for arch in [Arch::X86_64, Arch::X32, Arch::I386] {
        for family in [38, 40] {
            assert_eq!(gives(arch, "socket", &[family, 5, 0]), EAFNOSUPPORT, "{arch:?} {family}");
        }
        for family in [1, 2, 10, 16, 17, 39, 44] {
            assert_eq!(gives(arch, "socket", &[family, 1, 0]), ALLOW, "{arch:?} {family}");
        }
        for name in [
            "add_key",
            "request_key",
            "keyctl",
            "bpf",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "perf_event_open",
            "unshare",
            "setns",
            "mount",
            "umount2",
            "fsopen",
            "fsconfig",
            "open_tree",
            "move_mount",
            "pivot_root",
            "kexec_load",
            "init_module",
            "finit_module",
            "delete_module",
            "open_by_handle_at",
            "reboot",
            "swapon",
            "quotactl",
            "syslog",
            "acct",
            "settimeofday",
            "chroot",
            "iopl",
            "ioperm",
            "kcmp",
            "mbind",
            "lookup_dcookie",
            "vhangup",
        ] {
            assert_eq!(gives(arch, name, &[]), EPERM, "{arch:?} {name}");
        }
        for namespace in [0x1000_0000, 0x0002_0000, 0x4000_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x2000_0000] {
            assert_eq!(gives(arch, "clone", &[namespace | 17]), EPERM, "{arch:?} {namespace:#x}");
        }
        assert_eq!(gives(arch, "clone", &[0x003d_0f00]), ALLOW);
        assert_eq!(gives(arch, "clone3", &[]), ENOSYS);
        assert_eq!(gives(arch, "personality", &[0xffff_ffff]), ALLOW);
        assert_eq!(gives(arch, "personality", &[0x0040_0000]), EPERM);
        let unknown = Call { token: arch.token(), number: number(arch, "read") + 2000, args: [0; 6] };
        assert_eq!(run(&program, &unknown).0, ENOSYS, "newer than the profile");
    }
    assert_eq!(gives(Arch::X86_64, "socket", &[0x1_0000_0026, 5, 0]), EAFNOSUPPORT, "the kernel drops the upper half");
    assert_eq!(gives(Arch::I386, "socketcall", &[1]), ENOSYS);
    assert_eq!(run(&program, &call(Arch::Aarch64, "read", &[])).0, KILL_PROCESS);
}

#[test]
fn the_default_profile_widens_with_the_capability_only() {
    let with = |names: &[&str]| {
        let bounding = names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capabilities { bounding, ..Capabilities::default() };
        compile_for(&default_profile(&capabilities), Arch::X86_64).unwrap()
    };
    let gives = |program: &Program, name: &str, args: &[u64]| run(program, &call(Arch::X86_64, name, args)).0;
    let admin = with(&["CAP_SYS_ADMIN"]);
    for name in ["clone3", "unshare", "mount", "setns", "bpf", "fsopen"] {
        assert_eq!(gives(&admin, name, &[]), ALLOW, "{name}");
    }
    assert_eq!(gives(&admin, "clone", &[0x1000_0000]), ALLOW);
    assert_eq!(gives(&admin, "socket", &[38]), EAFNOSUPPORT);
    assert_eq!(gives(&admin, "keyctl", &[]), EPERM);
    for (capability, name) in
        [("CAP_SYS_CHROOT", "chroot"), ("CAP_SYS_TIME", "settimeofday"), ("CAP_BPF", "bpf"), ("CAP_SYSLOG", "syslog")]
    {
        assert_eq!(gives(&with(&[capability]), name, &[]), ALLOW, "{name}");
        assert_eq!(gives(&with(&["CAP_NET_RAW"]), name, &[]), EPERM, "{name}");
    }
}

#[test]
fn every_name_of_the_default_profile_is_a_call_somewhere() {
    for native in [Arch::X86_64, Arch::Aarch64] {
        for name in profile_for(native, u32::MAX).syscalls.iter().flat_map(|rule| &rule.names) {
            assert!(CALLS.values().any(|calls| calls.contains_key(name.as_str())), "{name}");
        }
    }
}

#[test]
fn numbers_are_the_kernels() {
    for (arch, name, expected) in [
        (Arch::X86_64, "read", 0),
        (Arch::X86_64, "execve", 59),
        (Arch::X86_64, "rseq", 334),
        (Arch::X86_64, "clone3", 435),
        (Arch::X86_64, "file_setattr", 469),
        (Arch::X32, "read", 0x4000_0000),
        (Arch::X32, "execve", 0x4000_0208),
        (Arch::I386, "socketcall", 102),
        (Arch::I386, "socket", 359),
        (Arch::I386, "clone3", 435),
        (Arch::Aarch64, "read", 63),
        (Arch::Aarch64, "newfstatat", 79),
        (Arch::Aarch64, "clone", 220),
        (Arch::Arm, "read", 3),
        (Arch::Arm, "set_tls", 0xf_0005),
    ] {
        assert_eq!(number(arch, name), expected, "{arch:?} {name}");
    }
}

#[test]
fn a_rule_without_conditions_wins_wherever_it_stands() {
    let conditional = rule(&["socket"], "SCMP_ACT_KILL", &[(0, "EQ", 2, 0)]);
    let plain = rule(&["socket"], "SCMP_ACT_ALLOW", &[]);
    for rules in [vec![conditional.clone(), plain.clone()], vec![plain, conditional]] {
        let program = compile_for(&profile("SCMP_ACT_ERRNO", rules), Arch::X86_64).unwrap();
        assert_eq!(run(&program, &call(Arch::X86_64, "socket", &[2])).0, ALLOW);
    }
}

#[test]
fn a_rule_that_repeats_the_default_hides_nothing() {
    let rules = vec![rule(&["socket"], "SCMP_ACT_ERRNO", &[]), rule(&["socket"], "SCMP_ACT_ALLOW", &[(0, "EQ", 2, 0)])];
    let program = compile_for(&profile("SCMP_ACT_ERRNO", rules), Arch::X86_64).unwrap();
    assert_eq!(run(&program, &call(Arch::X86_64, "socket", &[2])).0, ALLOW);
    assert_eq!(run(&program, &call(Arch::X86_64, "socket", &[3])).0, EPERM);
}

#[test]
fn far_targets_are_reached_in_long_programs() {
    let all = CALLS[&Arch::X86_64].keys().copied().collect::<Vec<_>>();
    let rules = all
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let value = u64::try_from(i).unwrap();
            let mut rule = rule(&[name], "SCMP_ACT_ERRNO", &[(2, "GT", value << 30, 0)]);
            rule.errno_ret = Some(2 + u32::try_from(i).unwrap());
            rule
        })
        .collect();
    let profile = profile("SCMP_ACT_ALLOW", rules);
    let program = compile_for(&profile, Arch::X86_64).unwrap();
    assert!(program.instructions() > 2000, "{}", program.instructions());
    for (i, name) in all.iter().enumerate() {
        let value = u64::try_from(i).unwrap();
        for third in [(value << 30) + 1, value << 30, u64::MAX] {
            let call = call(Arch::X86_64, name, &[0, 0, third]);
            assert_eq!(run(&program, &call).0, read(&profile, Arch::X86_64, &call), "{name}");
        }
    }
}

#[test]
fn too_long_a_program_is_refused_with_its_length() {
    let rules = (0..1000)
        .map(|i| rule(&["socket"], "SCMP_ACT_ALLOW", &[(0, "GT", i << 33, 0), (1, "LT", i << 34, 0)]))
        .collect();
    let error = compile_for(&profile("SCMP_ACT_ERRNO", rules), Arch::X86_64).unwrap_err();
    assert!(matches!(error, SeccompError::TooLong { instructions } if instructions > MAX_INSTRUCTIONS), "{error}");
}

#[test]
fn bad_profiles_are_refused_by_what_is_wrong() {
    let bad = |change: &dyn Fn(&mut Seccomp)| {
        let mut profile =
            profile("SCMP_ACT_ERRNO", vec![rule(&["read", "write"], "SCMP_ACT_ALLOW", &[(0, "EQ", 0, 0)])]);
        change(&mut profile);
        compile_for(&profile, Arch::X86_64).unwrap_err().to_string()
    };
    type Change<'a> = &'a dyn Fn(&mut Seccomp);
    let cases: [(&str, Change<'_>); 11] = [
        ("unknown action `SCMP_ACT_MAYBE`", &|p| p.default_action = "SCMP_ACT_MAYBE".into()),
        ("unknown action ``", &|p| p.syscalls[0].action.clear()),
        ("unknown architecture `SCMP_ARCH_PDP11`", &|p| p.architectures = vec!["SCMP_ARCH_PDP11".into()]),
        ("unknown operator `SCMP_CMP_ISH` for argument 0 of `read`", &|p| {
            p.syscalls[0].args[0].op = "SCMP_CMP_ISH".into()
        }),
        ("argument index 6 of `read`", &|p| p.syscalls[0].args[0].index = 6),
        ("errno 4096 is above 4095", &|p| p.default_errno_ret = Some(4096)),
        ("takes no errno", &|p| p.syscalls[0].errno_ret = Some(1)),
        ("names no system call", &|p| p.syscalls[0].names.clear()),
        ("needs a listenerPath", &|p| {
            p.syscalls[0].action = "SCMP_ACT_NOTIFY".into();
            p.syscalls[0].names = vec!["mkdir".into()];
        }),
        ("nor apply to `write`", &|p| p.syscalls[0].action = "SCMP_ACT_NOTIFY".into()),
        ("cannot be the default action", &|p| p.default_action = "SCMP_ACT_NOTIFY".into()),
    ];
    for (expected, change) in cases {
        let text = bad(change);
        assert!(text.contains(expected), "`{text}` has no `{expected}`");
    }
}

#[test]
fn notifications_are_compiled_for_a_listener() {
    let mut profile = profile("SCMP_ACT_ALLOW", vec![rule(&["mkdir"], "SCMP_ACT_NOTIFY", &[])]);
    profile.listener_path = "/run/listener.sock".into();
    let program = compile_for(&profile, Arch::X86_64).unwrap();
    assert!(program.notifies());
    assert_eq!(run(&program, &call(Arch::X86_64, "mkdir", &[])).0, 0x7fc0_0000);
}

#[test]
fn names_that_are_no_call_here_are_passed_over() {
    let rules = vec![
        rule(&["no_such_call", "arm_fadvise64_64"], "SCMP_ACT_ALLOW", &[]),
        rule(&["read"], "SCMP_ACT_ALLOW", &[]),
    ];
    let program = compile_for(&profile("SCMP_ACT_ERRNO", rules), Arch::X86_64).unwrap();
    assert_eq!(run(&program, &call(Arch::X86_64, "read", &[])).0, ALLOW);
    assert_eq!(
        run(&program, &call(Arch::X86_64, "write", &[])).0,
        ENOSYS,
        "1 is above the highest number of the profile"
    );
}

#[test]
fn the_number_minus_one_is_a_call_that_does_not_exist_and_not_x32() {
    let program =
        compile_for(&profile("SCMP_ACT_ERRNO", vec![rule(&["read", "clone3"], "SCMP_ACT_ALLOW", &[])]), Arch::X86_64)
            .unwrap();
    let at = |number: u32| run(&program, &Call { token: Arch::X86_64.token(), number, args: [0; 6] }).0;
    assert_eq!((at(u32::MAX), at(Arch::X32_BIT), at(u32::MAX - 1)), (ENOSYS, KILL_PROCESS, KILL_PROCESS));
}

#[test]
fn equal_profiles_give_equal_bytes_and_keys() {
    let profile = profile_for(Arch::X86_64, 0);
    assert_eq!(compile_for(&profile, Arch::X86_64), compile_for(&profile.clone(), Arch::X86_64));
    assert_eq!(cache_key(&profile), cache_key(&profile.clone()));
    assert_ne!(cache_key(&profile), cache_key(&profile_for(Arch::X86_64, 1)));
}
