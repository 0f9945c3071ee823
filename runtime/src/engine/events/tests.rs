use std::sync::atomic::AtomicI64;

use keelson_api::SandboxId;

use super::*;

fn view(byte: u8) -> Arc<SandboxView> {
    Arc::new(SandboxView {
        id: SandboxId::from_random([byte; 32]),
        spec: Arc::default(),
        phase: SandboxPhase::Ready,
        created_at: 1,
        stopped_at: None,
        addresses: Vec::new(),
        netns: None,
        holder_pid: None,
        run_dir: "/".into(),
    })
}

/// Tells of a change of the sandbox with this byte for an id.
fn tell(events: &Events, byte: u8, kind: EventKind) {
    static CLOCK: AtomicI64 = AtomicI64::new(1);
    events.tell(kind, None, || Some(view(byte)), || CLOCK.fetch_add(1, Ordering::Relaxed));
}

fn now(byte: u8, kind: EventKind) -> Event {
    Event { at: 1_000_000, kind, sandbox: view(byte), container: None }
}

async fn next(listener: &mut Listener) -> Result<(u8, EventKind), EventsEnd> {
    let event = listener.next().await?;
    Ok((u8::from_str_radix(&event.sandbox.id.as_str()[..2], 16).unwrap(), event.kind))
}

#[test]
fn with_nobody_listening_nothing_is_even_looked_at() {
    let events = Arc::new(Events::default());
    events.tell(EventKind::Started, None, || panic!("looked at"), || panic!("asked the clock"));
    drop(events.open().unwrap());
    events.tell(EventKind::Started, None, || panic!("looked at"), || panic!("asked the clock"));
}

#[tokio::test]
async fn every_listener_hears_everything_in_order() {
    let events = Arc::new(Events::default());
    let (mut first, mut second) = (events.open().unwrap(), events.open().unwrap());
    for byte in 0..100 {
        tell(&events, byte, EventKind::Created);
        tell(&events, byte, EventKind::Started);
    }
    for listener in [&mut first, &mut second] {
        let mut last = 0;
        for byte in 0..100 {
            for kind in [EventKind::Created, EventKind::Started] {
                let event = listener.next().await.unwrap();
                assert_eq!((event.sandbox.id.clone(), event.kind), (view(byte).id.clone(), kind));
                assert!(event.at > last);
                last = event.at;
            }
        }
    }
}

#[tokio::test]
async fn the_present_is_told_first_and_what_was_in_it_is_not_told_again() {
    let events = Arc::new(Events::default());
    let mut listener = events.open().unwrap();
    // All of this happens while the present is looked at, which shows the first as started and the second as stopped.
    tell(&events, 1, EventKind::Created);
    tell(&events, 1, EventKind::Started);
    tell(&events, 2, EventKind::Stopped);
    tell(&events, 2, EventKind::Deleted);
    tell(&events, 3, EventKind::Created);
    listener.begin_with([now(1, EventKind::Started), now(2, EventKind::Stopped)].into());
    tell(&events, 1, EventKind::Stopped);
    let mut heard = Vec::new();
    let mut last = 0;
    for _ in 0..5 {
        let event = listener.next().await.unwrap();
        assert!(event.at > last, "also what happened before the present was looked at comes later than it");
        last = event.at;
        heard.push((event.sandbox.id.as_str()[1..2].parse().unwrap(), event.kind));
    }
    let want = [
        (1, EventKind::Started),
        (2, EventKind::Stopped),
        (2, EventKind::Deleted),
        (3, EventKind::Created),
        (1, EventKind::Stopped),
    ];
    assert_eq!(heard, want);
}

#[tokio::test]
async fn a_slow_listener_hears_what_it_had_coming_then_why_there_is_no_more() {
    let events = Arc::new(Events::default());
    let (mut slow, mut quick) = (events.open().unwrap(), events.open().unwrap());
    for _ in 0..=QUEUE {
        tell(&events, 7, EventKind::Started);
        assert_eq!(next(&mut quick).await, Ok((7, EventKind::Started)));
    }
    assert_eq!(events.listening.load(Ordering::Relaxed), 1);
    for _ in 0..QUEUE {
        assert_eq!(next(&mut slow).await, Ok((7, EventKind::Started)));
    }
    assert_eq!(next(&mut slow).await, Err(EventsEnd::Slow));
    tell(&events, 8, EventKind::Started);
    assert_eq!(next(&mut quick).await, Ok((8, EventKind::Started)));
}

#[tokio::test]
async fn listeners_are_bounded_and_a_place_is_free_when_one_goes() {
    let events = Arc::new(Events::default());
    let mut all: Vec<_> = (0..LISTENERS).map(|_| events.open().unwrap()).collect();
    assert_eq!(events.open().err(), Some(EventsEnd::Full));
    all.pop();
    let last = events.open();
    assert!(last.is_ok());
    drop((all, last));
    assert_eq!(events.listening.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_end_of_the_daemon_ends_the_listening() {
    let events = Arc::new(Events::default());
    let mut listener = events.open().unwrap();
    tell(&events, 1, EventKind::Stopped);
    events.close();
    assert_eq!(next(&mut listener).await, Ok((1, EventKind::Stopped)));
    assert_eq!(next(&mut listener).await, Err(EventsEnd::Closed));
    assert_eq!(events.open().err(), Some(EventsEnd::Closed));
}
