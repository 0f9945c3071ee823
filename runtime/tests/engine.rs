//! The engine on a real kernel: sandboxes, containers, exec, logs, crashes, and the audit that nothing is left.
//! Needs root; each test has folders, a bridge and names of its own, and takes them away.
//! Owns what it makes. Must never pass because something was missing: that is said as a SKIP line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

#[path = "engine/lab.rs"]
mod lab;

use std::time::{Duration, Instant};

use keelson_runtime::{
    container::{
        ContainerError, ContainerState,
        spec::{ContainerPid, EnvVar, RunAs, Seccomp, Volume},
        view::ExitReason,
    },
    engine::ErrorKind,
    resources::Resources,
    sandbox::{
        SandboxError, SandboxPhase,
        spec::{IpcMode, NetworkMode, PidMode},
    },
};
use lab::{Lab, shell, sleeper};

/// A lab, or the reason why there is none, told.
macro_rules! lab {
    ($name:literal) => {
        match Lab::new($name).await {
            Ok(lab) => lab,
            Err(why) => {
                println!("SKIP {}: {why}", $name);
                return;
            }
        }
    };
}

#[path = "engine/events.rs"]
mod events;
#[path = "engine/retire.rs"]
mod retire;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_pod_runs_answers_and_leaves_nothing() {
    let lab = lab!("a_pod_runs");
    let engine = lab.engine().await;
    let sandbox = engine.run_sandbox(lab.sandbox("web")).await.unwrap();
    let view = engine.find_sandbox(sandbox.as_str()).unwrap();
    assert_eq!(view.phase, SandboxPhase::Ready);
    assert!(!view.addresses.is_empty());

    let mut spec = shell("echo out; echo err >&2; cat /etc/hostname; exec sleep 1000");
    spec.env.push(EnvVar { name: "RAW".into(), value: vec![0xff, 0xfe] });
    spec.security.seccomp = Seccomp::RuntimeDefault;
    let container = engine.create_container(&sandbox, spec).await.unwrap();
    assert_eq!(engine.find_container(container.as_str()).unwrap().state, ContainerState::Created);
    engine.start_container(&container).await.unwrap();
    // A repeat, whose first answer was lost.
    engine.start_container(&container).await.unwrap();
    lab.log_has("web/0.log", "stderr F err").await;
    lab.log_has("web/0.log", "stdout F out").await;
    lab.log_has("web/0.log", "stdout F web").await;

    let exec = |words: &str| {
        engine.exec_sync(&container, words.split(' ').map(str::to_owned).collect(), Some(Duration::from_secs(10)))
    };
    assert_eq!(exec("echo hello").await.unwrap().stdout, b"hello\n");
    assert_eq!(exec("false").await.unwrap().exit_code, 1);
    assert!(exec("env").await.unwrap().stdout.windows(6).any(|bytes| bytes == b"RAW=\xff\xfe"));
    let address = String::from_utf8(exec("ip -4 addr show eth0").await.unwrap().stdout).unwrap();
    assert!(address.contains(&view.addresses[0].to_string()), "{address}");
    let late = engine.exec_sync(&container, vec!["sleep".into(), "100".into()], Some(Duration::from_millis(200))).await;
    assert!(matches!(late, Err(ContainerError::ExecTimeout { .. })), "{late:?}");

    let stats = engine.container_stats(&container).await.unwrap();
    assert!(stats.usage.is_some_and(|usage| usage.cpu_ns > 0 && usage.memory_usage > 0), "{stats:?}");
    engine.reopen_log(&container).await.unwrap();

    engine.stop_container(&container, Duration::from_secs(1)).await.unwrap();
    engine.stop_container(&container, Duration::ZERO).await.unwrap();
    match &engine.find_container(container.as_str()).unwrap().state {
        // The shell as init ignores TERM: killed after the grace.
        ContainerState::Exited(exit) => assert_eq!((exit.code, exit.reason), (137, ExitReason::Error)),
        other => panic!("{other:?}"),
    }
    assert_eq!(exec("true").await.unwrap_err().kind(), ErrorKind::State);
    engine.stop_sandbox(&sandbox).await.unwrap();
    engine.stop_sandbox(&sandbox).await.unwrap();
    assert_eq!(engine.find_sandbox(sandbox.as_str()).unwrap().phase, SandboxPhase::NotReady);
    engine.remove_sandbox(&sandbox).await.unwrap();
    engine.remove_sandbox(&sandbox).await.unwrap();
    engine.remove_container(&container).await.unwrap();
    assert!(engine.sandboxes().is_empty() && engine.containers().is_empty());
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_repeated_create_joins_or_returns_the_first() {
    let lab = lab!("a_repeated_create");
    let engine = lab.engine().await;
    let (a, b) = tokio::join!(engine.run_sandbox(lab.sandbox("twin")), engine.run_sandbox(lab.sandbox("twin")));
    let sandbox = a.unwrap();
    assert_eq!(sandbox, b.unwrap());
    assert_eq!(engine.run_sandbox(lab.sandbox("twin")).await.unwrap(), sandbox);
    let (a, b) =
        tokio::join!(engine.create_container(&sandbox, sleeper()), engine.create_container(&sandbox, sleeper()));
    let container = a.unwrap();
    assert_eq!(container, b.unwrap());
    assert_eq!(engine.containers().len(), 1);
    engine.stop_sandbox(&sandbox).await.unwrap();
    // What is stopped does not come back under its name.
    let again = engine.run_sandbox(lab.sandbox("twin")).await;
    assert!(matches!(&again, Err(SandboxError::Exists { .. })), "{again:?}");
    engine.remove_sandbox(&sandbox).await.unwrap();
    let third = engine.run_sandbox(lab.sandbox("twin")).await.unwrap();
    assert_ne!(third, sandbox);
    engine.remove_sandbox(&third).await.unwrap();
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_caller_who_goes_away_cancels_nothing() {
    let lab = lab!("a_caller_who_goes_away");
    let engine = lab.engine().await;
    let gone = tokio::time::timeout(Duration::from_micros(200), engine.run_sandbox(lab.sandbox("left"))).await;
    let sandbox = engine.run_sandbox(lab.sandbox("left")).await.unwrap();
    assert!(gone.is_err() || engine.sandboxes().len() == 1);
    assert_eq!(engine.sandboxes().len(), 1);
    engine.remove_sandbox(&sandbox).await.unwrap();
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_namespaces_are_shared_as_asked() {
    let lab = lab!("namespaces_are_shared");
    let engine = lab.engine().await;
    let mut spec = lab.sandbox("host");
    spec.namespaces.network = NetworkMode::Host;
    spec.namespaces.pid = PidMode::Host;
    spec.namespaces.ipc = IpcMode::Host;
    let host = engine.run_sandbox(spec).await.unwrap();
    let mut spec = lab.sandbox("shared");
    spec.namespaces.pid = PidMode::Sandbox;
    let shared = engine.run_sandbox(spec).await.unwrap();
    assert!(engine.find_sandbox(shared.as_str()).unwrap().holder_pid.is_some());
    let mut inits = Vec::new();
    for sandbox in [&host, &shared] {
        let one = engine.create_container(sandbox, sleeper()).await.unwrap();
        engine.start_container(&one).await.unwrap();
        let mut other = sleeper();
        other.key.name = "other".into();
        let other = engine.create_container(sandbox, other).await.unwrap();
        engine.start_container(&other).await.unwrap();
        inits.push((one, other));
    }
    let kind = |id: &keelson_api::ContainerId, kind: &str| {
        let pid = engine.find_container(id.as_str()).unwrap().pid.unwrap();
        std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
    };
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let [(host_one, _), (shared_one, shared_other)] = inits.as_slice() else { panic!() };
    for name in ["net", "pid", "ipc", "uts"] {
        assert_eq!(kind(host_one, name), own(name), "{name}");
        assert_ne!(kind(shared_one, name), own(name), "{name}");
        assert_eq!(kind(shared_one, name), kind(shared_other, name), "{name}");
    }
    assert_ne!(kind(shared_one, "mnt"), kind(shared_other, "mnt"));
    // The holder is process 1 of the shared namespace, and reaps.
    let ps = engine.exec_sync(shared_one, vec!["cat".into(), "/proc/1/comm".into()], None).await.unwrap();
    assert_ne!(ps.stdout, b"sleep\n");
    // A container that looks at another one.
    let mut watcher = sleeper();
    watcher.key.name = "watcher".into();
    watcher.security.pid = ContainerPid::Target(shared_one.clone());
    let watcher = engine.create_container(&shared, watcher).await.unwrap();
    assert_eq!(kind(&watcher, "pid"), kind(shared_one, "pid"));
    for sandbox in [&host, &shared] {
        engine.remove_sandbox(sandbox).await.unwrap();
    }
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_failures_are_told_and_leave_nothing_half_made() {
    let lab = lab!("failures_are_told");
    let engine = lab.engine().await;
    let sandbox = engine.run_sandbox(lab.sandbox("bad")).await.unwrap();
    let create = |change: fn(&mut keelson_runtime::container::ContainerSpec)| {
        let mut spec = sleeper();
        change(&mut spec);
        engine.create_container(&sandbox, spec)
    };
    let missing = create(|spec| spec.image = "nobody/has:this".into()).await.unwrap_err();
    assert_eq!((missing.kind(), missing.to_string().contains("pull it first")), (ErrorKind::NotFound, true));
    let user = create(|spec| spec.security.run_as = RunAs::Name("ghost".into())).await.unwrap_err();
    assert_eq!(user.kind(), ErrorKind::Invalid);
    let privileged = create(|spec| spec.security.privileged = true).await.unwrap_err();
    assert_eq!(privileged.kind(), ErrorKind::Invalid);
    assert!(engine.containers().is_empty());

    // A program that is not there: the create is well, the start tells, the container has exited.
    let container = create(|spec| spec.command = vec!["/no/such/program".into()]).await.unwrap();
    let start = engine.start_container(&container).await.unwrap_err();
    assert!(start.to_string().contains("/no/such/program"), "{start}");
    match &engine.find_container(container.as_str()).unwrap().state {
        ContainerState::Exited(exit) => {
            assert_eq!((exit.code, exit.reason), (128, ExitReason::StartError));
            assert!(exit.message.contains("/no/such/program"), "{}", exit.message);
        }
        other => panic!("{other:?}"),
    }
    engine.remove_container(&container).await.unwrap();

    let mut spec = lab.sandbox("sysctl");
    spec.sysctls.insert("net.core.no_such_thing".into(), "1".into());
    // Also for those who join a creation that fails, or come when its name is just given back.
    let mut joined = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (engine, spec) = (engine.clone(), spec.clone());
        joined.spawn(async move { engine.run_sandbox(spec).await.unwrap_err() });
    }
    for failed in joined.join_all().await {
        assert!(matches!(failed, SandboxError::Failed { stage: "set kernel parameters", .. }), "{failed:?}");
    }
    assert_eq!(engine.sandboxes().len(), 1);
    engine.remove_sandbox(&sandbox).await.unwrap();
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_limits_are_applied_and_changed_live_and_oom_is_told() {
    let lab = lab!("limits_are_applied");
    let engine = lab.engine().await;
    let sandbox = engine.run_sandbox(lab.sandbox("limits")).await.unwrap();
    let mut spec = shell("sleep 1; x=a; while true; do x=$x$x; done");
    spec.resources = Resources { memory_limit: Some(32 << 20), cpu_shares: Some(512), ..Default::default() };
    let container = engine.create_container(&sandbox, spec).await.unwrap();
    engine.start_container(&container).await.unwrap();
    let change = Resources { memory_limit: Some(48 << 20), ..Default::default() };
    engine.update_container(&container, change).await.unwrap();
    let view = engine.find_container(container.as_str()).unwrap();
    assert_eq!((view.resources.memory_limit, view.resources.cpu_shares), (Some(48 << 20), Some(512)));
    let exit = lab.exit_of(&engine, &container).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled), "{exit:?}");
    engine.remove_sandbox(&sandbox).await.unwrap();
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_volumes_users_and_a_read_only_root() {
    let lab = lab!("volumes_users");
    let engine = lab.engine().await;
    let sandbox = engine.run_sandbox(lab.sandbox("volumes")).await.unwrap();
    let host = lab.folder("volume");
    std::os::unix::fs::symlink(&host, lab.folder("").join("link")).unwrap();
    let mut spec = shell(
        "id -u > /data/uid; echo x > /data/file; echo y > /store/kept; cat /store/seed; echo no > /etc/no; sleep 1000",
    );
    spec.volumes =
        vec![Volume { container_path: "/data".into(), host_path: lab.folder("").join("link"), ..Default::default() }];
    spec.security.readonly_rootfs = true;
    let container = engine.create_container(&sandbox, spec).await.unwrap();
    assert_eq!(engine.find_container(container.as_str()).unwrap().volumes[0].host_path, host);
    engine.start_container(&container).await.unwrap();
    // The image's volume stays writable and has what the image put there.
    lab.log_has("web/0.log", "stdout F seed").await;
    lab.log_has("web/0.log", "Read-only file system").await;
    assert_eq!(std::fs::read_to_string(host.join("uid")).unwrap(), "0\n");
    let kept = engine.exec_sync(&container, vec!["cat".into(), "/store/kept".into()], None).await.unwrap();
    assert_eq!(kept.stdout, b"y\n");
    engine.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(std::fs::read_to_string(host.join("file")).unwrap(), "x\n");
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_second_engine_on_the_same_folders_is_refused() {
    let lab = lab!("a_second_engine");
    let engine = lab.engine().await;
    let refused = lab.try_engine().await.err().unwrap();
    assert!(refused.to_string().contains("another keelson daemon"), "{refused}");
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_hundred_containers_leave_nothing() {
    let lab = lab!("a_hundred");
    let engine = lab.engine().await;
    let begin = Instant::now();
    let mut work = tokio::task::JoinSet::new();
    for number in 0..25 {
        let (engine, spec) = (engine.clone(), lab.sandbox(&format!("pod-{number}")));
        work.spawn(async move {
            let sandbox = engine.run_sandbox(spec).await.unwrap();
            for name in ["a", "b", "c", "d"] {
                let mut spec = sleeper();
                spec.key.name = name.into();
                let container = engine.create_container(&sandbox, spec).await.unwrap();
                engine.start_container(&container).await.unwrap();
            }
            engine.stop_sandbox(&sandbox).await.unwrap();
            engine.remove_sandbox(&sandbox).await.unwrap();
        });
    }
    work.join_all().await;
    println!("25 sandboxes, 100 containers: {:?}", begin.elapsed());
    lab.end(engine).await;
}

/// Not a test: the body of the process that the next one kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_victim() {
    if let Ok(folder) = std::env::var("KEELSON_VICTIM") {
        lab::victim(std::path::Path::new(&folder)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_killed_daemon_loses_nothing() {
    let lab = lab!("a_killed_daemon");
    let (sandbox, lasting, short) = lab.kill_a_victim().await;
    // While no daemon is there, the short one ends and the lasting one goes on writing.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let engine = lab.engine().await;
    assert_eq!(engine.find_sandbox(&sandbox).unwrap().phase, SandboxPhase::Ready);
    let short = engine.find_container(&short).unwrap();
    match &short.state {
        ContainerState::Exited(exit) => assert_eq!((exit.code, exit.reason), (7, ExitReason::Error)),
        other => panic!("{other:?}"),
    }
    let lasting = engine.find_container(&lasting).unwrap();
    assert!(matches!(lasting.state, ContainerState::Running { .. }), "{:?}", lasting.state);
    let ticks = lab.ticks("lasting/0.log");
    assert!(ticks.len() > 5 && ticks.iter().enumerate().all(|(index, tick)| *tick == index), "{ticks:?}");
    let exec = engine.exec_sync(&lasting.id, vec!["echo".into(), "alive".into()], None).await.unwrap();
    assert_eq!(exec.stdout, b"alive\n");
    // The same create again: the first.
    assert_eq!(engine.run_sandbox(lab.sandbox("victim")).await.unwrap().as_str(), sandbox);
    engine.remove_sandbox(&lasting.sandbox).await.unwrap();
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_daemon_killed_at_any_moment_leaves_nothing_that_a_restart_does_not_take() {
    let lab = lab!("killed_at_any_moment");
    for pause in [0u64, 1, 2, 3, 5, 8, 12, 18, 25, 40, 60, 100] {
        lab.kill_a_victim_after(Duration::from_millis(pause)).await;
        let engine = lab.engine().await;
        // A retry of the same name succeeds at once.
        let sandbox = engine.run_sandbox(lab.sandbox("victim")).await.unwrap();
        let mut spec = sleeper();
        spec.key.name = "retry".into();
        let container = engine.create_container(&sandbox, spec).await.unwrap();
        engine.start_container(&container).await.unwrap();
        engine.remove_sandbox(&sandbox).await.unwrap();
        lab.pause(engine).await;
    }
    let engine = lab.engine().await;
    lab.end(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_after_a_reboot_sandboxes_are_not_ready_and_can_be_removed() {
    let lab = lab!("after_a_reboot");
    let engine = lab.engine().await;
    let sandbox = engine.run_sandbox(lab.sandbox("old")).await.unwrap();
    let container = engine.create_container(&sandbox, sleeper()).await.unwrap();
    engine.start_container(&container).await.unwrap();
    let pid = engine.find_container(container.as_str()).unwrap().pid.unwrap();
    lab.pause(engine).await;
    lab.reboot(pid);
    let engine = lab.engine().await;
    assert_eq!(engine.find_sandbox(sandbox.as_str()).unwrap().phase, SandboxPhase::NotReady);
    match &engine.find_container(container.as_str()).unwrap().state {
        ContainerState::Exited(exit) => assert_eq!((exit.code, exit.reason), (255, ExitReason::Unknown)),
        other => panic!("{other:?}"),
    }
    let mut next = lab.sandbox("old");
    next.key.attempt = 1;
    let next = engine.run_sandbox(next).await.unwrap();
    engine.remove_sandbox(&sandbox).await.unwrap();
    engine.remove_sandbox(&next).await.unwrap();
    lab.end(engine).await;
}
