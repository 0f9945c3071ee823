use std::{os::unix::net::UnixListener, path::PathBuf, time::Duration};

use keelson_api::shim::{
    Call, Delete, Done, Exit as WireExit, Outcome, PID_FILE, Phase, SOCKET_FILE, State as WireState,
};

use super::*;
use crate::{
    container::{
        ContainerState,
        view::{Exit, ExitReason},
    },
    engine::{Engine, EngineConfig},
    sandbox::{
        SandboxPhase,
        spec::{IpcMode, Namespaces, NetworkMode, PidMode},
    },
    shim_client::tests::{fake, reply},
    store::record::{
        Record as _,
        tests::{container, sandbox},
    },
};

/// Folders of an engine, with a program for shims that is never started.
struct Node {
    scratch: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { scratch: tempfile::tempdir().unwrap() };
        node.state().make().unwrap();
        node.boot(&boot_id().unwrap());
        node
    }

    fn state(&self) -> StateDir {
        StateDir::new(self.scratch.path().join("run"))
    }

    /// The state folder was filled under this boot.
    fn boot(&self, id: &str) {
        crate::store::replace(&self.state().boot_id(), id.as_bytes()).unwrap();
    }

    async fn engine(&self) -> Engine {
        let root = self.scratch.path().join("root");
        let images = keelson_imageservice::Config { root: root.clone(), ..Default::default() };
        Engine::open(EngineConfig::new(root, self.scratch.path().join("run"), "/bin/true".into(), images))
            .await
            .unwrap()
    }

    /// Records as an earlier daemon left them, in the folder and in the database.
    fn put(&self, sandboxes: &[SandboxRecord], containers: &[ContainerRecord]) {
        let root = crate::dirs::RootDir::new(self.scratch.path().join("root"));
        root.make().unwrap();
        let store = crate::store::Store::open(&root, self.state()).unwrap();
        for record in sandboxes {
            self.state().sandbox(&record.id).make().unwrap();
            store.put_sandbox(record).unwrap();
        }
        for record in containers {
            self.state().container(&record.id).make().unwrap();
            store.put_container(record).unwrap();
        }
        store.flush();
    }

    /// A shim of this container that answers a question for its state so, and ends at a stop or delete.
    fn shim(&self, id: &ContainerId, state: WireState) {
        let dir = self.state().container(id);
        let listener = UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap();
        crate::store::write_new(&dir.path().join(PID_FILE), b"1", 0o600).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let exit = dir.exit();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, exit) = (state.clone(), exit.clone());
                fake(stream, Box::new(move |request| answer(request, &state, &exit))).await;
            }
        });
    }

    /// How a container ended, as a shim leaves it.
    fn exit(&self, id: &ContainerId, code: i32) {
        leave_exit(&self.state().container(id).exit(), code);
    }
}

fn leave_exit(path: &Path, code: i32) {
    let record = ExitRecord { version: 1, code, signal: None, started_at: 5, finished_at: 9, oom_killed: false };
    crate::store::replace(path, &serde_json::to_vec(&record).unwrap()).unwrap();
}

fn answer(
    request: keelson_api::shim::Request,
    state: &WireState,
    exit: &Path,
) -> Option<Vec<keelson_api::shim::Reply>> {
    match request.call {
        Some(Call::State(_)) => Some(vec![reply(request.seq, Outcome::State(state.clone()))]),
        Some(Call::Stop(_)) => {
            leave_exit(exit, 143);
            Some(vec![reply(
                request.seq,
                Outcome::Exited(WireExit { code: 143, signal: 15, finished_at: 9, ..Default::default() }),
            )])
        }
        Some(Call::Delete(Delete {})) => Some(vec![reply(request.seq, Outcome::Done(Done {}))]),
        other => panic!("{other:?}"),
    }
}

/// A sandbox in the host's namespaces: nothing of it is in the kernel.
fn host_sandbox(byte: u8) -> SandboxRecord {
    let mut record = sandbox(byte);
    std::sync::Arc::make_mut(&mut record.spec).namespaces =
        Namespaces { network: NetworkMode::Host, pid: PidMode::Container, ipc: IpcMode::Host };
    record.state = SandboxMachine::Ready { addresses: Vec::new(), holder_pid: None };
    record.made_cgroup = false;
    record
}

/// A container whose cgroup nobody ever made.
fn lonely(byte: u8, state: ContainerMachine) -> ContainerRecord {
    let mut record = container(1, byte);
    record.cgroups_path = format!("/keelson-recovery-test-{}/{}", std::process::id(), record.id);
    std::sync::Arc::make_mut(&mut record.spec).key.name = byte.to_string();
    record.state = state;
    record
}

fn running() -> ContainerMachine {
    ContainerMachine::Running { pid: 1, started_at: 5 }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn state_of(engine: &Engine, id: &ContainerId) -> Option<ContainerState> {
    engine.find_container(id.as_str()).map(|view| view.state.clone())
}

fn exit_of(engine: &Engine, id: &ContainerId) -> Option<Exit> {
    match state_of(engine, id) {
        Some(ContainerState::Exited(exit)) => Some(exit),
        Some(ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown) | None => None,
    }
}

#[tokio::test]
async fn privileged_assumption_1_a_state_folder_of_another_boot_is_not_believed() {
    let node = Node::new();
    let record = lonely(2, running());
    node.put(&[host_sandbox(1)], std::slice::from_ref(&record));
    node.exit(&record.id, 0);
    let stray = node.state().containers().join("stray");
    std::fs::create_dir(&stray).unwrap();
    node.boot("another");
    let engine = node.engine().await;
    // The exit record in the folder is from before: it tells nothing about this boot.
    assert_eq!(exit_of(&engine, &record.id).unwrap().code, 255);
    assert!(!stray.exists());
    assert_eq!(recorded_boot(&node.state()), Some(boot_id().unwrap()));
    engine.drain().await;
}

#[tokio::test]
async fn privileged_assumption_2_a_file_is_newer_than_its_row_and_a_row_alone_was_removed() {
    let node = Node::new();
    let with_file = lonely(2, running());
    let row_alone = lonely(3, running());
    node.put(&[host_sandbox(1)], &[with_file.clone(), row_alone.clone()]);
    let mut newer = with_file.clone();
    newer.state = ContainerMachine::Exited(Exit::unseen(5, 6, "as the file says"));
    let path = node.state().container(&newer.id).path().join("record.json");
    crate::store::replace(&path, &serde_json::to_vec(&newer).unwrap()).unwrap();
    std::fs::remove_dir_all(node.state().container(&row_alone.id).path()).unwrap();
    let engine = node.engine().await;
    assert_eq!(exit_of(&engine, &with_file.id).unwrap().message, "as the file says");
    assert!(engine.find_container(row_alone.id.as_str()).is_none(), "its removal was answered before the row went");
    engine.drain().await;
}

#[tokio::test]
async fn privileged_assumption_3_after_a_reboot_nothing_runs_and_nothing_is_forgotten() {
    let node = Node::new();
    let states = [
        running(),
        ContainerMachine::Created { pid: 1 },
        ContainerMachine::Stopping { pid: 1, started_at: 5, grace_ms: 9 },
        ContainerMachine::Exited(Exit::unseen(1, 2, "before")),
        ContainerMachine::Unknown { started_at: 5 },
    ];
    let records: Vec<_> = (2..).zip(states).map(|(byte, state)| lonely(byte, state)).collect();
    node.put(&[sandbox(1)], &records);
    std::fs::remove_dir_all(node.scratch.path().join("run")).unwrap();
    let engine = node.engine().await;
    let view = engine.find_sandbox(sandbox(1).id.as_str()).unwrap();
    assert_eq!((view.phase, view.addresses.len()), (SandboxPhase::NotReady, 0));
    assert_eq!(view.spec.annotations, sandbox(1).spec.annotations);
    for record in &records {
        let exit = exit_of(&engine, &record.id).unwrap();
        assert_eq!((exit.code, exit.reason), (255, ExitReason::Unknown), "{:?}", record.state);
    }
    engine.remove_sandbox(&view.id).await.unwrap();
    assert!(engine.containers().is_empty());
    engine.drain().await;
}

#[tokio::test]
async fn privileged_assumption_4_what_was_being_created_is_undone() {
    let node = Node::new();
    let mut unborn = host_sandbox(2);
    unborn.state = SandboxMachine::Creating;
    std::sync::Arc::make_mut(&mut unborn.spec).key.uid = "unborn".into();
    let half = lonely(3, ContainerMachine::Creating);
    let of_unborn = ContainerRecord { sandbox: unborn.id.clone(), ..lonely(4, running()) };
    node.put(&[host_sandbox(1), unborn.clone()], &[half.clone(), of_unborn.clone()]);
    node.shim(&half.id, WireState { phase: Phase::Created.into(), pid: 1, ..Default::default() });
    let engine = node.engine().await;
    assert_eq!((engine.sandboxes().len(), engine.containers().len()), (1, 0));
    for path in [
        node.state().sandbox(&unborn.id).path().to_owned(),
        node.state().container(&half.id).path().to_owned(),
        node.state().container(&of_unborn.id).path().to_owned(),
    ] {
        assert!(!path.exists(), "{}", path.display());
    }
    // Its name is free.
    assert!(engine.run_sandbox((*unborn.spec).clone()).await.is_ok_and(|id| id != unborn.id));
    for view in engine.sandboxes() {
        engine.remove_sandbox(&view.id).await.unwrap();
    }
    engine.drain().await;
}

#[tokio::test]
async fn privileged_assumption_5_shims_tell_what_became_of_their_containers() {
    let node = Node::new();
    let alive = lonely(2, ContainerMachine::Starting { pid: 1 });
    let waiting = lonely(3, ContainerMachine::Starting { pid: 1 });
    let ended = lonely(4, running());
    let lost = lonely(5, running());
    node.put(&[host_sandbox(1)], &[alive.clone(), waiting.clone(), ended.clone(), lost.clone()]);
    node.shim(&alive.id, WireState { phase: Phase::Running.into(), pid: 1, started_at: 77, ..Default::default() });
    node.shim(&waiting.id, WireState { phase: Phase::Created.into(), pid: 1, ..Default::default() });
    node.exit(&ended.id, 3);
    let engine = node.engine().await;
    assert_eq!(state_of(&engine, &alive.id), Some(ContainerState::Running { started_at: 77 }));
    assert_eq!(state_of(&engine, &waiting.id), Some(ContainerState::Created));
    assert_eq!(exit_of(&engine, &ended.id).unwrap().code, 3);
    eventually("the lost one is told to have ended unseen", || exit_of(&engine, &lost.id).is_some()).await;
    assert_eq!(exit_of(&engine, &lost.id).unwrap().code, 255);
    // And the living still obey.
    engine.stop_container(&alive.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(exit_of(&engine, &alive.id).unwrap().code, 143);
    engine.drain().await;
}

#[tokio::test]
async fn privileged_assumption_6_promised_stops_and_removals_are_finished() {
    let node = Node::new();
    let stopping = lonely(2, ContainerMachine::Stopping { pid: 1, started_at: 5, grace_ms: 100 });
    let removing = lonely(3, ContainerMachine::Removing(Exit::unseen(1, 2, "")));
    let mut gone = host_sandbox(7);
    gone.state = SandboxMachine::Removing;
    std::sync::Arc::make_mut(&mut gone.spec).key.uid = "gone".into();
    let of_gone = ContainerRecord { sandbox: gone.id.clone(), ..lonely(4, running()) };
    let mut closing = host_sandbox(8);
    closing.state = SandboxMachine::Stopping;
    std::sync::Arc::make_mut(&mut closing.spec).key.uid = "closing".into();
    let of_closing = ContainerRecord { sandbox: closing.id.clone(), ..lonely(5, running()) };
    node.put(
        &[host_sandbox(1), gone.clone(), closing.clone()],
        &[stopping.clone(), removing.clone(), of_gone.clone(), of_closing.clone()],
    );
    for id in [&stopping.id, &of_gone.id, &of_closing.id] {
        node.shim(id, WireState { phase: Phase::Running.into(), pid: 1, started_at: 5, ..Default::default() });
    }
    let engine = node.engine().await;
    eventually("the stop ends", || exit_of(&engine, &stopping.id).is_some()).await;
    eventually("the removal ends", || engine.find_container(removing.id.as_str()).is_none()).await;
    eventually("the sandbox goes with its container", || {
        engine.find_sandbox(gone.id.as_str()).is_none() && engine.find_container(of_gone.id.as_str()).is_none()
    })
    .await;
    eventually("the sandbox stops", || exit_of(&engine, &of_closing.id).is_some()).await;
    assert_eq!(engine.find_sandbox(closing.id.as_str()).unwrap().phase, SandboxPhase::NotReady);
    engine.drain().await;
    assert!(!node.state().sandbox(&gone.id).path().exists());
}

#[tokio::test]
async fn privileged_assumption_7_leftovers_without_a_record_are_taken_away() {
    let node = Node::new();
    node.put(&[host_sandbox(1)], &[]);
    let stray = SandboxId::from_random([9; 32]);
    let dir = node.state().sandbox(&stray);
    dir.make().unwrap();
    keelson_sys::namespace::in_new(keelson_sys::namespace::NamespaceKinds::UTS, || {
        keelson_sys::namespace::pin(keelson_sys::namespace::NamespaceKinds::UTS, &dir.uts())
    })
    .unwrap()
    .unwrap();
    let container = node.state().container(&ContainerId::from_random([8; 32]));
    container.make().unwrap();
    let engine = node.engine().await;
    assert!(!dir.path().exists() && !container.path().exists());
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir.path().to_str().unwrap()));
    assert_eq!(engine.sandboxes().len(), 1);
    engine.drain().await;
}

#[tokio::test]
async fn privileged_assumption_8_a_damaged_record_or_database_does_not_keep_the_daemon_from_starting() {
    let node = Node::new();
    let good = lonely(2, ContainerMachine::Exited(Exit::unseen(1, 2, "")));
    let bad = lonely(3, running());
    node.put(&[host_sandbox(1)], &[good.clone(), bad.clone()]);
    let path: PathBuf = node.state().container(&bad.id).path().join("record.json");
    crate::store::replace(&path, b"{\"version\":1,\"id\":").unwrap();
    crate::store::replace(&node.scratch.path().join("root/state.redb"), b"not a database").unwrap();
    let engine = node.engine().await;
    assert_eq!((engine.sandboxes().len(), engine.containers().len()), (1, 1));
    engine.drain().await;
    drop(engine);
    // The database was filled again from the folder.
    std::fs::remove_dir_all(node.scratch.path().join("run")).unwrap();
    let engine = node.engine().await;
    assert_eq!(engine.containers().len(), 1);
    engine.drain().await;
}

#[tokio::test]
async fn privileged_a_record_of_a_newer_keelson_is_not_touched() {
    let node = Node::new();
    node.put(&[host_sandbox(1)], &[]);
    let path = node.state().sandbox(&host_sandbox(1).id).path().join("record.json");
    let newer = format!(r#"{{"version":{}}}"#, SandboxRecord::VERSION + 1);
    crate::store::replace(&path, newer.as_bytes()).unwrap();
    let root = node.scratch.path().join("root");
    let images = keelson_imageservice::Config { root: root.clone(), ..Default::default() };
    let opened =
        Engine::open(EngineConfig::new(root, node.scratch.path().join("run"), "/bin/true".into(), images)).await;
    assert!(matches!(opened, Err(OpenError::Version { found: 2, known: 1, .. })));
    assert_eq!(std::fs::read_to_string(path).unwrap(), newer);
}
