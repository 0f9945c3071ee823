use keelson_api::shim::{ExecResult, Exit, Failure, FailureKind, Phase, State};

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
    assert!(client.pending.lock().as_ref().unwrap().is_empty());
}

#[tokio::test]
async fn a_process_that_ended_at_once_was_started() {
    let client = pair(Box::new(|request| {
        Some(vec![reply(request.seq, Outcome::Exited(Exit { code: 0, started_at: 5, ..Default::default() }))])
    }));
    let State { phase, started_at, .. } = client.start().await.unwrap();
    assert_eq!((phase, started_at), (i32::from(Phase::Stopped), 5));
}
