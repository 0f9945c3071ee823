//! Events: whoever hears one sees what it tells of, however quick.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use keelson_runtime::{
    container::ContainerState,
    engine::{
        Engine,
        events::{Event, EventKind},
    },
    sandbox::SandboxPhase,
};

use crate::lab::{Lab, shell};

/// Whether what is told is there for those who ask now.
fn seen(engine: &Engine, event: &Event) -> bool {
    let Some(id) = &event.container else {
        let phase = engine.find_sandbox(event.sandbox.id.as_str()).map(|view| view.phase);
        return match event.kind {
            EventKind::Created | EventKind::Started => phase.is_some(),
            EventKind::Stopped => phase != Some(SandboxPhase::Ready),
            EventKind::Deleted => phase.is_none(),
        };
    };
    let state = engine.find_container(id.as_str()).map(|view| view.state.clone());
    match (event.kind, state) {
        (EventKind::Created, state) => state.is_some(),
        (EventKind::Started, Some(state)) => state != ContainerState::Created,
        (EventKind::Stopped, Some(state)) => matches!(state, ContainerState::Exited(_)),
        (EventKind::Started | EventKind::Stopped, None) => false,
        (EventKind::Deleted, state) => state.is_none(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_what_is_told_can_be_seen_by_the_quickest() {
    let lab = lab!("events_are_seen");
    let engine = lab.engine().await;
    let mut listener = engine.listen().unwrap();
    let (done, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // A thread that asks all the time hears sooner than any client could.
    let quick = std::thread::spawn({
        let (engine, done, told) = (engine.clone(), Arc::clone(&done), Arc::clone(&told));
        move || {
            let mut unseen = Vec::new();
            loop {
                match listener.next().now_or_never() {
                    Some(event) => {
                        let event = event.unwrap();
                        if !seen(&engine, &event) {
                            unseen.push((event.kind, event.container));
                        }
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                    None if done.load(Ordering::Relaxed) => return unseen,
                    None => std::hint::spin_loop(),
                }
            }
        }
    });
    // Nothing is taken away before all that was to be heard of it has been.
    let heard = async |count| {
        let end = Instant::now() + Duration::from_secs(20);
        while told.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < end, "{count} events were to come");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let sandbox = engine.run_sandbox(lab.sandbox("web")).await.unwrap();
    const CONTAINERS: usize = 20;
    for attempt in 0..CONTAINERS {
        let mut spec = shell("exit 0");
        spec.key.attempt = u32::try_from(attempt).unwrap();
        let id = engine.create_container(&sandbox, spec).await.unwrap();
        engine.start_container(&id).await.unwrap();
        lab.exit_of(&engine, &id).await;
        heard(2 + 4 * attempt + 3).await;
        engine.remove_container(&id).await.unwrap();
    }
    engine.stop_sandbox(&sandbox).await.unwrap();
    heard(2 + 4 * CONTAINERS + 1).await;
    engine.remove_sandbox(&sandbox).await.unwrap();
    heard(4 * (CONTAINERS + 1)).await;
    done.store(true, Ordering::Relaxed);
    assert_eq!(quick.join().unwrap(), []);
    lab.end(engine).await;
}
