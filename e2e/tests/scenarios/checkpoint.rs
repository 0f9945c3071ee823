//! Checkpoint and restore of containers and pods, by a real CRIU where one works here. Which CRIU: `keelson_e2e::criu`.

mod hostile;
mod image;

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Cri, Node, container, eventually, pod},
};
use tonic::Code;

use crate::scenario_with;

const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.05; done";

/// The configuration that names a CRIU that works here.
fn criu(test: &str) -> Option<String> {
    match keelson_e2e::criu::program() {
        Ok(program) => Some(format!("[checkpoint]\ncriu = \"{program}\"\n")),
        Err(reason) => {
            println!("SKIP {test}: {reason}");
            None
        }
    }
}

async fn checkpoint(cri: &mut Cri, id: &str, location: &Path, timeout: i64) -> Result<(), tonic::Status> {
    let location = location.to_string_lossy().into_owned();
    let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout };
    cri.runtime.checkpoint_container(request).await.map(drop)
}

fn count(log: &str) -> u64 {
    log.lines().rev().find_map(|line| line.rsplit_once("count ")?.1.parse().ok()).unwrap_or(0)
}

async fn goes_on(node: &Node, path: &str) -> Result<u64> {
    let before = count(&node.container_log(path));
    eventually("the counter goes on", async || (count(&node.container_log(path)) > before + 2).then_some(())).await?;
    Ok(before)
}

/// A container that comes from an archive.
fn from(name: &str, archive: &Path) -> cri::ContainerConfig {
    container(name, &archive.to_string_lossy(), "echo this is never run")
}

/// The members of an archive.
fn members(archive: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        found.push((name, bytes));
    }
    Ok(found)
}

/// The archive with a change.
fn forge(from: &Path, to: &Path, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Result<()> {
    let mut tar = tar::Builder::new(File::create(to)?);
    for (name, bytes) in members(from)? {
        if name.ends_with('/') || name == "checkpoint" {
            continue;
        }
        let Some(bytes) = change(&name, bytes) else { continue };
        add(&mut tar, &name, &bytes)?;
    }
    Ok(tar.finish()?)
}

fn add<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, name, bytes)?)
}

/// Nothing of an archive is left in the daemon's folder.
fn folders(node: &Node) -> usize {
    fs::read_dir(node.root_dir().join("checkpoints")).into_iter().flatten().count()
}

#[test]
fn a_counter_goes_on_from_its_checkpoint_in_its_pod_and_in_another() {
    let Some(config) = criu("a_counter_goes_on_from_its_checkpoint_in_its_pod_and_in_another") else { return };
    scenario_with(&config, async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let script = format!("echo kept > /etc/kept; rm /etc/passwd; {COUNTER}");
        let c = cri.run(&id, container("c", "busybox", &script), &sandbox).await?;
        goes_on(node, "pod/c.log").await?;
        let archive = node.logs_dir().join("c.tar");
        checkpoint(&mut cri, &c, &archive, 60).await?;
        ensure!(fs::metadata(&archive)?.permissions().mode() & 0o777 == 0o600, "an archive is root's alone");
        ensure!(folders(node) == 0, "no folder is left");
        let names: Vec<String> = members(&archive)?.into_iter().map(|(name, _)| name).collect();
        for name in [
            "config.dump",
            "spec.dump",
            "checkpoint/inventory.img",
            "dump.log",
            "stats-dump",
            "rootfs-diff.tar",
            "deleted.files",
        ] {
            ensure!(names.iter().any(|member| member == name), "no `{name}` in {names:?}");
        }
        ensure!(cri.status(&c).await?.state() == cri::ContainerState::ContainerRunning);
        let dumped = goes_on(node, "pod/c.log").await?;

        // In the same pod, under another name; in another pod, after the first has gone.
        let again = cri.run(&id, from("again", &archive), &sandbox).await?;
        goes_on(node, "pod/again.log").await?;
        cri.stop_pod(&id).await?;
        let other = pod(node, "other");
        let other_id = cri.run_pod(&other).await?;
        let moved = cri.create(&other_id, from("moved", &archive), &other).await?;
        ensure!(cri.status(&moved).await?.state() == cri::ContainerState::ContainerCreated);
        // A daemon that is killed finds it as it was.
        node.kill()?;
        node.boot()?;
        cri = node.cri()?;
        cri.start(&moved).await?;
        goes_on(node, "other/moved.log").await?;
        ensure!(folders(node) == 0, "what was read is removed");
        for path in ["pod/again.log", "other/moved.log"] {
            let text = node.container_log(path);
            let first = count(text.lines().next().context("an empty log")?);
            ensure!((2..=dumped + 1).contains(&first), "{path} begins at {first}, checkpoint before {dumped}");
            ensure!(!text.contains("never run"));
        }
        ensure!(
            cri.shell(&moved, "cat /etc/kept; ls /etc/passwd 2>&1 | wc -l; hostname")
                .await?
                .starts_with("kept\n1\nother")
        );
        ensure!(cri.exec(&moved, &["ls", "/etc/passwd"], 5).await?.exit_code != 0, "a removed file stays removed");
        // As any container, over a restart of the daemon, to its end.
        node.kill()?;
        node.boot()?;
        cri = node.cri()?;
        goes_on(node, "other/moved.log").await?;
        cri.stop(&moved, 0).await?;
        ensure!(cri.status(&moved).await?.exit_code == 137);
        drop(again);
        Ok(())
    });
}

#[test]
fn a_pod_goes_on_from_its_checkpoint() {
    let Some(config) = criu("a_pod_goes_on_from_its_checkpoint") else { return };
    scenario_with(&config, async |node, mut cri| {
        cri.pull("busybox").await?;
        let mut newest = Newest::of(node)?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        for name in ["one", "two"] {
            cri.run(&id, container(name, "busybox", COUNTER), &sandbox).await?;
            goes_on(node, &format!("pod/{name}.log")).await?;
        }
        let archive = node.logs_dir().join("pod.tar");
        let output_path = archive.to_string_lossy().into_owned();
        let request = v1::CheckpointPodRequest {
            pod_sandbox_id: id.clone(),
            output_path: output_path.clone(),
            ..Default::default()
        };
        newest.runtime.checkpoint_pod(request).await?;
        for name in ["one", "two"] {
            goes_on(node, &format!("pod/{name}.log")).await?;
        }
        cri.stop_pod(&id).await?;
        cri.remove_pod(&id).await?;

        let new = pod(node, "new");
        let configs =
            |names: &[&str]| names.iter().map(|name| same(&container(name, "ignored", ""))).collect::<Result<Vec<_>>>();
        let restore = |container_configs| v1::RestorePodRequest {
            checkpoint_path: output_path.clone(),
            config: Some(same(&new).unwrap_or_default()),
            container_configs,
            ..Default::default()
        };
        let status = newest.runtime.restore_pod(restore(configs(&["one"])?)).await.err().context("one is missing")?;
        ensure!(status.code() == Code::InvalidArgument && status.message().contains("`two`"), "{status}");
        let restored = newest.runtime.restore_pod(restore(configs(&["two", "one"])?)).await?.into_inner();
        ensure!(restored.restored_containers.len() == 2);
        for made in &restored.restored_containers {
            ensure!(cri.status(&made.container_id).await?.state() == cri::ContainerState::ContainerCreated);
            cri.start(&made.container_id).await?;
            let path = format!("new/{}.log", made.name);
            goes_on(node, &path).await?;
            ensure!(count(node.container_log(&path).lines().next().unwrap_or_default()) > 1, "it begins anew");
        }
        ensure!(folders(node) == 0, "folders are left");
        Ok(())
    });
}

#[test]
fn what_cannot_be_checkpointed_is_told_and_nothing_is_left() {
    scenario_with("[checkpoint]\ncriu = \"/nonexistent/criu\"\n", async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let archive = node.logs_dir().join("c.tar");
        let refused = async |cri: &mut Cri, id: &str, path: &Path, code: Code, words: &str| -> Result<()> {
            let status = checkpoint(cri, id, path, 5).await.err().context("it succeeded")?;
            ensure!(status.code() == code && status.message().contains(words), "want {code:?} and `{words}`: {status}");
            ensure!(!archive.exists() && folders(node) == 0, "something is left");
            Ok(())
        };
        refused(&mut cri, "no-such-container", &archive, Code::NotFound, "no-such-container").await?;
        let c = cri.create(&id, container("c", "busybox", "sleep 1000"), &sandbox).await?;
        refused(&mut cri, &c, &archive, Code::FailedPrecondition, "created").await?;
        cri.start(&c).await?;
        refused(&mut cri, &c, &archive, Code::FailedPrecondition, "/nonexistent/criu").await?;
        refused(&mut cri, &c, &archive, Code::FailedPrecondition, "install the package `criu`").await?;
        refused(&mut cri, &c, &node.logs_dir().join("no/folder/c.tar"), Code::NotFound, "no/folder").await?;
        refused(&mut cri, &c, Path::new("c.tar"), Code::InvalidArgument, "location").await?;
        ensure!(cri.shell(&c, "echo alive").await? == "alive\n");
        cri.stop(&c, 0).await?;
        refused(&mut cri, &c, &archive, Code::FailedPrecondition, "exited").await?;
        let status = cri.create(&id, from("d", &archive), &sandbox).await.err().context("no archive is there")?;
        ensure!(status.code() == Code::NotFound, "{status}");
        Ok(())
    });
}

/// A program in CRIU's place.
fn fake(folder: &Path, script: &str) -> Result<PathBuf> {
    let path = folder.join("fake-criu");
    fs::write(
        &path,
        format!("#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in --work-dir) w=$2;; esac; shift; done\n{script}\n"),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn a_daemon_killed_during_a_checkpoint_leaves_the_container_running_and_nothing_else() {
    let scratch = tempfile::tempdir().expect("scratch");
    let slow = fake(scratch.path(), "echo begun > $w/begun; sleep 2; exit 1").expect("fake criu");
    let config = format!("[checkpoint]\ncriu = \"{}\"\n", slow.display());
    scenario_with(&config, async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let c = cri.run(&id, container("c", "busybox", COUNTER), &sandbox).await?;
        goes_on(node, "pod/c.log").await?;
        let archive = node.logs_dir().join("out").join("c.tar");
        fs::create_dir(node.logs_dir().join("out"))?;
        let (mut other, name, place) = (cri.clone(), c.clone(), archive.clone());
        let call = tokio::spawn(async move { checkpoint(&mut other, &name, &place, 30).await });
        let begun = async || {
            let below = fs::read_dir(node.root_dir().join("checkpoints")).into_iter().flatten().flatten();
            below.into_iter().any(|entry| entry.path().join("begun").exists()).then_some(())
        };
        eventually("CRIU has begun", begun).await?;
        let held = count(&node.container_log("pod/c.log"));
        tokio::time::sleep(Duration::from_millis(200)).await;
        // On v2 CRIU stops the processes itself, and this one does nothing.
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        ensure!(
            unified || count(&node.container_log("pod/c.log")) <= held + 1,
            "the container runs while it is written"
        );
        node.kill()?;
        ensure!(call.await?.is_err());
        node.boot()?;
        cri = node.cri()?;
        ensure!(folders(node) == 0 && fs::read_dir(node.logs_dir().join("out"))?.count() == 0, "something is left");
        goes_on(node, "pod/c.log").await?;
        // Time that is over.
        let status = checkpoint(&mut cri, &c, &archive, 1).await.err().context("it took longer")?;
        ensure!(status.message().contains("time"), "{status}");
        goes_on(node, "pod/c.log").await?;
        ensure!(folders(node) == 0 && fs::read_dir(node.logs_dir().join("out"))?.count() == 0, "something is left");
        Ok(())
    });
}
