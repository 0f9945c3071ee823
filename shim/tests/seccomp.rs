//! Compiled filters in the real kernel: loaded into a thread, inherited by tiny programs made here byte by byte.
//! Each program makes one system call of its architecture and exits with its errno, so i386 and x32 need no compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]
#![cfg(target_arch = "x86_64")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use keelson_shim::seccomp::{compile, default_program};
use keelson_shim::spec::{Capabilities, Seccomp, SeccompArg, SeccompRule};

const EPERM: i32 = 1;
const ENOEXEC: i32 = 8;
const ETXTBSY: i32 = 26;
const EAFNOSUPPORT: i32 = 97;
const ENOSYS: i32 = 38;
const SPEC_ALLOW: u32 = 4;
const X32: u32 = 0x4000_0000;

#[derive(Clone, Copy, PartialEq)]
enum Machine {
    X86_64,
    I386,
}

/// `exit(-syscall(number, arguments))`, with success as 0.
fn program(machine: Machine, number: u32, arguments: [u32; 3]) -> Vec<u8> {
    let mut code = Vec::new();
    let mut put = |bytes: &[u8], value: Option<u32>| {
        code.extend_from_slice(bytes);
        code.extend(value.map(u32::to_le_bytes).into_iter().flatten());
    };
    match machine {
        Machine::I386 => {
            for (register, value) in [(0xbb, arguments[0]), (0xb9, arguments[1]), (0xba, arguments[2]), (0xb8, number)]
            {
                put(&[register], Some(value)); // mov ebx, ecx, edx, eax
            }
            put(&[0xcd, 0x80], None); // int 0x80
        }
        Machine::X86_64 => {
            for (register, value) in [(0xbf, arguments[0]), (0xbe, arguments[1]), (0xba, arguments[2]), (0xb8, number)]
            {
                put(&[register], Some(value)); // mov edi, esi, edx, eax
            }
            put(&[0x0f, 0x05], None); // syscall
        }
    }
    // A descriptor or a pid is success: only -4095..0 is an errno.
    put(&[0x3d], Some(0xffff_f000)); // cmp eax, -4096
    put(&[0x77, 0x02], None); // ja: it is an errno
    put(&[0x31, 0xc0], None); // xor eax, eax
    put(&[0xf7, 0xd8], None); // neg eax
    match machine {
        Machine::I386 => {
            put(&[0x89, 0xc3], None); // mov ebx, eax
            put(&[0xb8], Some(1)); // exit
            put(&[0xcd, 0x80], None);
        }
        Machine::X86_64 => {
            put(&[0x89, 0xc7], None); // mov edi, eax
            put(&[0xb8], Some(60)); // exit
            put(&[0x0f, 0x05], None);
        }
    }
    let wide = machine == Machine::X86_64;
    let header: u16 = if wide { 64 + 56 } else { 52 + 32 };
    let (base, size) = (0x40_0000u32, u32::from(header) + u32::try_from(code.len()).unwrap());
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let short = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let address = |elf: &mut Vec<u8>, value: u32| {
        elf.extend(value.to_le_bytes());
        elf.extend(if wide { &[0u8; 4][..] } else { &[] });
    };
    short(&mut elf, 2); // executable
    short(&mut elf, if wide { 62 } else { 3 });
    word(&mut elf, 1);
    address(&mut elf, base + u32::from(header)); // entry
    address(&mut elf, if wide { 64 } else { 52 }); // program headers
    address(&mut elf, 0);
    word(&mut elf, 0);
    for value in [if wide { 64 } else { 52 }, if wide { 56 } else { 32 }, 1, 0, 0, 0] {
        short(&mut elf, value);
    }
    word(&mut elf, 1); // load
    if wide {
        word(&mut elf, 5); // readable, executable
    }
    for value in [0, base, base, size, size] {
        address(&mut elf, value);
    }
    if !wide {
        word(&mut elf, 5);
    }
    address(&mut elf, 0x1000);
    elf.extend(code);
    elf
}

/// How a program ends under a filter: its errno, or the signal that killed it as a negative number. None: it cannot run here.
fn run(filter: &[u8], machine: Machine, number: u32, arguments: [u32; 3]) -> Option<i32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
    file.write_all(&program(machine, number, arguments)).unwrap();
    drop(file);
    under(filter, move || {
        loop {
            match Command::new(&path).status().map_err(|error| error.raw_os_error()) {
                Ok(status) => return Some(status.code().unwrap_or_else(|| -status.signal().unwrap())),
                Err(Some(ENOEXEC)) => return None, // The kernel has no such architecture.
                // Another test's child, forked while the file was written, has not executed its own program yet.
                Err(Some(ETXTBSY)) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => panic!("{error:?}"),
            }
        }
    })
}

/// Runs a closure on a thread with the filter; only that thread and its children have it.
fn under<T: Send>(filter: &[u8], act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                rustix::thread::set_no_new_privs(true).unwrap();
                keelson_sys::seccomp::load(filter, SPEC_ALLOW).unwrap();
                act()
            })
            .join()
            .unwrap()
    })
}

fn rule(names: &[&str], action: &str, args: &[(u32, u64, &str)]) -> SeccompRule {
    SeccompRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: action.to_owned(),
        errno_ret: None,
        args: args
            .iter()
            .map(|(index, value, op)| SeccompArg {
                index: *index,
                value: *value,
                value_two: 0,
                op: format!("SCMP_CMP_{op}"),
            })
            .collect(),
    }
}

#[test]
fn privileged_t17_the_kernel_takes_the_default_filter_and_follows_it() {
    let filter = default_program(&Capabilities::default()).unwrap();
    let filter = filter.as_bytes();
    let on = |number, arguments| run(filter, Machine::X86_64, number, arguments).unwrap();
    assert_eq!(on(39, [0; 3]), 0, "getpid");
    assert_eq!(on(41, [1, 1, 0]), 0, "socket(AF_UNIX)");
    assert_eq!(on(41, [2, 1, 0]), 0, "socket(AF_INET)");
    assert_eq!(on(41, [38, 5, 0]), EAFNOSUPPORT, "socket(AF_ALG)");
    assert_eq!(on(41, [40, 1, 0]), EAFNOSUPPORT, "socket(AF_VSOCK)");
    assert_eq!(on(272, [0x1000_0000, 0, 0]), EPERM, "unshare(CLONE_NEWUSER)");
    assert_eq!(on(56, [0x1000_0011, 0, 0]), EPERM, "clone(CLONE_NEWUSER)");
    assert_eq!(on(435, [0; 3]), ENOSYS, "clone3");
    assert_eq!(on(250, [0; 3]), EPERM, "keyctl");
    assert_eq!(on(321, [0; 3]), EPERM, "bpf");
    assert_eq!(on(323, [0; 3]), EPERM, "userfaultfd");
    assert_eq!(on(425, [1, 0, 0]), EPERM, "io_uring_setup");
    assert_eq!(on(165, [0; 3]), EPERM, "mount");
    assert_eq!(on(135, [0xffff_ffff, 0, 0]), 0, "personality, asking");
    assert_eq!(on(135, [0x0040_0000, 0, 0]), EPERM, "personality(ADDR_NO_RANDOMIZE)");
    assert_eq!(on(900, [0; 3]), ENOSYS, "a call of the future");
}

#[test]
fn privileged_t17_i386_programs_are_held_by_the_same_rules() {
    let filter = default_program(&Capabilities::default()).unwrap();
    let on = |number, arguments| run(filter.as_bytes(), Machine::I386, number, arguments);
    let Some(getpid) = on(20, [0; 3]) else {
        println!("SKIP privileged_t17_i386_programs_are_held_by_the_same_rules: this kernel runs no i386 programs");
        return;
    };
    assert_eq!(getpid, 0);
    assert_eq!(on(359, [1, 1, 0]), Some(0), "socket(AF_UNIX)");
    assert_eq!(on(359, [38, 5, 0]), Some(EAFNOSUPPORT), "socket(AF_ALG)");
    assert_eq!(on(102, [1, 0, 0]), Some(ENOSYS), "socketcall hides its family behind a pointer");
    assert_eq!(on(120, [0x1000_0011, 0, 0]), Some(EPERM), "clone(CLONE_NEWUSER)");
    assert_eq!(on(310, [0x1000_0000, 0, 0]), Some(EPERM), "unshare(CLONE_NEWUSER)");
    assert_eq!(on(288, [0; 3]), Some(EPERM), "keyctl");
    assert_eq!(on(425, [1, 0, 0]), Some(EPERM), "io_uring_setup");
}

#[test]
fn privileged_t17_x32_numbers_are_held_by_the_same_rules() {
    let filter = default_program(&Capabilities::default()).unwrap();
    let on = |number, arguments| run(filter.as_bytes(), Machine::X86_64, X32 | number, arguments).unwrap();
    assert_eq!(on(41, [38, 5, 0]), EAFNOSUPPORT, "socket(AF_ALG)");
    assert_eq!(on(272, [0x1000_0000, 0, 0]), EPERM, "unshare(CLONE_NEWUSER)");
    assert_eq!(on(900, [0; 3]), ENOSYS);
    let without = compile(&Seccomp { default_action: "SCMP_ACT_ALLOW".into(), ..Seccomp::default() }).unwrap();
    let killed = run(without.as_bytes(), Machine::X86_64, X32 | 41, [1, 1, 0]).unwrap();
    assert_eq!(killed, -31, "not asked for: SIGSYS");
}

#[test]
fn privileged_every_action_does_what_it_says() {
    let act = |action: &str, errno| {
        let mut rule = rule(&["getpriority"], action, &[]);
        rule.errno_ret = errno;
        let profile = Seccomp { default_action: "SCMP_ACT_ALLOW".into(), syscalls: vec![rule], ..Seccomp::default() };
        run(compile(&profile).unwrap().as_bytes(), Machine::X86_64, 140, [0; 3]).unwrap()
    };
    assert_eq!(act("SCMP_ACT_ERRNO", None), EPERM);
    assert_eq!(act("SCMP_ACT_ERRNO", Some(77)), 77);
    assert_eq!(act("SCMP_ACT_KILL", None), -31);
    assert_eq!(act("SCMP_ACT_KILL_THREAD", None), -31);
    assert_eq!(act("SCMP_ACT_KILL_PROCESS", None), -31);
    assert_eq!(act("SCMP_ACT_TRAP", None), -31);
    assert_eq!(act("SCMP_ACT_TRACE", None), ENOSYS, "nobody traces");
    assert_eq!(act("SCMP_ACT_LOG", None), 0);
}

#[test]
fn privileged_arguments_are_compared_in_the_kernel() {
    // kill(-1, 0) would be everyone: getpriority's arguments are harmless.
    let profile = Seccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        architectures: vec!["SCMP_ARCH_X86".into()],
        syscalls: vec![
            rule(&["getpriority"], "SCMP_ACT_ERRNO", &[(0, 0, "EQ"), (1, 10, "GT")]),
            rule(&["getpriority"], "SCMP_ACT_KILL", &[(0, 1, "GE"), (1, 5, "LT")]),
        ],
        ..Seccomp::default()
    };
    let filter = compile(&profile).unwrap();
    for (machine, number) in [(Machine::X86_64, 140), (Machine::I386, 96)] {
        let on = |arguments| run(filter.as_bytes(), machine, number, arguments);
        let Some(first) = on([0, 0, 0]) else {
            println!("SKIP half of privileged_arguments_are_compared_in_the_kernel: this kernel runs no i386 programs");
            continue;
        };
        assert_eq!(first, 0);
        assert_eq!(on([0, 11, 0]), Some(EPERM));
        assert_eq!(on([1, 0, 0]), Some(-31));
        assert_ne!(on([1, 5, 0]), Some(-31));
    }
}

#[test]
fn privileged_long_programs_are_loaded() {
    let calls = [(0, "getpriority"), (1, "setpriority"), (2, "getrlimit"), (3, "prlimit64")];
    let one = |i: u64, name| rule(&[name], "SCMP_ACT_ERRNO", &[(0, i << 33, "GT"), (1, i << 31, "LE"), (2, i, "EQ")]);
    let rules = (0..60u64).flat_map(|i| calls.map(|(j, name)| one(4 * i + j, name))).collect();
    let profile = Seccomp { default_action: "SCMP_ACT_ALLOW".into(), syscalls: rules, ..Seccomp::default() };
    let filter = compile(&profile).unwrap();
    assert!(filter.instructions() > 3000, "{}", filter.instructions());
    assert_eq!(run(filter.as_bytes(), Machine::X86_64, 39, [0; 3]), Some(0));
}

#[test]
fn privileged_a_usual_program_runs_under_the_default_filter() {
    let filter = default_program(&Capabilities::default()).unwrap();
    let (status, threads) = under(filter.as_bytes(), || {
        let script =
            "ls / > /dev/null && cat /proc/self/status | grep -q Seccomp: && (sleep 0.01 & wait) && date > /dev/null";
        let status = Command::new("/bin/sh").args(["-c", script]).status().unwrap();
        let threads = std::thread::spawn(|| File::open("/proc/self/stat").is_ok()).join().unwrap();
        (status, threads)
    });
    assert!(status.success() && threads);
}
