//! RuntimeClass handlers: pods whose containers Debian's runc and crun make, under keelson's own supervisor.
#![expect(clippy::print_stdout, reason = "a scenario that cannot run says so")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, eventually, pod};

use crate::scenario_with;

const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The configuration of one runtime; none, and a word about it, when it cannot run here.
fn configured(scenario: &str, program: &str) -> Option<String> {
    let Some(path) = PLACES.iter().map(|place| format!("{place}/{program}")).find(|path| Path::new(path).exists())
    else {
        println!("SKIP {scenario}: {program} is not installed (package {program})");
        return None;
    };
    let hybrid = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
    if program == "crun" && hybrid.is_ok_and(|controllers| !controllers.trim().is_empty()) {
        println!("SKIP {scenario}: crun takes no machine on which v1 and v2 both have controllers");
        return None;
    }
    Some(format!("[runtimes.{program}]\npath = \"{path}\"\n"))
}

async fn run_pod(cri: &mut Cri, config: &cri::PodSandboxConfig, handler: &str) -> Result<String, tonic::Status> {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
    Ok(cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

fn log(node: &Node, name: &str) -> String {
    std::fs::read_to_string(node.logs_dir().join(name)).unwrap_or_default()
}

async fn lives_there(node: &mut Node, mut cri: Cri, handler: &str) -> Result<()> {
    cri.pull("busybox").await?;
    let config = pod(node, "pod");
    let id = run_pod(&mut cri, &config, handler).await?;
    ensure!(cri.pod_status(&id).await?.runtime_handler == handler);
    let script = "echo out; echo err >&2; trap 'echo bye; exit 4' TERM; while true; do sleep 0.1; done";
    let mut spec = container("c", "busybox", script);
    spec.envs = vec![cri::KeyValue { key: "WORD".into(), value: "said".into() }];
    let security = cri::LinuxContainerSecurityContext {
        seccomp: Some(cri::SecurityProfile { profile_type: 0, ..Default::default() }),
        ..Default::default()
    };
    let resources = cri::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    spec.linux = Some(cri::LinuxContainerConfig { security_context: Some(security), resources: Some(resources) });
    let c = cri.run(&id, spec, &config).await?;
    eventually("both streams in the log", async || {
        let log = log(node, "pod/c.log");
        (log.contains("stdout F out") && log.contains("stderr F err")).then_some(())
    })
    .await?;
    ensure!(cri.shell(&c, "hostname; echo $WORD; id -u").await? == "pod\nsaid\n0\n");
    ensure!(cri.shell(&c, "grep Seccomp: /proc/1/status | tr -d '\\t'").await? == "Seccomp:2\n", "the default filter");
    ensure!(cri.exec(&c, &["sh", "-c", "exit 7"], 10).await?.exit_code == 7);
    let missing = cri.exec(&c, &["/no/such/program"], 10).await.expect_err("there is no such program");
    ensure!(missing.message().contains("/no/such/program"), "{missing}");
    let late = cri.exec(&c, &["sleep", "1000"], 1).await.expect_err("it takes too long");
    ensure!(late.code() == tonic::Code::DeadlineExceeded, "{late}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&c), "its root filesystem is in the host's mount table");
    let stats = cri.runtime.container_stats(cri::ContainerStatsRequest { container_id: c.clone() }).await?.into_inner();
    let memory = stats.stats.and_then(|stats| stats.memory).and_then(|memory| memory.working_set_bytes);
    ensure!(memory.is_some_and(|memory| memory.value > 0), "{memory:?}");
    // The daemon dies; the container, its log and its exit code do not.
    node.kill()?;
    node.boot()?;
    cri = node.cri()?;
    ensure!(cri.status(&c).await?.state() == cri::ContainerState::ContainerRunning);
    ensure!(cri.shell(&c, "echo again").await? == "again\n");
    cri.stop(&c, 20).await?;
    let status = cri.status(&c).await?;
    ensure!((status.state(), status.exit_code) == (cri::ContainerState::ContainerExited, 4), "{status:?}");
    ensure!(log(node, "pod/c.log").contains("stdout F bye"));
    cri.remove(&c).await?;
    // A shim that is lost: what it left is killed, and the runtime forgets it.
    let lost = cri.run(&id, container("lost", "busybox", "sleep 1000"), &config).await?;
    let folder = node.state_dir().join("containers").join(&lost);
    let shim: i32 = std::fs::read_to_string(folder.join("shim.pid"))?.trim().parse()?;
    let shim = rustix::process::Pid::from_raw(shim).context("its shim's process id")?;
    rustix::process::kill_process(shim, rustix::process::Signal::KILL)?;
    eventually("the loss is noticed", async || {
        let status = cri.status(&lost).await.ok()?;
        (status.state() == cri::ContainerState::ContainerExited).then_some(())
    })
    .await?;
    cri.remove(&lost).await?;
    // What cannot be started says why, in the runtime's words.
    let mut absent = container("absent", "busybox", "");
    absent.command = vec!["/no/such/program".into()];
    let refused = match cri.create(&id, absent, &config).await {
        Ok(created) => cri.start(&created).await.expect_err("there is no such program"),
        Err(refused) => refused,
    };
    ensure!(refused.message().contains("/no/such/program"), "{refused}");
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    let kept = std::fs::read_dir(node.state_dir().join("runtimes").join(handler))?.flatten();
    // Hidden: crun keeps compiled seccomp filters in `.cache`, one for all containers.
    let kept: Vec<_> =
        kept.map(|entry| entry.file_name()).filter(|name| !name.to_string_lossy().starts_with('.')).collect();
    ensure!(kept.is_empty(), "the runtime remembers {kept:?}");
    Ok(())
}

#[test]
fn a_pod_lives_under_runc() {
    let Some(config) = configured("a_pod_lives_under_runc", "runc") else { return };
    scenario_with(&config, async |node, cri| lives_there(node, cri, "runc").await);
}

#[test]
fn a_pod_lives_under_crun() {
    let Some(config) = configured("a_pod_lives_under_crun", "crun") else { return };
    scenario_with(&config, async |node, cri| lives_there(node, cri, "crun").await);
}

#[test]
fn an_unknown_handler_is_refused_and_the_known_ones_are_told() {
    let config = "[runtimes.other]\npath = \"/no/such/runtime\"\n";
    scenario_with(config, async |node, mut cri| {
        let config = pod(node, "pod");
        let refused = run_pod(&mut cri, &config, "kata").await.expect_err("no such handler");
        ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused}");
        for word in ["`kata`", "`native`", "`other`"] {
            ensure!(refused.message().contains(word), "{refused}");
        }
        let status = cri.runtime.status(cri::StatusRequest { verbose: false }).await?.into_inner();
        let names: Vec<String> = status.runtime_handlers.into_iter().map(|handler| handler.name).collect();
        ensure!(names == ["", "native", "other"], "{names:?}");
        // A runtime that is not there: the container's creation fails, and nothing is left of it.
        cri.pull("busybox").await?;
        let id = run_pod(&mut cri, &config, "other").await?;
        let failed = cri.create(&id, container("c", "busybox", "true"), &config).await.expect_err("no such program");
        ensure!(failed.message().contains("/no/such/runtime"), "{failed}");
        let native = pod(node, "native");
        let id = run_pod(&mut cri, &native, "native").await?;
        let c = cri.run(&id, container("c", "busybox", "exec sleep 1000"), &native).await?;
        ensure!(cri.shell(&c, "echo $0").await? == "sh\n");
        Ok(())
    });
}
