//! Handlers that put a whole pod into one sandbox: runsc for real, and runc as a stand-in for what every one of them is told.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, eventually, pod};

use crate::scenario_with;

fn installed(program: &str) -> Option<PathBuf> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    places.iter().map(|place| Path::new(place).join(program)).find(|path| path.exists())
}

/// A runsc that gets a program to run on this machine, with the platform for it; none, and why.
fn runsc() -> std::result::Result<(PathBuf, String), String> {
    let named = std::env::var_os("KEELSON_TEST_RUNSC").map(PathBuf::from);
    let program = named.or_else(|| installed("runsc")).ok_or("runsc is not installed (package runsc)")?;
    let mut said = String::new();
    // The first is of newer versions, and faster.
    for platform in ["systrap", "ptrace"] {
        let root = tempfile::tempdir().map_err(|error| error.to_string())?;
        let tried = Command::new(&program)
            .arg("--root")
            .arg(root.path())
            .args([&format!("--platform={platform}"), "--ignore-cgroups", "--network=host", "do", "/bin/true"])
            .output()
            .map_err(|error| error.to_string())?;
        if tried.status.success() {
            return Ok((program, platform.to_owned()));
        }
        said = format!("{platform}: {}", String::from_utf8_lossy(&tried.stderr).trim());
    }
    Err(format!("{} runs nothing on this machine: {said}", program.display()))
}

async fn run_pod(cri: &mut Cri, config: &cri::PodSandboxConfig, handler: &str) -> Result<String> {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
    Ok(cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

fn kept(node: &Node, handler: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(node.state_dir().join("runtimes").join(handler))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    // The mount point of an empty network namespace that runsc keeps for all its sandboxes.
    Ok(names.filter(|name| name != "null-netns").collect())
}

/// What holds for every runtime of the kind.
async fn lives_there(node: &mut Node, mut cri: Cri, handler: &str) -> Result<(String, Cri)> {
    cri.pull("busybox").await?;
    let config = pod(node, "pod");
    let id = run_pod(&mut cri, &config, handler).await?;
    let script = "echo out; echo err >&2; trap 'echo bye; exit 4' TERM; while true; do sleep 0.1; done";
    let mut spec = container("c", "busybox", script);
    spec.envs = vec![cri::KeyValue { key: "WORD".into(), value: "said".into() }];
    let c = cri.run(&id, spec, &config).await?;
    eventually("both streams in the log", async || {
        let log = node.container_log("pod/c.log");
        (log.contains("stdout F out") && log.contains("stderr F err")).then_some(())
    })
    .await?;
    ensure!(cri.shell(&c, "hostname; echo $WORD; id -u").await? == "pod\nsaid\n0\n");
    ensure!(cri.exec(&c, &["sh", "-c", "echo err >&2; exit 7"], 20).await?.exit_code == 7);
    // A second container ends by itself, and the first does not notice.
    let short = cri.run(&id, container("short", "busybox", "echo short; exit 3"), &config).await?;
    ensure!(cri.wait_exit(&short).await?.exit_code == 3);
    ensure!(node.container_log("pod/short.log").contains("stdout F short"));
    cri.remove(&short).await?;
    // One that was never started goes, too.
    let never = cri.create(&id, container("never", "busybox", "true"), &config).await?;
    cri.remove(&never).await?;
    let stats = cri.runtime.container_stats(cri::ContainerStatsRequest { container_id: c.clone() }).await?.into_inner();
    let stats = stats.stats.context("stats")?;
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map(|memory| memory.value);
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map(|cpu| cpu.value);
    ensure!(memory.is_some_and(|bytes| bytes > 0) && cpu.is_some_and(|used| used > 0), "{memory:?} {cpu:?}");
    // A exec that takes too long is killed inside.
    let late = cri.exec(&c, &["sleep", "1234"], 1).await.expect_err("it takes too long");
    ensure!(late.code() == tonic::Code::DeadlineExceeded, "{late}");
    eventually("the exec's process is gone", async || {
        let there = cri.shell(&c, "ps | grep -c '[s]leep 1234' || true").await.ok()?;
        (there == "0\n").then_some(())
    })
    .await?;
    // The daemon dies; the sandbox, the container, its log and its exit code do not.
    node.kill()?;
    node.boot()?;
    cri = node.cri()?;
    ensure!(cri.pod_status(&id).await?.state() == cri::PodSandboxState::SandboxReady);
    ensure!(cri.status(&c).await?.state() == cri::ContainerState::ContainerRunning);
    ensure!(cri.shell(&c, "echo again").await? == "again\n");
    cri.stop(&c, 20).await?;
    let status = cri.status(&c).await?;
    ensure!((status.state(), status.exit_code) == (cri::ContainerState::ContainerExited, 4), "{status:?}");
    ensure!(node.container_log("pod/c.log").contains("stdout F bye"));
    cri.remove(&c).await?;
    // One that is deaf is killed; one whose shim is lost is killed and forgotten.
    let deaf =
        cri.run(&id, container("deaf", "busybox", "trap '' TERM; while true; do sleep 1; done"), &config).await?;
    cri.stop(&deaf, 1).await?;
    ensure!(cri.status(&deaf).await?.exit_code == 137);
    let lost = cri.run(&id, container("lost", "busybox", "sleep 1000"), &config).await?;
    Node::kill_shim(&node.state_dir().join("containers").join(&lost))?;
    eventually("the loss is noticed", async || {
        let status = cri.status(&lost).await.ok()?;
        (status.state() == cri::ContainerState::ContainerExited).then_some(())
    })
    .await?;
    cri.remove(&lost).await?;
    ensure!(
        cri.pod_status(&id).await?.state() == cri::PodSandboxState::SandboxReady,
        "the sandbox outlives its containers"
    );
    Ok((id, cri))
}

/// Its end: by request, and when what holds it is lost.
async fn ends(node: &mut Node, mut cri: Cri, id: &str, handler: &str) -> Result<()> {
    let config = pod(node, "pod");
    cri.run(id, container("left", "busybox", "sleep 1000"), &config).await?;
    cri.stop_pod(id).await?;
    cri.remove_pod(id).await?;
    let left = async || kept(node, handler).ok().filter(|kept| kept.is_empty()).map(drop);
    eventually("the runtime has forgotten the pod", left).await?;
    let config = pod(node, "second");
    let id = run_pod(&mut cri, &config, handler).await?;
    let c = cri.run(&id, container("c", "busybox", "sleep 1000"), &config).await?;
    Node::kill_shim(&node.state_dir().join("sandboxes").join(&id).join("holder"))?;
    eventually("the sandbox is stopped", async || {
        let status = cri.pod_status(&id).await.ok()?;
        let exited = cri.status(&c).await.ok()?.state() == cri::ContainerState::ContainerExited;
        (status.state() == cri::PodSandboxState::SandboxNotready && exited).then_some(())
    })
    .await?;
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    eventually("the runtime has forgotten the second pod", left).await
}

#[test]
fn a_pod_lives_in_one_sandbox_of_runsc() {
    let (program, platform) = match runsc() {
        Ok(found) => found,
        Err(why) => return println!("SKIP a_pod_lives_in_one_sandbox_of_runsc: {why}"),
    };
    // Versions without the newer platform take every network namespace of a newer kernel for the host's, and refuse to use it.
    let own_network = platform == "systrap";
    let network = if own_network { "sandbox" } else { "none" };
    let config = format!(
        "[runtimes.runsc]\npath = \"{}\"\nsandboxed = true\noptions = [\"--platform={platform}\", \"--network={network}\"]\n",
        program.display()
    );
    scenario_with(&config, async |node, cri| {
        let (id, mut cri) = lives_there(node, cri, "runsc").await?;
        let config = pod(node, "pod");
        // It is another kernel that the containers see, and its network that they have.
        let c = cri
            .run(
                &id,
                container("inside", "busybox", "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"),
                &config,
            )
            .await?;
        ensure!(cri.shell(&c, "dmesg | grep -c 'Starting gVisor'").await? == "1\n");
        let resources = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let update = cri::UpdateContainerResourcesRequest {
            container_id: c.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        let refused = cri.runtime.update_container_resources(update).await.expect_err("it has no limits of its own");
        ensure!(refused.message().contains("`runsc`"), "{refused}");
        if own_network {
            let address = cri.pod_status(&id).await?.network.context("its network")?.ip;
            eventually("its server answers", async || {
                cri.shell(&c, &format!("wget -q -O - http://{address}/")).await.ok().filter(|page| page == "page\n")
            })
            .await?;
            let page = crate::streaming::page(&mut cri, &id).await?;
            ensure!(page.contains("page"), "{page}");
        } else {
            println!(
                "SKIP the network of a_pod_lives_in_one_sandbox_of_runsc: {} is too old for it",
                program.display()
            );
        }
        ends(node, cri, &id, "runsc").await
    });
}

/// The stand-in is runc, which takes the annotations for what they are: every container has a process of its own.
#[test]
fn a_sandboxed_handler_is_told_which_container_is_which() {
    const NAME: &str = "a_sandboxed_handler_is_told_which_container_is_which";
    let Some(runc) = installed("runc") else { return println!("SKIP {NAME}: runc is not installed (package runc)") };
    let config = format!("[runtimes.stand-in]\npath = \"{}\"\nsandboxed = true\n", runc.display());
    scenario_with(&config, async |node, cri| {
        let (id, mut cri) = lives_there(node, cri, "stand-in").await?;
        let config = pod(node, "pod");
        let c = cri.run(&id, container("told", "busybox", "sleep 1000"), &config).await?;
        let holder = node.state_dir().join("sandboxes").join(&id).join("holder");
        for (bundle, kind) in [(&holder, "sandbox"), (&node.state_dir().join("containers").join(&c), "container")] {
            let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
            for (name, value) in [
                ("io.kubernetes.cri.container-type", kind),
                ("io.kubernetes.cri.sandbox-id", id.as_str()),
                ("io.kubernetes.cri-o.ContainerType", kind),
                ("io.kubernetes.cri-o.SandboxID", id.as_str()),
                ("io.kubernetes.cri.sandbox-name", "pod"),
            ] {
                let told = spec.pointer("/annotations").and_then(|all| all.get(name)).and_then(|told| told.as_str());
                ensure!(told == Some(value), "{name} of the {kind}: {told:?}");
            }
            if kind == "sandbox" {
                ensure!(spec.pointer("/process/capabilities/bounding") == Some(&serde_json::json!([])), "{spec}");
                ensure!(spec.pointer("/root/readonly") == Some(&serde_json::json!(true)), "{spec}");
            }
        }
        let pid: i32 = std::fs::read_to_string(holder.join("init.pid"))?.trim().parse()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        ensure!(command.starts_with("/pause"), "{command}");
        ends(node, cri, &id, "stand-in").await
    });
}
