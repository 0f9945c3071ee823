//! The supervisor as a daemon sees it: the real program on a socket pair, a container of a busybox root, a real cgroup.
//! Each test owns its folder, its cgroup name and its shim, and says at its end that nothing of them is left.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod checkpoint;
mod handlers;
mod harness;
mod sessions;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Container, LaunchOptions, Node, kept_within};
use keelson_api::ExitRecord;
use keelson_api::shim::{Call, Delete, ExecSync, Failure, FailureKind, Outcome, Phase, ReopenLog, Signal, Start, Stop};

fn started(script: &str) -> Container {
    let mut container = Container::launch(&LaunchOptions::shell(script));
    container.start();
    container
}

fn lines(log: &str) -> Vec<(String, String, String)> {
    log.split_terminator('\n')
        .map(|line| {
            let mut fields = line.splitn(4, ' ');
            let moment = fields.next().unwrap();
            assert!(moment.len() == 30 && moment.ends_with('Z'), "{line}");
            (fields.next().unwrap().into(), fields.next().unwrap().into(), fields.next().unwrap().into())
        })
        .collect()
}

fn record(stream: &str, tag: &str, content: &str) -> (String, String, String) {
    (stream.into(), tag.into(), content.into())
}

fn exec(script: &str, timeout_ms: u64) -> Call {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Call::ExecSync(ExecSync { exec_id: harness::exec_id(), args, timeout_ms })
}

fn exec_result(outcome: Outcome) -> keelson_api::shim::ExecResult {
    match outcome {
        Outcome::Exec(result) => result,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn exited(outcome: Outcome) -> keelson_api::shim::Exit {
    match outcome {
        Outcome::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn privileged_a_container_is_launched_started_logged_and_recorded() {
    let mut container = Container::launch(&LaunchOptions::shell("echo out; echo err >&2; printf unfinished; exit 3"));
    let state = container.state();
    assert_eq!((state.phase(), state.started_at), (Phase::Created, 0));
    assert!(Path::new(&format!("/proc/{}", state.pid)).exists());
    assert!(container.node.file("shim.pid").trim().parse::<i32>().is_ok());
    container.start();
    let exit = container.wait();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
    assert!(exit.started_at > 0 && exit.finished_at >= exit.started_at);
    let mut log = lines(&container.log());
    log.sort();
    assert_eq!(log, [record("stderr", "F", "err"), record("stdout", "F", "out"), record("stdout", "P", "unfinished")]);
    container.assert_gone();
}

#[test]
fn privileged_long_lines_are_cut_and_whole_when_joined() {
    let container = started("head -c 40000 /dev/zero | tr '\\0' x; echo; echo end");
    let mut container = container;
    container.wait();
    let log = lines(&container.log());
    let tags: Vec<&str> = log.iter().map(|(_, tag, _)| tag.as_str()).collect();
    assert_eq!(tags, ["P", "P", "F", "F"]);
    let lengths: Vec<usize> = log.iter().map(|(_, _, content)| content.len()).collect();
    assert_eq!(lengths, [16384, 16384, 40000 - 2 * 16384, 3]);
    container.assert_gone();
}

#[test]
fn privileged_a_failed_start_says_why_and_is_recorded() {
    let options = LaunchOptions { args: vec!["/no/such/program".into()], ..LaunchOptions::shell("") };
    let mut container = Container::launch(&options);
    let failure = failed(container.call(Call::Start(Start {})));
    assert_eq!(failure.errno, 2);
    assert!(failure.message.contains("/no/such/program"), "{failure:?}");
    assert_eq!((container.wait().code, container.exit_record().started_at), (128, 0));
    container.assert_gone();
}

#[test]
fn privileged_a_failed_launch_leaves_nothing_and_the_shim_ends_with_its_daemon() {
    let mut node = Node::new();
    let failure =
        failed(node.call(Call::Launch(keelson_api::shim::Launch { spec: b"{".to_vec(), ..Default::default() })));
    assert_eq!((failure.step.as_str(), failure.kind()), ("read spec", FailureKind::Invalid));
    let failure = failed(node.call(Call::Start(Start {})));
    assert_eq!(failure.kind(), FailureKind::State);
    node.hang_up();
    node.assert_ended();
}

#[test]
fn privileged_exec_collects_output_and_exit_code() {
    let mut container = started("exec sleep 1000");
    let result = exec_result(container.call(exec("echo one; echo two >&2; exit 7", 0)));
    assert_eq!((result.stdout.as_slice(), result.stderr.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
    assert_eq!((result.exit_code, result.timed_out, result.truncated), (7, false, false));
    let result = exec_result(container.call(exec("kill -9 $$", 0)));
    assert_eq!(result.exit_code, 137);
    let missing = ExecSync { exec_id: harness::exec_id(), args: vec!["/missing".into()], timeout_ms: 0 };
    let failure = failed(container.call(Call::ExecSync(missing)));
    assert!(failure.errno == 2 && failure.message.contains("/missing"), "{failure:?}");
    let failure = failed(container.call(Call::ExecSync(ExecSync { exec_id: "../x".into(), ..Default::default() })));
    assert_eq!(failure.kind(), FailureKind::Invalid);
    assert_eq!(container.leaves(), 0);
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_an_exec_timeout_kills_everything_it_started() {
    let mut container = started("exec sleep 1000");
    let begun = Instant::now();
    let result = exec_result(container.call(exec("echo begun; setsid sleep 777 & sleep 777", 300)));
    assert!(result.timed_out && result.exit_code == 137 && result.stdout == b"begun\n", "{result:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(kept_within(Duration::from_secs(2), || !container.runs("sleep777") && container.leaves() == 0));
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_a_background_child_neither_hangs_an_exec_nor_is_killed() {
    let mut container = started("exec sleep 1000");
    let begun = Instant::now();
    let result = exec_result(container.call(exec("sleep 888 & echo done", 60_000)));
    assert_eq!((result.stdout.as_slice(), result.exit_code, result.timed_out), (&b"done\n"[..], 0, false));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // One that talks on and on is given up too.
    let begun = Instant::now();
    exec_result(container.call(exec("(while true; do echo talk; sleep 0.02; done) & echo done", 60_000)));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(container.runs("sleep888"));
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_exec_output_is_capped_and_its_memory_given_back() {
    let mut container = started("exec sleep 1000");
    let before = container.node.resident_kib();
    let result = exec_result(container.call(exec("head -c 20000000 /dev/zero", 0)));
    assert!(result.truncated && result.stdout.len() == 16 << 20);
    let after = container.node.resident_kib();
    assert!(after < before + 1024, "{before} KiB before, {after} after");
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_many_execs_at_once_are_answered_out_of_order() {
    let mut container = started("exec sleep 1000");
    let slow = container.send(exec("sleep 0.5; echo slow", 0));
    let others: Vec<u64> = (0..20).map(|n| container.send(exec(&format!("echo {n}"), 0))).collect();
    let stop = container.send(Call::Signal(Signal { signal: 0x7f, all: false }));
    let replies = container.collect(22);
    assert_eq!(replies.last().unwrap().0, slow);
    for (n, seq) in others.iter().enumerate() {
        let reply = replies.iter().find(|(reply, _)| reply == seq).unwrap();
        assert_eq!(exec_result(reply.1.clone()).stdout, format!("{n}\n").into_bytes());
    }
    let refused = replies.into_iter().find(|(reply, _)| *reply == stop).unwrap();
    assert_eq!(failed(refused.1).kind(), FailureKind::Invalid);
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_stop_signals_waits_and_kills() {
    let mut obeys = started("trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.01; done");
    obeys.await_log("ready");
    let exit = exited(obeys.call(Call::Stop(Stop { signal: 15, grace_ms: 10_000 })));
    assert_eq!((exit.code, exit.signal), (5, 0));
    assert!(obeys.log().contains("bye"));
    obeys.wait();
    obeys.assert_gone();

    let mut deaf = started("trap '' TERM; echo ready; while true; do sleep 0.01; done");
    deaf.await_log("ready");
    let begun = Instant::now();
    let long = deaf.send(Call::Stop(Stop { signal: 15, grace_ms: 60_000 }));
    let short = deaf.send(Call::Stop(Stop { signal: 15, grace_ms: 300 }));
    let replies = deaf.collect(2);
    assert!(begun.elapsed() < Duration::from_secs(5));
    for seq in [long, short] {
        let reply = replies.iter().find(|(reply, _)| *reply == seq).unwrap();
        assert_eq!(exited(reply.1.clone()).code, 137);
    }
    deaf.wait();
    deaf.assert_gone();
}

/// A stop that comes while the program is still installing its handler is obeyed, and the signal arrives once.
#[test]
fn privileged_a_stop_signal_waits_for_the_handler() {
    let script = "sleep 0.5; trap 'echo bye; n=$((n+1))' TERM; echo ready; while [ -z \"$n\" ]; do sleep 0.01; done; \
                  sleep 0.3; exit $n";
    let mut container = started(script);
    let begun = Instant::now();
    let exit = exited(container.call(Call::Stop(Stop { signal: 15, grace_ms: 60_000 })));
    assert_eq!((exit.code, exit.signal), (1, 0), "told once");
    assert!(begun.elapsed() < Duration::from_secs(20), "the grace period is not waited out");
    container.wait();
    container.assert_gone();
}

#[test]
fn privileged_what_init_leaves_running_is_killed_with_it() {
    // Without a pid namespace of its own, nothing but the cgroup holds the orphans together.
    let options =
        LaunchOptions { pid_namespace: false, ..LaunchOptions::shell("(setsid sleep 999 &) ; echo gone; exit 0") };
    let mut container = Container::launch(&options);
    container.start();
    assert_eq!(container.wait().code, 0);
    assert!(!container.runs("sleep999"));
    container.assert_gone();
}

#[test]
fn privileged_a_created_container_that_is_never_started_is_deleted_without_a_trace() {
    let mut container = Container::launch(&LaunchOptions::shell("echo never"));
    assert!(matches!(container.call(Call::Delete(Delete {})), Outcome::Done(_)));
    container.node.assert_ended();
    assert_eq!(container.log(), "");
    container.assert_gone();
}

#[test]
fn privileged_nobody_notices_the_death_of_the_daemon() {
    let mut container = started("n=0; while true; do n=$((n+1)); echo $n; sleep 0.01; done");
    container.await_log("\n");
    let pending = container.send(exec("sleep 444", 0));
    assert!(pending > 0 && kept_within(Duration::from_secs(2), || container.runs("sleep444")));
    container.node.hang_up();
    assert!(kept_within(Duration::from_secs(2), || !container.runs("sleep444")), "nobody waits for that exec any more");
    let seen = container.log().len();
    assert!(kept_within(Duration::from_secs(2), || container.log().len() > seen));
    container.node.terminate_shim();
    container.node.reconnect();
    assert_eq!(container.state().phase(), Phase::Running);
    assert_eq!(exec_result(container.call(exec("echo again", 0))).stdout, b"again\n");
    container.stop_now();
    let numbers: Vec<u64> = lines(&container.log()).iter().map(|(_, _, content)| content.parse().unwrap()).collect();
    assert!(numbers.iter().zip(1..).all(|(number, expected)| *number == expected), "a line is missing");
    container.assert_gone();
}

#[test]
fn privileged_a_malformed_frame_drops_only_its_connection() {
    let mut container = started("exec sleep 1000");
    let mut second = container.node.connect();
    second.write_all(&[0xff; 64]).unwrap();
    second.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(second.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert_eq!(container.state().phase(), Phase::Running);
    container.node.forgive("read request: frame of 4294967295 bytes");
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_an_oom_kill_is_told() {
    let options = LaunchOptions { memory: Some(16 << 20), ..LaunchOptions::shell("exec tail /dev/zero") };
    let mut container = Container::launch(&options);
    container.start();
    let exit = container.wait();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    container.assert_gone();
}

#[test]
fn privileged_reopening_under_load_loses_and_splits_nothing() {
    let mut container =
        started("n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo line-$n; done; echo end; exec sleep 1000");
    let mut parts = Vec::new();
    for n in 0.. {
        let rotated = container.node.path(&format!("rotated-{n}"));
        std::fs::rename(container.log_path(), &rotated).unwrap();
        assert!(matches!(container.call(Call::ReopenLog(ReopenLog {})), Outcome::Done(_)));
        parts.push(std::fs::read_to_string(&rotated).unwrap());
        if parts.last().unwrap().contains(" end\n") {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut expected = 1;
    for part in &parts {
        assert!(part.is_empty() || part.ends_with('\n'));
        for (_, tag, content) in lines(part).iter().filter(|(_, _, content)| content != "end") {
            assert_eq!((tag.as_str(), content.as_str()), ("F", format!("line-{expected}").as_str()));
            expected += 1;
        }
    }
    assert_eq!(expected, 20_001);
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_a_terminal_is_one_stream() {
    let options =
        LaunchOptions { terminal: true, ..LaunchOptions::shell("test -t 0 && test -t 2 && echo tty; echo err >&2") };
    let mut container = Container::launch(&options);
    container.start();
    assert_eq!(container.wait().code, 0);
    let log = lines(&container.log());
    assert_eq!(log, [record("stdout", "F", "tty\r"), record("stdout", "F", "err\r")]);
    container.assert_gone();
}

#[test]
fn privileged_an_open_stdin_is_kept_open() {
    let options = LaunchOptions { stdin: true, ..LaunchOptions::shell("echo waiting; read line; echo closed") };
    let mut container = Container::launch(&options);
    container.start();
    container.await_log("waiting");
    assert_eq!(container.state().phase(), Phase::Running);
    container.stop_now();
    assert!(!container.log().contains("closed"));
    container.assert_gone();
}

#[test]
fn privileged_an_unprivileged_program_can_open_its_streams_again() {
    let options =
        LaunchOptions { user: 1000, ..LaunchOptions::shell("echo out > /proc/self/fd/1; echo err > /proc/self/fd/2") };
    let mut container = Container::launch(&options);
    container.start();
    assert_eq!(container.wait().code, 0, "{}", container.log());
    assert_eq!(container.log().lines().count(), 2);
    container.assert_gone();
}

#[test]
fn privileged_the_builtin_init_holds_a_pid_namespace() {
    let options = LaunchOptions { builtin_init: true, ..LaunchOptions::shell("") };
    let mut container = Container::launch(&options);
    container.start();
    assert_eq!(container.state().phase(), Phase::Running);
    let exit = exited(container.call(Call::Stop(Stop { signal: 15, grace_ms: 10_000 })));
    assert_eq!(exit.code, 0);
    container.wait();
    container.assert_gone();
}

#[test]
fn privileged_two_hundred_execs_leave_no_descriptor_and_no_memory() {
    let mut container = started("exec sleep 1000");
    for _ in 0..20 {
        exec_result(container.call(exec("true", 0)));
    }
    // An exec is answered before the last of its descriptors is closed: the fewest within a while are what is kept.
    let kept = |container: &Container| {
        let reads = (0..50).map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            container.node.descriptors()
        });
        reads.min().unwrap()
    };
    let before = (kept(&container), container.node.resident_kib());
    for _ in 0..200 {
        exec_result(container.call(exec("echo x", 0)));
    }
    let after = (kept(&container), container.node.resident_kib());
    assert_eq!(after.0, before.0);
    assert!(after.1 <= before.1 + 64, "{before:?} {after:?}");
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_the_record_is_on_disk_before_anybody_is_told() {
    let mut container = started("exec sleep 1000");
    let exit = exited(container.call(Call::Stop(Stop { signal: 9, grace_ms: 0 })));
    let record: ExitRecord = container.exit_record();
    assert_eq!((exit.code, exit.finished_at), (record.code, record.finished_at));
    container.wait();
    container.assert_gone();
}
