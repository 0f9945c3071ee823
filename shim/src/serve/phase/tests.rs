use keelson_api::shim::{
    Attach, Delete, EndSession, ExecSync, GetState, Launch, OpenExec, ReopenLog, Signal, Start, Stop,
};
use proptest::prelude::*;

use super::*;

fn record() -> ExitRecord {
    ExitRecord { version: 1, code: 0, signal: None, started_at: 0, finished_at: 0, oom_killed: false }
}

fn stop(signal: i32, grace_ms: u64) -> Call {
    Call::Stop(Stop { signal, grace_ms })
}

fn all_phases(now: Instant) -> Vec<Phase<()>> {
    let grace = End::Grace { signal: 15, kill_at: now + Duration::from_secs(10) };
    vec![
        Phase::Empty,
        Phase::Created { container: () },
        Phase::Running { container: (), started_at: 1 },
        Phase::Stopping { container: (), started_at: 1, end: grace },
        Phase::Stopping { container: (), started_at: 1, end: End::Killed { again_at: now } },
        Phase::Ending { container: (), record: record(), drain: Drain::begin(now) },
        Phase::Ended { record: record() },
    ]
}

#[test]
fn each_state_takes_what_it_can() {
    let now = Instant::now();
    let table: [(Call, [Result<Step, Denied>; 7]); 10] = {
        use Denied as D;
        use Step as S;
        [
            (
                Call::Launch(Launch::default()),
                [
                    Ok(S::Launch),
                    Err(D::AlreadyLaunched),
                    Err(D::AlreadyLaunched),
                    Err(D::AlreadyLaunched),
                    Err(D::AlreadyLaunched),
                    Err(D::AlreadyLaunched),
                    Err(D::AlreadyLaunched),
                ],
            ),
            (
                Call::Start(Start {}),
                [
                    Err(D::NotLaunched),
                    Ok(S::Start),
                    Err(D::AlreadyStarted),
                    Err(D::Stopping),
                    Err(D::Stopping),
                    Err(D::Ended),
                    Err(D::Ended),
                ],
            ),
            (
                Call::State(GetState {}),
                [Ok(S::Tell), Ok(S::Tell), Ok(S::Tell), Ok(S::Tell), Ok(S::Tell), Ok(S::Tell), Ok(S::TellExit)],
            ),
            (
                Call::Signal(Signal::default()),
                [
                    Err(D::NotLaunched),
                    Ok(S::Signal),
                    Ok(S::Signal),
                    Ok(S::Signal),
                    Ok(S::Signal),
                    Err(D::Ended),
                    Err(D::Ended),
                ],
            ),
            (
                Call::ExecSync(ExecSync::default()),
                [
                    Err(D::NotLaunched),
                    Err(D::NotStarted),
                    Ok(S::Exec),
                    Ok(S::Exec),
                    Err(D::Stopping),
                    Err(D::Ended),
                    Err(D::Ended),
                ],
            ),
            (
                Call::OpenExec(OpenExec::default()),
                [
                    Err(D::NotLaunched),
                    Err(D::NotStarted),
                    Ok(S::Exec),
                    Ok(S::Exec),
                    Err(D::Stopping),
                    Err(D::Ended),
                    Err(D::Ended),
                ],
            ),
            (
                Call::Attach(Attach::default()),
                [
                    Err(D::NotLaunched),
                    Ok(S::Attach),
                    Ok(S::Attach),
                    Ok(S::Attach),
                    Ok(S::Attach),
                    Err(D::Ended),
                    Err(D::Ended),
                ],
            ),
            (Call::EndSession(EndSession::default()), [Ok(S::EndSession); 7]),
            (
                Call::ReopenLog(ReopenLog {}),
                [
                    Err(D::NotLaunched),
                    Ok(S::ReopenLog),
                    Ok(S::ReopenLog),
                    Ok(S::ReopenLog),
                    Ok(S::ReopenLog),
                    Ok(S::ReopenLog),
                    Err(D::Ended),
                ],
            ),
            (
                Call::Delete(Delete {}),
                [Ok(S::End), Ok(S::Kill), Ok(S::Kill), Ok(S::Kill), Ok(S::Kill), Ok(S::AwaitEnd), Ok(S::End)],
            ),
        ]
    };
    for (call, expected) in table {
        for (phase, expected) in all_phases(now).iter().zip(expected) {
            assert_eq!(decide(phase, &call, now), expected, "{call:?} in {phase:?}");
        }
    }
}

#[test]
fn a_later_stop_shortens_the_grace_and_never_lengthens_it() {
    let now = Instant::now();
    let phase = &all_phases(now)[3];
    let promised = now + Duration::from_secs(10);
    let sooner = now + Duration::from_secs(2);
    assert_eq!(decide(phase, &stop(15, 2_000), now), Ok(Step::Stop { signal: None, kill_at: sooner }));
    assert_eq!(decide(phase, &stop(15, 60_000), now), Ok(Step::Stop { signal: None, kill_at: promised }));
    assert_eq!(decide(phase, &stop(2, u64::MAX), now), Ok(Step::Stop { signal: Some(2), kill_at: promised }));
    assert_eq!(decide(phase, &stop(15, 0), now), Ok(Step::Kill));
}

#[test]
fn stop_is_idempotent_after_exit() {
    let now = Instant::now();
    let phases = all_phases(now);
    assert_eq!(decide(&phases[5], &stop(15, 1), now), Ok(Step::AwaitEnd));
    assert_eq!(decide(&phases[6], &stop(15, 1), now), Ok(Step::TellExit));
    assert_eq!(decide(&phases[1], &stop(15, 30_000), now), Ok(Step::Kill));
    assert_eq!(decide(&phases[0], &stop(15, 1), now), Err(Denied::NotLaunched));
}

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a few of them, in a test")]
enum Event {
    Call(Call),
    InitEnds,
    Passes(u64),
    Drained,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Call(Call::Launch(Launch::default()))),
        Just(Event::Call(Call::Start(Start {}))),
        Just(Event::Call(Call::State(GetState {}))),
        (1..20_i32, 0..50_u64).prop_map(|(signal, grace)| Event::Call(stop(signal, grace))),
        Just(Event::Call(Call::ExecSync(ExecSync::default()))),
        Just(Event::Call(Call::Delete(Delete {}))),
        Just(Event::InitEnds),
        (0..30_u64).prop_map(Event::Passes),
        Just(Event::Drained),
    ]
}

proptest! {
    /// Whatever arrives in whatever order: one launch, one start, no promise broken, and a rank that never falls.
    #[test]
    fn any_history_is_lawful(events in prop::collection::vec(event(), 0..40)) {
        let mut now = Instant::now();
        let mut phase: Phase<()> = Phase::Empty;
        let (mut launches, mut starts, mut promised) = (0, 0, None::<Instant>);
        let rank = |phase: &Phase<()>| match phase {
            Phase::Empty => 0,
            Phase::Created { .. } => 1,
            Phase::Running { .. } => 2,
            Phase::Stopping { end: End::Grace { .. }, .. } => 3,
            Phase::Stopping { end: End::Killed { .. }, .. } => 4,
            Phase::Ending { .. } => 5,
            Phase::Ended { .. } => 6,
        };
        for event in events {
            let before = rank(&phase);
            match event {
                Event::Passes(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    if let Phase::Stopping { end: End::Grace { kill_at, .. }, .. } = &phase && *kill_at <= now {
                        phase.stopping(End::Killed { again_at: now });
                    }
                }
                Event::InitEnds => phase.ending(record(), now),
                Event::Drained => { phase.ended(); }
                Event::Call(call) => match decide(&phase, &call, now) {
                    Ok(Step::Launch) => { launches += 1; phase = Phase::Created { container: () }; }
                    Ok(Step::Start) => { starts += 1; phase.started(1); }
                    Ok(Step::Stop { signal, kill_at }) => {
                        if let Some(promised) = promised { prop_assert!(kill_at <= promised); }
                        promised = Some(kill_at);
                        let sent = match &phase { Phase::Stopping { end: End::Grace { signal, .. }, .. } => *signal, _ => 0 };
                        prop_assert!(signal.is_some() || sent != 0);
                        phase.stopping(End::Grace { signal: signal.unwrap_or(sent), kill_at });
                    }
                    Ok(Step::Kill) => phase.stopping(End::Killed { again_at: now }),
                    Ok(Step::Exec) => prop_assert!(matches!(rank(&phase), 2 | 3)),
                    Ok(Step::Checkpoint) => prop_assert_eq!(rank(&phase), 2),
                    Ok(Step::Restore) => { starts += 1; phase.started(1); }
                    Ok(Step::Pause) => prop_assert!(matches!(rank(&phase), 1..=4)),
                    Ok(Step::TellExit) => prop_assert_eq!(rank(&phase), 6),
                    Ok(Step::AwaitEnd) => prop_assert!(matches!(rank(&phase), 4 | 5)),
                    Ok(Step::Tell | Step::Signal | Step::Attach | Step::EndSession | Step::ReopenLog | Step::End)
                    | Err(_) => {}
                },
            }
            prop_assert!(rank(&phase) >= before, "{before} to {}", rank(&phase));
            prop_assert!(launches <= 1 && starts <= launches);
        }
    }
}
