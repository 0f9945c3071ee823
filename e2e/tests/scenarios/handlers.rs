//! RuntimeClass handlers: pods whose containers Debian's runc and crun make, under keelson's own supervisor.
#![expect(clippy::print_stdout, reason = "a scenario that cannot run says so")]

use std::path::Path;

use anyhow::{Result, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Cri, Node, container, eventually, pod},
};

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
        let log = node.container_log("pod/c.log");
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
    ensure!(node.container_log("pod/c.log").contains("stdout F bye"));
    cri.remove(&c).await?;
    // A shim that is lost: what it left is killed, and the runtime forgets it.
    let lost = cri.run(&id, container("lost", "busybox", "sleep 1000"), &config).await?;
    Node::kill_shim(&node.state_dir().join("containers").join(&lost))?;
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

/// What the shim makes ready for a runtime: a folder of an image, an image's own folders under a root that is read-only, and a user
/// namespace with shifted layers and volumes.
#[test]
fn another_runtime_has_the_volumes_and_the_users_of_a_pod() {
    const NAME: &str = "another_runtime_has_the_volumes_and_the_users_of_a_pod";
    let Some(config) = configured(NAME, "runc") else { return };
    scenario_with(&config, async |node, mut cri| {
        for image in ["busybox", "user", "debian:bookworm"] {
            cri.pull(image).await?;
        }
        let config = pod(node, "pod");
        let id = run_pod(&mut cri, &config, "runc").await?;
        let mut newest = Newest::of(node)?;
        let mut spec: v1::ContainerConfig = same(&container("c", "user", "sleep 1000"))?;
        let of_image = |path: &str, sub_path: &str| v1::Mount {
            container_path: path.into(),
            readonly: true,
            image: Some(v1::ImageSpec { image: "debian:bookworm".into(), ..Default::default() }),
            image_sub_path: sub_path.into(),
            ..Default::default()
        };
        spec.mounts = vec![of_image("/whole", ""), of_image("/part", "etc")];
        spec.linux.get_or_insert_default().security_context.get_or_insert_default().readonly_rootfs = true;
        let c = newest.run(&id, spec).await?;
        ensure!(cri.shell(&c, "cat /whole/etc/debian_version /part/debian_version | grep -c ^12").await? == "2\n");
        ensure!(cri.exec(&c, &["sh", "-c", "echo x > /part/x"], 10).await?.exit_code != 0, "an image was written to");
        ensure!(cri.exec(&c, &["sh", "-c", "echo x > /x"], 10).await?.exit_code != 0, "the root was written to");
        let shown = cri.shell(&c, "grep -w /data /proc/self/mountinfo | cut -d' ' -f6").await?;
        ensure!(shown.starts_with("rw"), "the image's own folder: {shown}");
        cri.stop_pod(&id).await?;
        cri.remove_pod(&id).await?;

        let status = cri.runtime.status(cri::StatusRequest { verbose: false }).await?.into_inner();
        let can = |name: &str| {
            let found = status.runtime_handlers.iter().find(|handler| handler.name == name);
            found.and_then(|handler| handler.features).unwrap_or_default().user_namespaces
        };
        if !can("native") {
            println!("SKIP {NAME} (its half of user namespaces): this machine has none");
            return Ok(());
        }
        ensure!(can("runc"), "runc says that it makes user namespaces, and the machine has them");
        let mapping = || vec![cri::IdMapping { host_id: 700_000, container_id: 0, length: 65_536 }];
        let users = cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            userns_options: Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Pod.into(),
                uids: mapping(),
                gids: mapping(),
            }),
            ..Default::default()
        };
        let mut config = pod(node, "users");
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(users.clone());
        let id = run_pod(&mut cri, &config, "runc").await?;
        let volume = tempfile::tempdir_in("/var/tmp")?;
        std::fs::write(volume.path().join("given"), "x")?;
        let mut spec = container("u", "busybox", "sleep 1000");
        spec.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options = Some(users);
        spec.mounts = vec![cri::Mount {
            container_path: "/volume".into(),
            host_path: volume.path().to_string_lossy().into(),
            uid_mappings: mapping(),
            gid_mappings: mapping(),
            ..Default::default()
        }];
        let c = cri.run(&id, spec, &config).await?;
        let map = cri.shell(&c, "cat /proc/self/uid_map").await?;
        ensure!(map.split_whitespace().eq(["0", "700000", "65536"]), "{map}");
        let owners = cri.shell(&c, "stat -c '%u:%g %n' / /bin/busybox /etc /volume /volume/given /etc/hosts").await?;
        ensure!(owners.lines().all(|line| line.starts_with("0:0 ")), "{owners}");
        cri.shell(&c, "echo x > /made && echo y > /volume/made").await?;
        let made = std::fs::metadata(volume.path().join("made"))?;
        ensure!(std::os::unix::fs::MetadataExt::uid(&made) == 0, "a shifted volume holds the container's ids");
        ensure!(
            std::fs::read_dir(node.state_dir().join("staging"))?.count() == 0,
            "the host sees what the shim has made ready"
        );
        Ok(())
    });
}
