//! Checkpoint and restore of containers and pods, by a real CRIU where one works here; T14 on the whole way from an archive to a
//! container. Which CRIU: `keelson_e2e::criu`.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Cri, Node, container, eventually, pod},
};
use tonic::Code;

use crate::{scenario, scenario_with};

pub(crate) const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo count $i; echo $i > /tmp/n; sleep 0.05; done";

/// The configuration that names a CRIU that works here.
pub(crate) fn criu(test: &str) -> Option<String> {
    match keelson_e2e::criu::program() {
        Ok(program) => Some(format!("[checkpoint]\ncriu = \"{program}\"\n")),
        Err(reason) => {
            println!("SKIP {test}: {reason}");
            None
        }
    }
}

pub(crate) async fn checkpoint(cri: &mut Cri, id: &str, location: &Path, timeout: i64) -> Result<(), tonic::Status> {
    let location = location.to_string_lossy().into_owned();
    let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout };
    cri.runtime.checkpoint_container(request).await.map(drop)
}

pub(crate) fn log(node: &Node, path: &str) -> String {
    fs::read_to_string(node.logs_dir().join(path)).unwrap_or_default()
}

pub(crate) fn count(log: &str) -> u64 {
    log.lines().rev().find_map(|line| line.rsplit_once("count ")?.1.parse().ok()).unwrap_or(0)
}

pub(crate) async fn goes_on(node: &Node, path: &str) -> Result<u64> {
    let before = count(&log(node, path));
    eventually("the counter goes on", async || (count(&log(node, path)) > before + 2).then_some(())).await?;
    Ok(before)
}

/// A container that comes from an archive.
pub(crate) fn from(name: &str, archive: &Path) -> cri::ContainerConfig {
    container(name, &archive.to_string_lossy(), "echo this is never run")
}

/// The members of an archive.
pub(crate) fn members(archive: &Path) -> Result<Vec<(String, Vec<u8>)>> {
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
pub(crate) fn forge(from: &Path, to: &Path, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Result<()> {
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

pub(crate) fn add<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, name, bytes)?)
}

/// Nothing of an archive is left in the daemon's folder.
pub(crate) fn folders(node: &Node) -> usize {
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
            let text = log(node, path);
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
            ensure!(count(log(node, &path).lines().next().unwrap_or_default()) > 1, "it begins anew");
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
        let held = count(&log(node, "pod/c.log"));
        tokio::time::sleep(Duration::from_millis(200)).await;
        // On v2 CRIU stops the processes itself, and this one does nothing.
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        ensure!(unified || count(&log(node, "pod/c.log")) <= held + 1, "the container runs while it is written");
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

#[test]
fn hostile_archives_are_refused_before_anything_runs() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let c = cri.create(&id, container("c", "busybox", "true"), &sandbox).await?;
        let image = cri.status(&c).await?.image_id;
        let archive = node.logs_dir().join("hostile.tar");
        let canary = node.logs_dir().join("canary");
        fs::write(&canary, "untouched")?;
        let config = serde_json::json!({ "rootfsImageRef": image }).to_string();
        let header = |kind: tar::EntryType| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o777);
            header.set_size(0);
            header
        };
        let raw = |header: &mut tar::Header, name: &str| {
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
        };
        type Make<'a> = Box<dyn Fn(&mut tar::Builder<File>) -> Result<()> + 'a>;
        let changes = |kind: tar::EntryType, name: &str, link: Option<&Path>| -> Result<Vec<u8>> {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = header(kind);
            if let Some(link) = link {
                header.set_link_name(link)?;
            }
            header.set_device_major(8)?;
            header.set_device_minor(0)?;
            raw(&mut header, name);
            tar.append(&header, std::io::empty())?;
            Ok(tar.into_inner()?)
        };
        let cases: Vec<(&str, Make<'_>)> = vec![
            (
                "leads out",
                Box::new(|tar| {
                    let mut header = header(tar::EntryType::Regular);
                    raw(&mut header, "../../../../canary");
                    Ok(tar.append(&header, std::io::empty())?)
                }),
            ),
            (
                "neither a file nor a folder",
                Box::new(|tar| {
                    let mut header = header(tar::EntryType::Symlink);
                    header.set_link_name("/etc")?;
                    raw(&mut header, "checkpoint");
                    Ok(tar.append(&header, std::io::empty())?)
                }),
            ),
            (
                "neither a file nor a folder",
                Box::new(|tar| {
                    let mut header = header(tar::EntryType::Link);
                    header.set_link_name(&canary)?;
                    raw(&mut header, "config.dump");
                    Ok(tar.append(&header, std::io::empty())?)
                }),
            ),
            (
                "device",
                Box::new(|tar| {
                    let mut header = header(tar::EntryType::Block);
                    raw(&mut header, "checkpoint/pages-1.img");
                    Ok(tar.append(&header, std::io::empty())?)
                }),
            ),
            (
                "holes",
                Box::new(|tar| {
                    let mut header = header(tar::EntryType::GNUSparse);
                    let gnu = header.as_gnu_mut().context("gnu")?;
                    gnu.realsize.copy_from_slice(&[0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
                    raw(&mut header, "checkpoint/pages-1.img");
                    Ok(tar.append(&header, std::io::empty())?)
                }),
            ),
            (
                "not on this node",
                Box::new(|tar| {
                    let other = format!("sha256:{}", "ab".repeat(32));
                    add(tar, "config.dump", serde_json::json!({ "rootfsImageRef": other }).to_string().as_bytes())
                }),
            ),
            ("not on this node", Box::new(|tar| add(tar, "config.dump", br#"{"rootfsImageRef":"busybox"}"#))),
            ("config.dump", Box::new(|tar| add(tar, "config.dump", b"no json"))),
            ("config.dump", Box::new(|tar| add(tar, "spec.dump", br#"{"process":{"user":{"uid":0}}}"#))),
            (
                "device",
                Box::new(|tar| {
                    add(tar, "config.dump", config.as_bytes())?;
                    add(tar, "rootfs-diff.tar", &changes(tar::EntryType::Block, "dev/sda", None)?)
                }),
            ),
            (
                "leads out",
                Box::new(|tar| {
                    add(tar, "config.dump", config.as_bytes())?;
                    add(tar, "rootfs-diff.tar", &changes(tar::EntryType::Regular, "../../canary", None)?)
                }),
            ),
            (
                "hard link",
                Box::new(|tar| {
                    add(tar, "config.dump", config.as_bytes())?;
                    add(tar, "rootfs-diff.tar", &changes(tar::EntryType::Link, "x", Some(&canary))?)
                }),
            ),
            (
                "no such image",
                Box::new(|tar| {
                    add(tar, "config.dump", config.as_bytes())?;
                    add(tar, "checkpoint/tmpfs-dev-41.tar.gz.img", b"")
                }),
            ),
            (
                "no image of CRIU",
                Box::new(|tar| {
                    add(tar, "config.dump", config.as_bytes())?;
                    add(tar, "checkpoint/inventory.img", b"nonsense")
                }),
            ),
            (
                "missing",
                Box::new(|tar| {
                    add(tar, "config.dump", config.as_bytes())?;
                    add(tar, "checkpoint/pages-1.img", b"")
                }),
            ),
        ];
        for (number, (words, make)) in cases.iter().enumerate() {
            let mut tar = tar::Builder::new(File::create(&archive)?);
            make(&mut tar)?;
            tar.finish()?;
            let made = cri.create(&id, from("hostile", &archive), &sandbox).await;
            let Err(status) = made else { bail!("case {number} (`{words}`) was taken") };
            ensure!(status.message().contains(words), "case {number}: want `{words}`: {status}");
            ensure!(matches!(status.code(), Code::InvalidArgument | Code::NotFound), "case {number}: {status}");
            ensure!(folders(node) == 0, "case {number} leaves a folder");
        }
        ensure!(fs::read_to_string(&canary)? == "untouched");
        let list = cri.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers;
        ensure!(list.len() == 1, "containers of hostile archives: {list:?}");
        let mut endless = File::create(&archive)?;
        endless.write_all(&[0; 1 << 16])?;
        endless.set_len(1 << 40)?;
        let status =
            cri.create(&id, from("hostile", &archive), &sandbox).await.err().context("an archive of nothing")?;
        ensure!(folders(node) == 0, "{status}");
        Ok(())
    });
}

#[test]
fn nothing_but_memory_and_files_comes_from_an_archive() {
    let Some(config) = criu("nothing_but_memory_and_files_comes_from_an_archive") else { return };
    scenario_with(&config, async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let plain = cri.run(&id, container("plain", "busybox", COUNTER), &sandbox).await?;
        goes_on(node, "pod/plain.log").await?;
        let honest = node.logs_dir().join("honest.tar");
        checkpoint(&mut cri, &plain, &honest, 60).await?;
        let hostile = node.logs_dir().join("hostile.tar");

        // A spec that asks for everything: ignored, with its labels, mounts and log.
        forge(&honest, &hostile, |name, bytes| {
            match name {
            "spec.dump" => Some(
                serde_json::json!({
                    "process": { "user": { "uid": 0 }, "capabilities": { "bounding": ["CAP_SYS_ADMIN"] } },
                    "mounts": [{ "destination": "/host", "source": "/", "type": "bind" }],
                    "annotations": { "io.kubernetes.cri.log-path": "/etc/cron.d/x", "cdi.k8s.io/x": "vendor.com/gpu=all" },
                    "linux": { "devices": [{ "path": "/dev/vda", "type": "b", "major": 254, "minor": 0 }] },
                })
                .to_string()
                .into_bytes(),
            ),
            _ => Some(bytes),
        }
        })?;
        let c = cri.run(&id, from("spec", &hostile), &sandbox).await?;
        goes_on(node, "pod/spec.log").await?;
        ensure!(
            cri.exec(&c, &["ls", "/host"], 5).await?.exit_code != 0
                && cri.exec(&c, &["ls", "/dev/vda"], 5).await?.exit_code != 0
        );
        let status = cri.status(&c).await?;
        ensure!(status.labels.is_empty() && status.annotations.is_empty() && status.mounts.is_empty(), "{status:?}");
        ensure!(status.log_path.ends_with("pod/spec.log"));

        // A request that allows less than the process had.
        let less = |change: &dyn Fn(&mut cri::LinuxContainerSecurityContext)| {
            let mut config = from("less", &honest);
            let mut security = cri::LinuxContainerSecurityContext::default();
            change(&mut security);
            config.linux = Some(cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() });
            config
        };
        let drop_all = |it: &mut cri::LinuxContainerSecurityContext| {
            it.capabilities = Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        };
        let as_user =
            |it: &mut cri::LinuxContainerSecurityContext| it.run_as_user = Some(cri::Int64Value { value: 1000 });
        let no_new_privs = |it: &mut cri::LinuxContainerSecurityContext| it.no_new_privs = true;
        let filtered = |it: &mut cri::LinuxContainerSecurityContext| {
            it.seccomp = Some(cri::SecurityProfile { profile_type: 0, ..Default::default() });
        };
        type Change<'a> = (&'a str, &'a dyn Fn(&mut cri::LinuxContainerSecurityContext));
        let cases: [Change<'_>; 4] = [
            ("capabilities", &drop_all),
            ("user id", &as_user),
            ("gain privileges", &no_new_privs),
            ("system call filter", &filtered),
        ];
        for (words, change) in cases {
            let status =
                cri.create(&id, less(change), &sandbox).await.err().with_context(|| format!("{words}: taken"))?;
            ensure!(status.message().contains(words), "want `{words}`: {status}");
        }
        // A mount that the request does not have.
        let with_mount = |name: &str| {
            let mut config = container(name, "busybox", COUNTER);
            let host_path = node.logs_dir().to_string_lossy().into_owned();
            config.mounts = vec![cri::Mount { container_path: "/data".into(), host_path, ..Default::default() }];
            config
        };
        let mounted = cri.run(&id, with_mount("mounted"), &sandbox).await?;
        goes_on(node, "pod/mounted.log").await?;
        checkpoint(&mut cri, &mounted, &hostile, 60).await?;
        let status = cri.create(&id, from("unmounted", &hostile), &sandbox).await.err().context("a mount too many")?;
        ensure!(status.message().contains("`/data`"), "{status}");
        let mut again = from("again", &hostile);
        again.mounts = with_mount("x").mounts;
        again.mounts[0].readonly = true;
        let again = cri.run(&id, again, &sandbox).await?;
        goes_on(node, "pod/again.log").await?;
        ensure!(cri.exec(&again, &["touch", "/data/x"], 5).await?.exit_code != 0, "the request says read-only");
        ensure!(folders(node) == 0, "folders are left");
        Ok(())
    });
}

/// A program before CRIU that keeps what it is told.
fn told(folder: &Path, criu: &str) -> Result<PathBuf> {
    let path = folder.join("told-criu");
    let words = folder.join("words");
    fs::write(&path, format!("#!/bin/sh\nfor w; do echo \"$w\"; done >> {}\nexec {criu} \"$@\"\n", words.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(words)
}

#[test]
fn names_of_an_archive_reach_neither_criu_s_command_line_nor_files_outside() {
    const NAME: &str = "names_of_an_archive_reach_neither_criu_s_command_line_nor_files_outside";
    if criu(NAME).is_none() {
        return;
    }
    let program = keelson_e2e::criu::program().expect("looked for above");
    let scratch = tempfile::tempdir().expect("scratch");
    let words = told(scratch.path(), &program).expect("a program before CRIU");
    let config = format!("[checkpoint]\ncriu = \"{}/told-criu\"\n", scratch.path().display());
    scenario_with(&config, async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let plain = cri.run(&id, container("plain", "busybox", COUNTER), &sandbox).await?;
        goes_on(node, "pod/plain.log").await?;
        let honest = node.logs_dir().join("honest.tar");
        checkpoint(&mut cri, &plain, &honest, 60).await?;
        let hostile = node.logs_dir().join("hostile.tar");

        // Streams: what is not a form of numbers is not passed on, whatever becomes of the restore.
        let names = ["pipe:[../../../etc/shadow]", "pipe:[7]:/etc/shadow", "file[7:7]:/etc/shadow", "/etc/shadow"];
        for (number, name) in names.into_iter().enumerate() {
            forge(&honest, &hostile, |member, bytes| match member {
                // Standard input is the host's /dev/null, and needs its name.
                "checkpoint/descriptors.json" => {
                    let own: Vec<String> = serde_json::from_slice(&bytes).unwrap_or_default();
                    Some(serde_json::json!([own.first(), name, name]).to_string().into_bytes())
                }
                _ => Some(bytes),
            })?;
            let made = cri.create(&id, from(&format!("stream{number}"), &hostile), &sandbox).await?;
            // Without its streams it may fail or run unheard.
            let _ = cri.start(&made).await;
            cri.remove(&made).await?;
        }
        let all = fs::read_to_string(&words)?;
        ensure!(all.lines().any(|word| word == "restore"), "CRIU was never asked to restore: {all}");
        ensure!(!all.contains("shadow"), "a name of the archive on CRIU's command line: {all}");

        // Files: one that goes up is refused before CRIU is asked for anything.
        let asked = |all: &str| all.lines().filter(|word| *word == "restore").count();
        let before = asked(&all);
        forge(&honest, &hostile, |member, mut bytes| {
            if member == "checkpoint/files.img"
                && let Some(at) = bytes.windows(5).position(|part| part == b"/bin/")
            {
                // As long as it was: the form of the image stays.
                bytes[at..at + 6].copy_from_slice(b"/../up");
            }
            Some(bytes)
        })?;
        let made = cri.create(&id, from("up", &hostile), &sandbox).await;
        let status = made.err().context("a name that goes up was taken")?;
        ensure!(status.message().contains("not a plain path"), "{status}");
        ensure!(asked(&fs::read_to_string(&words)?) == before && folders(node) == 0, "something was done or is left");
        Ok(())
    });
}
