use proptest::prelude::*;

use super::*;

fn exit() -> Exit {
    Exit { code: 0, reason: ExitReason::Completed, message: String::new(), started_at: 5, finished_at: 9 }
}

fn states() -> Vec<State> {
    vec![
        State::Creating,
        State::Created { pid: 7 },
        State::Starting { pid: 7 },
        State::Running { pid: 7, started_at: 5 },
        State::Stopping { pid: 7, started_at: 5, grace_ms: 30_000 },
        State::Stopping { pid: 7, started_at: 0, grace_ms: 30_000 },
        State::Exited(exit()),
        State::Unknown { started_at: 5 },
        State::Removing(exit()),
    ]
}

#[test]
fn stop_is_idempotent_after_exit() {
    for state in [State::Exited(exit()), State::Removing(exit())] {
        assert_eq!(decide(&state, &Request::Stop { grace_ms: 0 }), Ok(Step::Done));
    }
}

#[test]
fn stop_and_remove_are_never_denied() {
    for state in states() {
        assert!(decide(&state, &Request::Stop { grace_ms: 1 }).is_ok(), "{state:?}");
        assert!(decide(&state, &Request::Remove).is_ok(), "{state:?}");
    }
}

#[test]
fn a_shorter_grace_hastens_a_longer_one_joins() {
    let state = State::Stopping { pid: 7, started_at: 5, grace_ms: 30_000 };
    assert_eq!(decide(&state, &Request::Stop { grace_ms: 100 }), Ok(Step::Hasten { grace_ms: 100 }));
    assert_eq!(decide(&state, &Request::Stop { grace_ms: 30_000 }), Ok(Step::Join));
    assert_eq!(decide(&state, &Request::Stop { grace_ms: 60_000 }), Ok(Step::Join));
}

#[test]
fn a_start_is_begun_once_and_joined_or_done_afterwards() {
    let state = State::Created { pid: 7 };
    assert_eq!(decide(&state, &Request::Start), Ok(Step::Begin));
    let state = state.after(&Event::StartSent);
    assert_eq!(decide(&state, &Request::Start), Ok(Step::Join));
    let state = state.after(&Event::Started { started_at: 5 });
    assert_eq!(decide(&state, &Request::Start), Ok(Step::Done));
    let state = state.after(&Event::Exited(exit()));
    assert_eq!(decide(&state, &Request::Start), Err(Denied { state: "exited" }));
}

#[test]
fn a_container_killed_before_its_start_was_never_running() {
    let state = State::Created { pid: 7 }.after(&Event::StopSent { grace_ms: 0 });
    assert_eq!(state.outside(), ContainerState::Created);
}

#[test]
fn reasons_follow_from_the_record() {
    let record = |code, signal, oom_killed| keelson_api::ExitRecord {
        version: 1,
        code,
        signal,
        started_at: 1,
        finished_at: 2,
        oom_killed,
    };
    for (given, want) in [
        (record(0, None, false), ExitReason::Completed),
        (record(3, None, false), ExitReason::Error),
        (record(137, Some(9), true), ExitReason::OomKilled),
        (record(1, None, true), ExitReason::OomKilled),
        // A child was killed, the container itself ended well.
        (record(0, None, true), ExitReason::Completed),
        (record(143, Some(15), false), ExitReason::Error),
    ] {
        assert_eq!(Exit::of(&given).reason, want, "{given:?}");
    }
}

/// The model: a container is absent, alive, or dead, and never comes back to life.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Life {
    Alive,
    Dead,
}

fn life(state: &State) -> Life {
    if state.alive() { Life::Alive } else { Life::Dead }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (2..9i32).prop_map(|pid| Event::Launched { pid }),
        Just(Event::StartSent),
        (1..9i64).prop_map(|started_at| Event::Started { started_at }),
        Just(Event::StartFailed(Exit::not_started(3, "exec".into()))),
        (0..9u64).prop_map(|grace_ms| Event::StopSent { grace_ms }),
        (0..9i32).prop_map(|code| Event::Exited(Exit { code, ..exit() })),
        Just(Event::Lost),
        Just(Event::RemoveBegun),
        Just(Event::RemoveFailed),
    ]
}

proptest! {
    #[test]
    fn the_dead_stay_dead_and_their_exit_never_changes(events in proptest::collection::vec(event(), 0..30)) {
        let mut state = State::Creating;
        let mut first: Option<Exit> = None;
        for event in events {
            let next = state.after(&event);
            prop_assert!(life(&next) >= life(&state), "{state:?} {event:?} {next:?}");
            if let State::Exited(exit) | State::Removing(exit) = &next {
                prop_assert_eq!(first.get_or_insert_with(|| exit.clone()), exit);
            }
            state = next;
        }
        // Whatever happened: an exit and a remove end it.
        let gone = state.after(&Event::Exited(exit())).after(&Event::RemoveBegun);
        prop_assert!(matches!(gone, State::Removing(_)));
    }

    #[test]
    fn a_pid_is_known_exactly_while_a_shim_holds_the_container(events in proptest::collection::vec(event(), 0..30)) {
        let mut state = State::Creating;
        for event in events {
            state = state.after(&event);
            let held = matches!(state, State::Created { .. } | State::Starting { .. } | State::Running { .. } | State::Stopping { .. });
            prop_assert_eq!(state.pid().is_some(), held);
        }
    }
}
