//! Containers that another OCI runtime makes under the same supervisor: Debian's runc and crun.
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::time::{Duration, Instant};

use keelson_api::shim::{Call, Delete, EndSession, FailureKind, Launch, Outcome, Phase, Signal, Start, Stop};
use rustix::termios::Winsize;

use crate::harness::{Container, LaunchOptions, Node, kept_within};
use crate::sessions::{code, fell_behind, in_terminal, listen, open, rest, shell};
use crate::{exec, exec_result, exited, failed, lines, record};

const PATIENCE: Duration = Duration::from_secs(20);

/// Every runtime that is installed.
fn each(name: &str, check: impl Fn(&dyn Fn(LaunchOptions) -> Container)) {
    for program in ["runc", "crun"] {
        let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        let found =
            places.iter().map(|place| format!("{place}/{program}")).find(|path| std::fs::metadata(path).is_ok());
        let Some(found) = found else {
            println!("SKIP {name}: {program} is not installed (package {program})");
            continue;
        };
        let hybrid = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
        if program == "crun" && hybrid.is_ok_and(|controllers| !controllers.trim().is_empty()) {
            println!("SKIP {name}: crun takes no machine on which v1 and v2 both have controllers");
            continue;
        }
        println!("{name} with {found}");
        let handler = Some((found, Vec::new()));
        check(&|options| Container::launch(&LaunchOptions { handler: handler.clone(), ..options }));
    }
}

#[test]
fn privileged_another_runtimes_container_is_logged_and_recorded() {
    each("another_runtimes_container_is_logged_and_recorded", |launch| {
        let mut container = launch(LaunchOptions::shell("echo out; echo err >&2; exit 3"));
        assert_eq!(container.state().phase(), Phase::Created);
        assert_eq!(container.log(), "");
        container.start();
        assert_eq!((container.wait().code, container.exit_record().signal), (3, None));
        let mut log = lines(&container.log());
        log.sort();
        assert_eq!(log, [record("stderr", "F", "err"), record("stdout", "F", "out")]);
        assert!(!container.node.path("runtime").join("0123456789abcdef").exists());
        assert_eq!(std::fs::read_dir(container.node.path("runtime")).unwrap().count(), 0, "it remembers the container");
        container.assert_gone();
    });
}

#[test]
fn privileged_another_runtimes_container_takes_execs_and_attaches() {
    each("another_runtimes_container_takes_execs_and_attaches", |launch| {
        let script = "while read line; do echo heard $line; done; exec sleep 1000";
        let mut container = launch(LaunchOptions { stdin: true, ..LaunchOptions::shell(script) });
        container.start();
        let result = exec_result(container.call(exec("echo one; echo two >&2; exit 7", 0)));
        assert_eq!((result.stdout.as_slice(), result.stderr.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
        assert_eq!((result.exit_code, result.timed_out), (7, false));
        let result = exec_result(container.call(exec("echo begun; setsid sleep 661 & sleep 662", 1500)));
        assert!(result.timed_out && result.exit_code == 137, "{result:?}");
        let gone = || !container.runs("sleep661") && !container.runs("sleep662");
        assert!(kept_within(PATIENCE, gone));
        let mut session = open(&mut container, Call::OpenExec(shell("read word; echo got $word; exit 4")));
        session.say("this\n");
        assert_eq!(code(&mut container, session.seq), 4);
        assert_eq!(rest(session.stdout), "got this\n");
        let mut session = open(&mut container, Call::OpenExec(in_terminal("stty size; read x; stty size")));
        session.hear_terminal("24 80");
        let size = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(session.terminal.as_ref().unwrap(), size).unwrap();
        session.say("\n");
        session.hear_terminal("50 132");
        assert_eq!(code(&mut container, session.seq), 0);
        let mut session = open(&mut container, Call::OpenExec(shell("echo begun; sleep 663")));
        session.hear_out("begun");
        container.call(Call::EndSession(EndSession { session: session.seq }));
        assert_eq!(code(&mut container, session.seq), 137);
        let missing = keelson_api::shim::OpenExec { args: vec!["/missing".into()], ..shell("") };
        let failure = failed(container.call(Call::OpenExec(missing)));
        assert!(failure.message.contains("/missing") && failure.kind() == FailureKind::Invalid, "{failure:?}");
        let mut attached = open(&mut container, Call::Attach(listen(true)));
        attached.say("me\n");
        attached.hear_out("heard me\n");
        let seq = attached.seq;
        drop(attached);
        assert!(!fell_behind(container.node.receive_of(seq)));
        assert!(kept_within(PATIENCE, || container.leaves() == 0));
        container.stop_now();
        container.assert_gone();
    });
}

#[test]
fn privileged_another_runtimes_container_obeys_signals_and_outlives_the_daemon() {
    each("another_runtimes_container_obeys_signals_and_outlives_the_daemon", |launch| {
        let script = "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.05; done";
        let mut container = launch(LaunchOptions::shell(script));
        container.start();
        container.await_log("ready");
        container.node.hang_up();
        container.node.reconnect();
        assert_eq!(container.state().phase(), Phase::Running);
        let exit = exited(container.call(Call::Stop(Stop { signal: 15, grace_ms: 20_000 })));
        assert_eq!((exit.code, exit.signal), (5, 0));
        container.wait();
        container.assert_gone();
        let mut deaf = launch(LaunchOptions::shell("trap '' TERM; (setsid sleep 664 &); echo ready; exec sleep 1000"));
        deaf.start();
        deaf.await_log("ready");
        assert!(matches!(deaf.call(Call::Signal(Signal { signal: 15, all: false })), Outcome::Done(_)));
        let begun = Instant::now();
        assert_eq!(exited(deaf.call(Call::Stop(Stop { signal: 15, grace_ms: 100 }))).code, 137);
        assert!(begun.elapsed() < PATIENCE && !deaf.runs("sleep664"));
        deaf.wait();
        deaf.assert_gone();
    });
}

#[test]
fn privileged_another_runtimes_container_may_have_a_terminal() {
    each("another_runtimes_container_may_have_a_terminal", |launch| {
        let script = "test -t 0 && echo ready; read line; echo \"<$line>\"; stty size";
        let mut container = launch(LaunchOptions { terminal: true, stdin: true, ..LaunchOptions::shell(script) });
        container.start();
        container.await_log("ready");
        let mut attached = open(&mut container, Call::Attach(listen(true)));
        let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(attached.terminal.as_ref().unwrap(), size).unwrap();
        attached.say("typed\n");
        attached.hear_out("33 77");
        assert!(!fell_behind(container.node.receive_of(attached.seq)));
        drop(attached);
        assert_eq!(container.wait().code, 0);
        assert!(container.log().contains("<typed>"));
        container.assert_gone();
    });
}

#[test]
fn privileged_another_runtimes_failures_are_told_in_its_words() {
    each("another_runtimes_failures_are_told_in_its_words", |launch| {
        let missing = LaunchOptions { args: vec!["/no/such/program".into()], ..LaunchOptions::shell("") };
        // Some look for the program at `create`, some at `start`.
        let launched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| launch(missing)));
        match launched {
            Ok(mut container) => {
                let failure = failed(container.call(Call::Start(Start {})));
                assert!(failure.message.contains("/no/such/program"), "{failure:?}");
                container.wait();
                container.assert_gone();
            }
            Err(panic) => {
                let words = panic.downcast_ref::<String>().unwrap();
                assert!(words.contains("/no/such/program") && words.contains("other create"), "{words}");
            }
        }
        let mut container = launch(LaunchOptions::shell("exec sleep 1000"));
        assert!(matches!(container.call(Call::Delete(Delete {})), Outcome::Done(_)));
        container.node.assert_ended();
        container.assert_gone();
    });
    let mut node = Node::new();
    let handler = keelson_api::shim::Handler {
        name: "absent".into(),
        program: "/no/such/runtime".into(),
        root: node.path("runtime").to_str().unwrap().to_owned(),
        ..Default::default()
    };
    let launch = Launch {
        spec: br#"{"linux":{"cgroupsPath":"/keelson-absent"}}"#.to_vec(),
        handler: Some(handler),
        ..Launch::default()
    };
    let failure = failed(node.call(Call::Launch(launch)));
    assert!(failure.message.contains("/no/such/runtime") && failure.errno == 2, "{failure:?}");
    node.hang_up();
    node.assert_ended();
}
