use std::fs::File;
use std::rc::Rc;

use super::*;

fn exec(program: &str) -> Op {
    Op::Exec(Exec {
        file: None,
        candidates: vec![std::ffi::CString::new(program).unwrap()],
        argv: Strings::new(vec![c"program".into(), c"-c".into(), c"exit 9".into()]),
        env: Strings::new(Vec::new()),
    })
}

#[test]
fn a_borrowing_child_execs_and_its_end_is_seen() {
    let child = run(&[Op::CloseOnExec, exec("/bin/sh")], None, CloneOptions::default()).unwrap().unwrap();
    assert_eq!(crate::pidfd::wait(&child.pidfd).unwrap(), crate::pidfd::Exit::Code(9));
}

#[test]
fn a_failure_names_its_operation_and_leaves_no_child() {
    let ops = [Op::CloseOnExec, exec("/no/such/program")];
    let report = run(&ops, None, CloneOptions::default()).unwrap().unwrap_err();
    assert_eq!(report, Report { op: 1, part: 0, errno: libc::ENOENT });
    assert_eq!(ops[1].describe(report.part).0, "exec");
    let no_namespace = Op::SetNamespaces {
        fd: Rc::new(File::open("/dev/null").unwrap().into()),
        kinds: NamespaceKinds::NET,
        what: "network",
    };
    assert_eq!(run(&[no_namespace], None, CloneOptions::default()).unwrap().unwrap_err().errno, libc::EINVAL);
}

#[test]
fn a_copied_child_waits_at_its_gate_and_execs_when_let_go() {
    let (channel, theirs) = Channel::pair().unwrap();
    let ops = [Op::Sync, Op::CloseAllBut(Vec::new()), Op::Gate, exec("/bin/sh")];
    let child = fork(&ops, (&channel, theirs), CloneOptions::default()).unwrap();
    assert!(matches!(channel.receive().unwrap(), Message::Sync));
    channel.go_on().unwrap();
    assert!(matches!(channel.receive().unwrap(), Message::Ready));
    assert_eq!(std::fs::read_dir(format!("/proc/{}/fd", child.pid)).unwrap().count(), 4, "streams and the channel");
    assert_eq!(crate::pidfd::try_wait(&child.pidfd).unwrap(), None);
    channel.go_on().unwrap();
    assert!(matches!(channel.receive().unwrap(), Message::End));
    assert_eq!(crate::pidfd::wait(&child.pidfd).unwrap(), crate::pidfd::Exit::Code(9));
}

#[test]
fn a_waiting_child_ends_with_its_parents_end() {
    let (channel, theirs) = Channel::pair().unwrap();
    let child = fork(&[Op::CloseAllBut(Vec::new()), Op::Gate], (&channel, theirs), CloneOptions::default()).unwrap();
    assert!(matches!(channel.receive().unwrap(), Message::Ready));
    drop(channel);
    assert_eq!(crate::pidfd::wait(&child.pidfd).unwrap(), crate::pidfd::Exit::Code(127));
}

#[test]
fn what_is_kept_open_stays_and_closes_on_exec() {
    let (channel, theirs) = Channel::pair().unwrap();
    let kept: Shared = Rc::new(File::open("/dev/null").unwrap().into());
    let child =
        fork(&[Op::CloseAllBut(vec![kept.clone()]), Op::Gate], (&channel, theirs), CloneOptions::default()).unwrap();
    assert!(matches!(channel.receive().unwrap(), Message::Ready));
    let link = std::fs::read_link(format!("/proc/{}/fd/{}", child.pid, kept.as_raw_fd())).unwrap();
    assert_eq!(link, std::path::Path::new("/dev/null"));
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", child.pid, kept.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    assert_ne!(i32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC, 0, "{info}");
    drop(channel);
    crate::pidfd::wait(&child.pidfd).unwrap();
}

#[test]
fn privileged_a_child_is_born_into_new_namespaces() {
    let (channel, theirs) = Channel::pair().unwrap();
    let options = CloneOptions { namespaces: NamespaceKinds::PID | NamespaceKinds::UTS, ..CloneOptions::default() };
    let child = fork(&[Op::Hostname(c"inside".into()), Op::Gate], (&channel, theirs), options).unwrap();
    assert!(matches!(channel.receive().unwrap(), Message::Ready));
    let namespace = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["pid", "uts"] {
        assert_ne!(namespace(&child.pid.to_string(), kind), namespace("self", kind));
    }
    assert_ne!(rustix::system::uname().nodename(), c"inside");
    child.end();
}
