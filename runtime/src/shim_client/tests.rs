use keelson_api::shim::{ExecResult, Exit, Failure, FailureKind, Phase, Reply, State};
use tokio::io::AsyncReadExt as _;

use super::*;

/// What a fake shim does about a request: answers, in this order; none: it closes.
pub(crate) type Answer = Box<dyn FnMut(Request) -> Option<Vec<Reply>> + Send>;

/// A shim that answers as told, on its end of the stream.
pub(crate) async fn fake(mut stream: UnixStream, mut answer: Answer) {
    let mut buffer = Vec::new();
    loop {
        while let Some((request, used)) = frame::decode::<Request>(&buffer).unwrap() {
            buffer.drain(..used);
            let Some(replies) = answer(request) else { return };
            for reply in replies {
                if stream.write_all(&frame::encode(&reply)).await.is_err() {
                    return;
                }
            }
        }
        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

pub(crate) fn reply(seq: u64, outcome: Outcome) -> Reply {
    Reply { seq, outcome: Some(outcome) }
}

fn pair(answer: Answer) -> Arc<ShimClient> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(fake(theirs, answer));
    let (client, read) = ShimClient::attach("c1", ours);
    tokio::spawn(read);
    client
}

#[tokio::test]
async fn replies_find_their_callers_in_any_order() {
    let mut held: Vec<Reply> = Vec::new();
    let client = pair(Box::new(move |request| {
        let exec = match request.call {
            Some(Call::ExecSync(exec)) => exec,
            other => panic!("{other:?}"),
        };
        held.push(reply(
            request.seq,
            Outcome::Exec(ExecResult { stdout: exec.args[0].clone().into_bytes(), ..Default::default() }),
        ));
        if held.len() < 3 {
            return Some(Vec::new());
        }
        held.reverse();
        Some(std::mem::take(&mut held))
    }));
    let exec = |word: &str| {
        let client = Arc::clone(&client);
        let exec = shim::ExecSync { args: vec![word.to_owned()], ..Default::default() };
        async move { client.exec(exec).await.unwrap().stdout }
    };
    let (a, b, c) = tokio::join!(exec("a"), exec("b"), exec("c"));
    assert_eq!([a, b, c], [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
}

#[tokio::test]
async fn a_refusal_carries_the_shims_words_and_kind() {
    let failure = Failure {
        step: "exec".into(),
        object: "/bin/nope".into(),
        errno: 2,
        message: "ENOENT (no such program in the image)".into(),
        kind: FailureKind::Invalid.into(),
    };
    let client = pair(Box::new(move |request| Some(vec![reply(request.seq, Outcome::Failed(failure.clone()))])));
    let error = client.start().await.unwrap_err();
    assert_eq!(error.to_string(), "exec `/bin/nope`: ENOENT (no such program in the image)");
    assert_eq!(error.kind(), crate::engine::ErrorKind::Invalid);
}

#[tokio::test]
async fn the_end_of_the_shim_answers_everybody() {
    let client = pair(Box::new(|_| None));
    assert!(matches!(client.stop(15, 0).await, Err(ShimError::Gone { .. })));
    // And those who come later.
    assert!(matches!(client.state().await, Err(ShimError::Gone { .. })));
    assert!(client.delete().await.is_ok());
}

#[tokio::test]
async fn an_answer_to_another_question_is_an_error() {
    let client = pair(Box::new(|request| Some(vec![reply(request.seq, Outcome::Done(shim::Done {}))])));
    assert!(matches!(client.start().await, Err(ShimError::Unexpected { answer: "done", .. })));
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_does_not_answer_is_not_waited_for_for_ever() {
    let client = pair(Box::new(|_| Some(Vec::new())));
    assert!(matches!(client.stop(15, 2_000).await, Err(ShimError::Deadline { .. })));
    assert!(client.pending.is_empty());
}

#[tokio::test]
async fn a_process_that_ended_at_once_was_started() {
    let client = pair(Box::new(|request| {
        Some(vec![reply(request.seq, Outcome::Exited(Exit { code: 0, started_at: 5, ..Default::default() }))])
    }));
    let State { phase, started_at, .. } = client.start().await.unwrap();
    assert_eq!((phase, started_at), (i32::from(Phase::Stopped), 5));
}

/// A shim on a thread of its own that opens every session with the reading end of a pipe in which `hello` is.
fn sessions(theirs: std::os::unix::net::UnixStream) -> std::thread::JoinHandle<Vec<Call>> {
    use std::{io::IoSlice, io::Read as _, mem::MaybeUninit, os::fd::AsFd as _};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    std::thread::spawn(move || {
        let (mut buffer, mut calls) = (Vec::new(), Vec::new());
        loop {
            while let Some((request, used)) = frame::decode::<Request>(&buffer).unwrap() {
                buffer.drain(..used);
                let Some(call) = request.call else { return calls };
                let send = |outcome: Outcome, fds: &[std::os::fd::BorrowedFd<'_>]| {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut ancillary = SendAncillaryBuffer::new(&mut space);
                    if !fds.is_empty() {
                        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
                    }
                    let bytes = frame::encode(&reply(request.seq, outcome));
                    rustix::net::sendmsg(&theirs, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
                };
                if let Call::OpenExec(_) = &call {
                    let (reader, writer) = rustix::pipe::pipe().unwrap();
                    rustix::io::write(&writer, b"hello").unwrap();
                    let streams = shim::Streams { stdout: true, ..Default::default() };
                    send(Outcome::Streams(streams), &[reader.as_fd()]);
                    send(Outcome::Exec(ExecResult { exit_code: 3, ..Default::default() }), &[]);
                } else if let Call::Attach(_) = &call {
                    // Promises a stream and sends none.
                    send(Outcome::Streams(shim::Streams { stdin: true, ..Default::default() }), &[]);
                } else {
                    send(Outcome::Done(shim::Done {}), &[]);
                }
                calls.push(call);
            }
            let mut chunk = [0; 4096];
            match (&theirs).read(&mut chunk) {
                Ok(0) | Err(_) => return calls,
                Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            }
        }
    })
}

#[tokio::test]
async fn a_sessions_streams_come_with_its_first_answer_and_its_end_with_the_second() {
    use std::io::Read as _;

    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (client, read) = ShimClient::attach("c1", UnixStream::from_std(ours).unwrap());
    let reading = tokio::spawn(read);
    let shim = sessions(theirs);
    for _ in 0..3 {
        let mut session = client.open("exec", Call::OpenExec(shim::OpenExec::default())).await.unwrap();
        assert_eq!((session.fds.len(), session.streams.stdout), (1, true));
        let mut said = String::new();
        std::fs::File::from(session.fds.pop().unwrap()).read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");
        let end = session.ended.wait_for(Option::is_some).await.unwrap().clone();
        assert!(matches!(end, Some(Outcome::Exec(ExecResult { exit_code: 3, .. }))));
    }
    // A promise that is not kept ends the session, and so does a caller who goes away.
    let broken = client.open("attach", Call::Attach(shim::Attach::default())).await;
    assert!(matches!(broken, Err(ShimError::Unexpected { answer: "streams", .. })));
    client.state().await.unwrap_err();
    reading.abort();
    drop(client);
    let calls = tokio::task::spawn_blocking(move || shim.join().unwrap()).await.unwrap();
    let ends = calls.iter().filter(|call| matches!(call, Call::EndSession(_))).count();
    assert_eq!(ends, 1, "{calls:?}");
}
