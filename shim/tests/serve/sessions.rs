//! Sessions as a daemon has them: execs and attaches whose streams come by SCM_RIGHTS.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use keelson_api::shim::{Attach, Call, EndSession, FailureKind, OpenExec, Outcome, Signal, Streams};
use rustix::fs::OFlags;
use rustix::termios::Winsize;

use crate::harness::{self, Container, LaunchOptions, kept_within};
use crate::{exec, exec_result, failed, lines, record, started};

const PATIENCE: Duration = Duration::from_secs(10);

/// A session's descriptors, blocking, so that a test reads to their end.
pub(crate) struct Session {
    pub(crate) seq: u64,
    pub(crate) terminal: Option<File>,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

pub(crate) fn shell(script: &str) -> OpenExec {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    OpenExec { exec_id: harness::exec_id(), args, stdin: true, stdout: true, stderr: true, ..OpenExec::default() }
}

pub(crate) fn in_terminal(script: &str) -> OpenExec {
    OpenExec { terminal: true, rows: 24, columns: 80, ..shell(script) }
}

pub(crate) fn listen(stdin: bool) -> Attach {
    Attach { stdin, stdout: true, stderr: true }
}

pub(crate) fn open(container: &mut Container, call: Call) -> Session {
    let seq = container.send(call);
    let streams = match container.node.receive_of(seq) {
        Outcome::Streams(streams) => streams,
        other => panic!("{other:?}"),
    };
    let Streams { terminal, stdin, stdout, stderr } = streams;
    let mut fds = container.node.take_fds().into_iter();
    let mut next = |present: bool| present.then(|| blocking(fds.next().expect("a descriptor for each stream")));
    let session =
        Session { seq, terminal: next(terminal), stdin: next(stdin), stdout: next(stdout), stderr: next(stderr) };
    assert_eq!(fds.count(), 0);
    session
}

fn blocking(fd: OwnedFd) -> File {
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    assert!(flags.contains(OFlags::NONBLOCK));
    assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    File::from(fd)
}

impl Session {
    /// Reads until `text` has come.
    fn hear(file: &mut File, text: &str) -> String {
        let mut heard = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if String::from_utf8_lossy(&heard).contains(text) {
                break;
            }
            let mut chunk = [0; 4096];
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => heard.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(_) => break,
            }
        }
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.contains(text), "{text:?} is not in {heard:?}");
        heard
    }

    pub(crate) fn hear_out(&mut self, text: &str) -> String {
        Self::hear(self.stdout.as_mut().unwrap(), text)
    }

    pub(crate) fn hear_terminal(&mut self, text: &str) -> String {
        Self::hear(self.terminal.as_mut().unwrap(), text)
    }

    pub(crate) fn say(&mut self, text: &str) {
        let file = self.stdin.as_mut().or(self.terminal.as_mut()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// Everything until the end of a stream, and that it comes.
pub(crate) fn rest(file: Option<File>) -> String {
    let mut file = file.unwrap();
    let mut all = Vec::new();
    let ended = kept_within(PATIENCE, || match file.read_to_end(&mut all) {
        Ok(_) => true,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    });
    assert!(ended, "the stream does not end: {}", String::from_utf8_lossy(&all));
    String::from_utf8(all).unwrap()
}

/// The end of an exec session, which must be the next reply.
pub(crate) fn code(container: &mut Container, session: u64) -> i32 {
    exec_result(container.node.receive_of(session)).exit_code
}

pub(crate) fn fell_behind(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Detached(detached) => detached.fell_behind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn privileged_an_exec_has_streams_of_its_own_and_an_exit_code() {
    let mut container = started("exec sleep 1000");
    let mut session = open(&mut container, Call::OpenExec(shell("read word; echo got $word; echo bad >&2; exit 7")));
    session.say("this\n");
    assert_eq!(code(&mut container, session.seq), 7);
    assert_eq!((rest(session.stdout).as_str(), rest(session.stderr).as_str()), ("got this\n", "bad\n"));
    assert!(kept_within(PATIENCE, || container.leaves() == 0));
    let session = open(&mut container, Call::OpenExec(shell("kill -9 $$")));
    assert_eq!(code(&mut container, session.seq), 137);
    let missing = OpenExec { args: vec!["/missing".into()], ..shell("") };
    let failure = failed(container.call(Call::OpenExec(missing)));
    assert!(failure.errno == 2 && failure.message.contains("/missing"), "{failure:?}");
    assert_eq!(container.log(), "", "what an exec says is no business of the log");
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_the_end_of_an_execs_input_reaches_it() {
    let mut container = started("exec sleep 1000");
    let mut session = open(&mut container, Call::OpenExec(shell("cat; echo over")));
    session.say("one\ntwo\n");
    session.hear_out("two\n");
    session.stdin = None;
    assert_eq!(code(&mut container, session.seq), 0);
    assert_eq!(rest(session.stdout), "over\n");
    // Streams that nobody wants are no pipes.
    let quiet = OpenExec { stdin: false, stderr: false, ..shell("cat; echo lost >&2; ls -l /proc/self/fd/0") };
    let mut session = open(&mut container, Call::OpenExec(quiet));
    assert!(session.stdin.is_none() && session.stderr.is_none());
    assert_eq!(code(&mut container, session.seq), 0);
    assert!(rest(session.stdout.take()).contains("/dev/null"));
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_an_exec_whose_client_goes_is_killed_with_all_it_started() {
    let mut container = started("exec sleep 1000");
    let mut session = open(&mut container, Call::OpenExec(shell("setsid sleep 551 & echo begun; sleep 552")));
    session.hear_out("begun");
    assert!(kept_within(PATIENCE, || container.runs("sleep551") && container.runs("sleep552")));
    let end = container.send(Call::EndSession(EndSession { session: session.seq }));
    assert!(matches!(container.node.receive_of(end), Outcome::Done(_)));
    assert_eq!(code(&mut container, session.seq), 137);
    assert!(kept_within(PATIENCE, || !container.runs("sleep551") && container.leaves() == 0));
    // Of a session that is over, and of one that never was, nothing is left to end.
    for session in [session.seq, 4711] {
        assert!(matches!(container.call(Call::EndSession(EndSession { session })), Outcome::Done(_)));
    }
    // And when the daemon dies.
    let mut session = open(&mut container, Call::OpenExec(shell("echo begun; sleep 553")));
    session.hear_out("begun");
    container.node.hang_up();
    assert!(kept_within(PATIENCE, || !container.runs("sleep553")));
    container.node.reconnect();
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_a_background_child_does_not_hold_the_end_of_an_exec() {
    let mut container = started("exec sleep 1000");
    let begun = Instant::now();
    let session = open(&mut container, Call::OpenExec(shell("sleep 554 & exit 3")));
    assert_eq!(code(&mut container, session.seq), 3);
    assert!(begun.elapsed() < PATIENCE);
    assert!(kept_within(PATIENCE, || container.runs("sleep554")), "what an exec leaves running goes on");
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_an_exec_in_a_terminal_has_its_size_and_follows_it() {
    let mut container = started("exec sleep 1000");
    let script = "test -t 0 && test -t 2 && stty size; echo $TERM; read x; stty size; exit 4";
    let mut session = open(&mut container, Call::OpenExec(in_terminal(script)));
    assert!(session.stdin.is_none() && session.stdout.is_none() && session.stderr.is_none());
    let heard = session.hear_terminal("xterm");
    assert!(heard.contains("24 80"), "{heard:?}");
    let size = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(session.terminal.as_ref().unwrap(), size).unwrap();
    session.say("\n");
    session.hear_terminal("50 132");
    assert_eq!(code(&mut container, session.seq), 4);
    rest(session.terminal.take());
    // Nobody at the terminal: its programs are told, and killed.
    let mut session = open(&mut container, Call::OpenExec(in_terminal("trap '' HUP; echo begun; sleep 555")));
    session.hear_terminal("begun");
    assert!(matches!(container.call(Call::EndSession(EndSession { session: session.seq })), Outcome::Done(_)));
    assert_eq!(code(&mut container, session.seq), 137);
    assert!(kept_within(PATIENCE, || !container.runs("sleep555")));
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_execs_end_with_their_container() {
    let mut container = started("exec sleep 1000");
    let mut session = open(&mut container, Call::OpenExec(shell("echo begun; sleep 1000")));
    session.hear_out("begun");
    let attached = open(&mut container, Call::Attach(listen(false)));
    container.send(Call::Signal(Signal { signal: 9, all: false }));
    let mut replies = container.collect(3);
    replies.retain(|(_, outcome)| !matches!(outcome, Outcome::Done(_)));
    for (seq, outcome) in replies {
        if seq == session.seq {
            assert_eq!(exec_result(outcome).exit_code, 137);
        } else {
            assert!(seq == attached.seq && !fell_behind(outcome));
        }
    }
    assert_eq!((rest(session.stdout), rest(attached.stdout)), (String::new(), String::new()));
    container.wait();
    container.assert_gone();
}

#[test]
fn privileged_who_is_attached_hears_what_is_logged() {
    let script = "while read line; do echo out $line; echo err $line >&2; done; echo end";
    let mut container = Container::launch(&LaunchOptions { stdin: true, ..LaunchOptions::shell(script) });
    // Before the start: nothing is missed.
    let mut early = open(&mut container, Call::Attach(listen(false)));
    assert!(early.stdin.is_none());
    container.start();
    let mut first = open(&mut container, Call::Attach(listen(true)));
    first.say("one\n");
    first.hear_out("out one\n");
    let mut second = open(&mut container, Call::Attach(listen(true)));
    second.say("two\n");
    first.hear_out("out two\n");
    second.hear_out("out two\n");
    assert_eq!(early.hear_out("two\n"), "out one\nout two\n");
    // The end of a session's input is not that of the container's, which other sessions go on with.
    drop(first);
    let end = container.send(Call::EndSession(EndSession { session: second.seq }));
    let replies = container.collect(3);
    assert!(replies.iter().any(|(seq, outcome)| *seq == end && matches!(outcome, Outcome::Done(_))));
    assert_eq!(
        replies.into_iter().filter(|(seq, _)| *seq != end).filter(|(_, end)| !fell_behind(end.clone())).count(),
        2
    );
    drop(second);
    let mut third = open(&mut container, Call::Attach(Attach { stdin: true, stdout: true, stderr: false }));
    third.say("three\n");
    assert_eq!(third.hear_out("three\n"), "out three\n");
    assert!(third.stderr.is_none());
    let seq = third.seq;
    drop(third);
    assert!(!fell_behind(container.node.receive_of(seq)));
    // A daemon that dies takes its sessions along; a new one attaches again.
    container.node.hang_up();
    assert_eq!(rest(early.stdout), "out three\n");
    container.node.reconnect();
    let mut again = open(&mut container, Call::Attach(listen(true)));
    again.say("four\n");
    again.hear_out("out four\n");
    let numbers = ["one", "two", "three", "four"];
    let expected =
        |stream: &str, prefix: &str| numbers.map(|number| record(stream, "F", &format!("{prefix} {number}"))).to_vec();
    container.await_log("err four");
    let (out, err): (Vec<_>, Vec<_>) = lines(&container.log()).into_iter().partition(|line| line.0 == "stdout");
    assert_eq!((out, err), (expected("stdout", "out"), expected("stderr", "err")));
    drop(again);
    container.node.hang_up();
    container.node.reconnect();
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_stdin_once_ends_with_the_first_session_that_had_it() {
    let options =
        LaunchOptions { stdin: true, stdin_once: true, ..LaunchOptions::shell("cat; echo over; exec sleep 1000") };
    let mut container = Container::launch(&options);
    container.start();
    let listener = open(&mut container, Call::Attach(listen(false)));
    let mut first = open(&mut container, Call::Attach(listen(true)));
    let second = open(&mut container, Call::Attach(listen(true)));
    assert!(first.stdin.is_some() && second.stdin.is_none() && listener.stdin.is_none());
    first.say("text\n");
    first.hear_out("text\n");
    assert!(!container.log().contains("over"));
    first.stdin = None;
    container.await_log("over");
    let third = open(&mut container, Call::Attach(listen(true)));
    assert!(third.stdin.is_none());
    container.node.hang_up();
    container.node.reconnect();
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_a_listener_that_does_not_read_stops_nothing_and_is_let_go() {
    let script = "read x; head -c 8000000 /dev/zero | tr '\\0' x; echo; echo end; exec sleep 1000";
    let mut container = Container::launch(&LaunchOptions { stdin: true, ..LaunchOptions::shell(script) });
    container.start();
    let stuck = open(&mut container, Call::Attach(listen(true)));
    let mut stdin = stuck.stdin.as_ref().unwrap();
    stdin.write_all(b"go\n").unwrap();
    container.await_log("end");
    assert!(fell_behind(container.node.receive_of(stuck.seq)));
    let heard = rest(stuck.stdout);
    assert!(heard.len() >= 64 * 1024 && heard.len() <= 2 << 20, "{}", heard.len());
    let logged: usize = lines(&container.log()).iter().map(|(_, _, content)| content.len()).sum();
    assert_eq!(logged, 8_000_000 + "end".len());
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_a_containers_terminal_is_logged_attached_and_resized() {
    let script = "test -t 0 && test -c /dev/console && echo ready > /dev/console; \
                  while read line; do echo \"<$line>\"; stty size; done";
    let options = LaunchOptions { terminal: true, stdin: true, ..LaunchOptions::shell(script) };
    let mut container = Container::launch(&options);
    container.start();
    container.await_log("ready");
    let mut first = open(&mut container, Call::Attach(listen(true)));
    assert!(first.terminal.is_some() && first.stdin.is_none());
    let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(first.terminal.as_ref().unwrap(), size).unwrap();
    first.say("typed\n");
    let heard = first.hear_out("33 77");
    assert!(heard.contains("<typed>\r\n"), "{heard:?}");
    let seq = first.seq;
    drop(first);
    assert!(!fell_behind(container.node.receive_of(seq)));
    let mut second = open(&mut container, Call::Attach(listen(true)));
    second.say("again\n");
    second.hear_out("<again>");
    assert!(lines(&container.log()).iter().all(|(stream, _, _)| stream == "stdout"), "{}", container.log());
    // The master's copy outlives the container: the shim must not spin on it.
    let terminal = second.terminal.take();
    container.node.hang_up();
    container.node.reconnect();
    container.stop_now();
    drop(terminal);
    container.assert_gone();
}

#[test]
fn privileged_sessions_are_bounded() {
    let mut container = started("exec sleep 1000");
    let sessions: Vec<Session> = (0..64).map(|_| open(&mut container, Call::Attach(listen(false)))).collect();
    let refused = failed(container.call(Call::Attach(listen(false))));
    assert_eq!(refused.kind(), FailureKind::State);
    drop(sessions);
    for (_, outcome) in container.collect(64) {
        assert!(!fell_behind(outcome));
    }
    open(&mut container, Call::Attach(listen(false)));
    container.node.hang_up();
    container.node.reconnect();
    container.stop_now();
    container.assert_gone();
}

#[test]
fn privileged_a_thousand_sessions_leave_no_descriptor_and_no_memory() {
    let mut container = started("exec sleep 1000");
    let round = |container: &mut Container| {
        let mut pipes = open(container, Call::OpenExec(shell("read x; echo $x")));
        pipes.say("x\n");
        assert_eq!(code(container, pipes.seq), 0);
        let terminal = open(container, Call::OpenExec(in_terminal("exit 1")));
        assert_eq!(code(container, terminal.seq), 1);
        let attached = open(container, Call::Attach(listen(false))).seq;
        assert!(!fell_behind(container.node.receive_of(attached)));
        let abandoned = open(container, Call::OpenExec(shell("sleep 1000")));
        let end = container.send(Call::EndSession(EndSession { session: abandoned.seq }));
        container.node.receive_of(end);
        assert_eq!(code(container, abandoned.seq), 137);
    };
    // An end is told before the last of its descriptors is closed: the fewest within a while are what is kept.
    let kept = |container: &Container| {
        let reads = (0..50).map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            container.node.descriptors()
        });
        reads.min().unwrap()
    };
    (0..50).for_each(|_| round(&mut container));
    assert!(kept_within(PATIENCE, || container.leaves() == 0));
    let before = (kept(&container), container.node.resident_kib());
    (0..250).for_each(|_| round(&mut container));
    assert!(kept_within(PATIENCE, || container.leaves() == 0));
    assert_eq!(kept(&container), before.0);
    // Memory is given back when nothing has happened for a while.
    let settled = kept_within(PATIENCE, || container.node.resident_kib() <= before.1 + 128);
    assert!(settled, "{before:?}, now {} KiB", container.node.resident_kib());
    assert_eq!(exec_result(container.call(exec("echo still", 0))).stdout, b"still\n");
    container.stop_now();
    container.assert_gone();
}
