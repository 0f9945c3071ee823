//! Events: told in order, after what they tell of can be seen; how everything is comes first; slow listeners are let go; records
//! of what has ended are bounded and their going is told.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{self as cri, ContainerEventType as Kind, ContainerState, PodSandboxState};
use keelson_e2e::node::{Cri, DEADLINE, Node, container, eventually, pod};
use tonic::{Code, Streaming};

use crate::{scenario, scenario_with};

/// A subscription, and all that it told.
struct Told {
    stream: Streaming<cri::ContainerEventResponse>,
    events: Vec<cri::ContainerEventResponse>,
}

impl Told {
    async fn listen(cri: &mut Cri) -> Result<Told> {
        let stream = cri.runtime.get_container_events(cri::GetEventsRequest {}).await?.into_inner();
        Ok(Told { stream, events: Vec::new() })
    }

    /// The next event, and what every event must be.
    async fn next(&mut self) -> Result<&cri::ContainerEventResponse> {
        let event = tokio::time::timeout(*DEADLINE, self.stream.message()).await.context("no event")??;
        let event = event.context("the stream ended without a word")?;
        let last = self.events.last().map_or(0, |last| last.created_at);
        ensure!(event.created_at > last, "later than the one before: {event:?}");
        let sandbox = event.pod_sandbox_status.as_ref().context("the status of the sandbox")?;
        let metadata = sandbox.metadata.as_ref().context("metadata of the sandbox")?;
        ensure!(!metadata.uid.is_empty() && !metadata.name.is_empty() && !sandbox.id.is_empty(), "{sandbox:?}");
        let strange = event.containers_statuses.iter().find(|status| status.id.is_empty() || status.metadata.is_none());
        ensure!(strange.is_none(), "{strange:?}");
        self.events.push(event);
        self.events.last().context("just put there")
    }

    /// Goes on until this has happened to it.
    async fn until(&mut self, id: &str, kind: Kind) -> Result<&cri::ContainerEventResponse> {
        loop {
            let event = self.next().await?;
            if event.container_id == id && event.container_event_type() == kind {
                return self.events.last().context("just heard");
            }
        }
    }

    /// What happened to each, in order.
    fn lives(&self) -> BTreeMap<String, Vec<Kind>> {
        let mut lives = BTreeMap::<_, Vec<_>>::new();
        for event in &self.events {
            lives.entry(event.container_id.clone()).or_default().push(event.container_event_type());
        }
        lives
    }
}

const LIFE: [Kind; 4] = [
    Kind::ContainerCreatedEvent,
    Kind::ContainerStartedEvent,
    Kind::ContainerStoppedEvent,
    Kind::ContainerDeletedEvent,
];

#[test]
fn every_change_is_told_after_it_can_be_seen() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let mut told = Told::listen(&mut cri).await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let event = told.until(&id, Kind::ContainerStartedEvent).await?;
        let sandbox = event.pod_sandbox_status.clone().context("sandbox")?;
        ensure!(sandbox.state() == PodSandboxState::SandboxReady && sandbox == cri.pod_status(&id).await?);
        // Many that end by themselves: whoever hears of the end and asks is told of the end.
        for attempt in 0..20 {
            let mut wanted = container("short", "busybox", "exit 3");
            wanted.metadata.as_mut().context("metadata")?.attempt = attempt;
            let c = cri.create(&id, wanted, &config).await?;
            told.until(&c, Kind::ContainerCreatedEvent).await?;
            ensure!(cri.status(&c).await?.state() == ContainerState::ContainerCreated);
            let mut starter = cri.clone();
            let starting = tokio::spawn({
                let c = c.clone();
                async move { starter.start(&c).await }
            });
            told.until(&c, Kind::ContainerStartedEvent).await?;
            ensure!(cri.status(&c).await?.started_at > 0);
            let event = told.until(&c, Kind::ContainerStoppedEvent).await?;
            let status = event.containers_statuses.iter().find(|status| status.id == c).context("its status")?;
            ensure!((status.state(), status.exit_code) == (ContainerState::ContainerExited, 3), "{status:?}");
            ensure!(*status == cri.status(&c).await?, "the event tells what the status does");
            starting.await??;
            cri.remove(&c).await?;
            told.until(&c, Kind::ContainerDeletedEvent).await?;
            ensure!(cri.status(&c).await.is_err(), "gone when it is told so");
        }
        let mut wrong = container("wrong", "busybox", "");
        wrong.command = vec!["/no/such/program".into()];
        let wrong = cri.create(&id, wrong, &config).await?;
        ensure!(cri.start(&wrong).await.is_err());
        let c = cri.run(&id, container("long", "busybox", "exec sleep 1000"), &config).await?;
        cri.stop_pod(&id).await?;
        let event = told.until(&id, Kind::ContainerStoppedEvent).await?;
        ensure!(event.containers_statuses.iter().all(|it| it.state() == ContainerState::ContainerExited), "{event:?}");
        ensure!(cri.pod_status(&id).await?.state() == PodSandboxState::SandboxNotready);
        cri.remove_pod(&id).await?;
        let event = told.until(&id, Kind::ContainerDeletedEvent).await?;
        let sandbox = event.pod_sandbox_status.as_ref().and_then(|status| status.metadata.clone());
        ensure!(sandbox == config.metadata, "a sandbox that is gone is told of by its pod");
        let lives = told.lives();
        for (id, life) in &lives {
            let want: Vec<_> = LIFE.into_iter().filter(|kind| *id != wrong || *kind != LIFE[1]).collect();
            ensure!(*life == want, "{id}: {life:?}");
        }
        ensure!(lives.len() == 23, "a sandbox, 22 containers: {}", lives.len());
        let place = |id: &str, kind| {
            told.events.iter().position(|event| event.container_id == id && event.container_event_type() == kind)
        };
        ensure!(place(&c, LIFE[2]) < place(&id, LIFE[2]) && place(&c, LIFE[3]) < place(&id, LIFE[3]), "inside first");
        Ok(())
    });
}

#[test]
fn everybody_hears_the_same_of_many_pods_at_once() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let mut first = Told::listen(&mut cri).await?;
        let mut second = Told::listen(&mut node.cri()?).await?;
        let mut pods = tokio::task::JoinSet::new();
        for n in 0..8 {
            let (mut cri, config) = (cri.clone(), pod(node, &format!("pod{n}")));
            pods.spawn(async move {
                let id = cri.run_pod(&config).await?;
                for name in ["a", "b"] {
                    cri.run(&id, container(name, "busybox", "exec sleep 1000"), &config).await?;
                }
                cri.stop_pod(&id).await?;
                cri.remove_pod(&id).await?;
                Ok::<_, anyhow::Error>(())
            });
        }
        while let Some(result) = pods.join_next().await {
            result??;
        }
        for told in [&mut first, &mut second] {
            for _ in 0..8 * 3 * 4 {
                told.next().await?;
            }
            ensure!(told.lives().values().all(|life| *life == LIFE), "{:?}", told.lives());
        }
        let order = |told: &Told| -> Vec<_> {
            told.events.iter().map(|event| (event.created_at, event.container_id.clone())).collect()
        };
        ensure!(order(&first) == order(&second));
        Ok(())
    });
}

#[test]
fn a_new_listener_is_told_how_everything_is_also_what_ended_while_the_daemon_was_dead() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let gate = node.logs_dir().join("gate");
        std::fs::create_dir(&gate)?;
        let mut waits = container("waits", "busybox", "until [ -e /gate/open ]; do usleep 10000; done; exit 9");
        waits.mounts.push(cri::Mount {
            container_path: "/gate".into(),
            host_path: gate.to_string_lossy().into_owned(),
            ..Default::default()
        });
        let runs = cri.run(&id, container("runs", "busybox", "exec sleep 1000"), &config).await?;
        let waits = cri.run(&id, waits, &config).await?;
        let made = cri.create(&id, container("made", "busybox", "exec sleep 1000"), &config).await?;
        let mut other = pod(node, "other");
        other.linux = config.linux.clone();
        let stopped = cri.run_pod(&other).await?;
        cri.stop_pod(&stopped).await?;

        let mut told = Told::listen(&mut cri).await?;
        told.until(&stopped, Kind::ContainerStoppedEvent).await?;
        node.kill()?;
        let error = told.stream.message().await.err().context("a dead daemon ends the stream")?;
        ensure!(error.code() != Code::Ok, "{error:?}");
        std::fs::write(gate.join("open"), "")?;
        let exit = node.state_dir().join("containers").join(&waits).join("exit.json");
        eventually("the shim has written the exit", async || exit.exists().then_some(())).await?;
        node.boot()?;

        cri = node.cri()?;
        let mut told = Told::listen(&mut cri).await?;
        let event = told.until(&waits, Kind::ContainerStoppedEvent).await?;
        let status = event.containers_statuses.iter().find(|status| status.id == waits).context("its status")?;
        ensure!((status.state(), status.exit_code) == (ContainerState::ContainerExited, 9), "{status:?}");
        told.until(&stopped, Kind::ContainerStoppedEvent).await?;
        let want = BTreeMap::from([
            (id.clone(), vec![Kind::ContainerStartedEvent]),
            (runs.clone(), vec![Kind::ContainerStartedEvent]),
            (waits, vec![Kind::ContainerStoppedEvent]),
            (made.clone(), vec![Kind::ContainerCreatedEvent]),
            (stopped, vec![Kind::ContainerStoppedEvent]),
        ]);
        ensure!(told.lives() == want, "each is told of once: {:?}", told.lives());
        // From here on it follows.
        cri.start(&made).await?;
        told.until(&made, Kind::ContainerStartedEvent).await?;
        cri.stop(&runs, 0).await?;
        told.until(&runs, Kind::ContainerStoppedEvent).await?;
        // SIGTERM is an end with a word, and does not wait for who listens.
        node.stop()?;
        let error = told.stream.message().await.err().context("an end with a word")?;
        ensure!(error.code() == Code::Unavailable && error.message().contains("the daemon ends"), "{error:?}");
        node.boot()
    });
}

#[test]
fn a_slow_listener_is_let_go_and_holds_up_nobody() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let mut slow = Told::listen(&mut node.cri()?).await?;
        let mut quick = Told::listen(&mut node.cri()?).await?;
        let mut config = pod(node, "pod");
        // Large events fill what is between the daemon and the one who does not read.
        config.annotations = [("large".to_owned(), "x".repeat(64 * 1024))].into();
        let id = cri.run_pod(&config).await?;
        let mut work = tokio::task::JoinSet::new();
        // Three events each, and a thousand may wait.
        for worker in 0..8 {
            let (mut cri, config, id) = (cri.clone(), config.clone(), id.clone());
            work.spawn(async move {
                for attempt in 0..60 {
                    let mut wanted = container(&format!("c{worker}"), "busybox", "exec sleep 1000");
                    wanted.metadata.as_mut().context("metadata")?.attempt = attempt;
                    let c = cri.create(&id, wanted, &config).await?;
                    cri.remove(&c).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        for _ in 0..2 + 8 * 60 * 3 {
            quick.next().await?;
        }
        while let Some(result) = work.join_next().await {
            result??;
        }
        let ended = loop {
            match tokio::time::timeout(*DEADLINE, slow.stream.message()).await.context("no end")? {
                Ok(Some(event)) => slow.events.push(event),
                Ok(None) => anyhow::bail!("the stream ended without a word"),
                Err(error) => break error,
            }
        };
        ensure!(ended.code() == Code::ResourceExhausted && ended.message().contains("subscribe again"), "{ended:?}");
        let order = |told: &Told| -> Vec<_> {
            told.events.iter().map(|event| (event.created_at, event.container_id.clone())).collect()
        };
        ensure!(slow.events.len() < quick.events.len() && quick.events.len() == 1442);
        ensure!(order(&quick).starts_with(&order(&slow)), "what it had coming it got, in order");
        Ok(())
    });
}

/// Resident memory of the daemon, KiB.
fn resident(node: &Node) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid().context("daemon")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn what_has_ended_is_cheap_to_keep() {
    scenario(async |node, mut cri| {
        const PODS: usize = 150;
        cri.pull("busybox").await?;
        let mut before = 0;
        for n in 0..PODS + 20 {
            if n == 20 {
                // By now everything that a pod needs once has been made.
                before = resident(node)?;
            }
            let mut config = pod(node, &format!("pod{n}"));
            let options = cri::NamespaceOption { network: 2, ..Default::default() };
            config.linux.get_or_insert_default().security_context =
                Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
            let id = cri.run_pod(&config).await?;
            let mut wanted = container("job", "busybox", "exit 0");
            wanted.annotations = [("note".to_owned(), "x".repeat(1000))].into();
            let c = cri.run(&id, wanted, &config).await?;
            cri.wait_exit(&c).await?;
            cri.stop_pod(&id).await?;
        }
        let each = resident(node)?.saturating_sub(before) * 1024 / PODS;
        println!("{each} bytes for a pod that is over, with one container and 1000 bytes of annotations");
        ensure!(each < 48 * 1024, "{each} bytes for each pod that is over");
        Ok(())
    });
}

#[test]
fn records_of_what_has_ended_are_bounded_and_their_going_is_told() {
    scenario_with("[records]\nexited_per_container = 2\n", async |node, mut cri| {
        cri.pull("busybox").await?;
        let mut told = Told::listen(&mut cri).await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let mut ids = Vec::new();
        for (name, attempt) in [("init", 0), ("job", 0), ("job", 1), ("job", 2), ("job", 3), ("job", 4), ("job", 5)] {
            let mut wanted = container(name, "busybox", "exit 0");
            wanted.metadata.as_mut().context("metadata")?.attempt = attempt;
            let c = cri.run(&id, wanted, &config).await?;
            cri.wait_exit(&c).await?;
            ids.push(c);
        }
        let mut gone = std::collections::BTreeSet::new();
        while gone.len() < 4 {
            let event = told.next().await?;
            if event.container_event_type() == Kind::ContainerDeletedEvent {
                gone.insert(event.container_id.clone());
            }
        }
        ensure!(gone == ids[1..5].iter().cloned().collect(), "the oldest of the name: {gone:?} of {ids:?}");
        let left = async |cri: &mut Cri| -> Result<Vec<String>> {
            let list = cri.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner();
            Ok(list.containers.into_iter().map(|container| container.id).collect())
        };
        let mut want = vec![ids[0].clone(), ids[5].clone(), ids[6].clone()];
        ensure!(left(&mut cri).await? == want, "how each last ended is still known");
        let folders = || std::fs::read_dir(node.state_dir().join("containers")).into_iter().flatten().count();
        ensure!(folders() == 3, "nothing is left of the others");
        // The next look, which has something else to do, finds nothing more of these.
        let mut others = Vec::new();
        for attempt in 0..3 {
            let mut wanted = container("other", "busybox", "exit 0");
            wanted.metadata.as_mut().context("metadata")?.attempt = attempt;
            let c = cri.run(&id, wanted, &config).await?;
            cri.wait_exit(&c).await?;
            others.push(c);
        }
        loop {
            let event = told.next().await?;
            if event.container_event_type() == Kind::ContainerDeletedEvent {
                ensure!(event.container_id == others[0], "{event:?} of {others:?}");
                break;
            }
        }
        want.extend([others[1].clone(), others[2].clone()]);
        ensure!(left(&mut cri).await? == want);
        Ok(())
    });
}
