//! T14 on the whole way from an archive to a container: nothing but memory and files comes from it, and what it calls its files and
//! streams reaches neither CRIU's command line nor the host.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{container, pod};
use tonic::Code;

use super::{COUNTER, add, checkpoint, criu, folders, forge, from, goes_on};
use crate::{scenario, scenario_with};

fn header(kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_size(0);
    header
}

/// A name as it is, which the library would not write.
fn raw(header: &mut tar::Header, name: &str) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
}

/// An empty entry of any kind, under any name.
fn append<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    kind: tar::EntryType,
    name: &str,
    link: Option<&Path>,
) -> Result<()> {
    let mut header = header(kind);
    if let Some(link) = link {
        header.set_link_name(link)?;
    }
    header.set_device_major(8)?;
    header.set_device_minor(0)?;
    raw(&mut header, name);
    Ok(tar.append(&header, std::io::empty())?)
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
        type Make<'a> = Box<dyn Fn(&mut tar::Builder<File>) -> Result<()> + 'a>;
        let changes = |kind: tar::EntryType, name: &str, link: Option<&Path>| -> Result<Vec<u8>> {
            let mut tar = tar::Builder::new(Vec::new());
            append(&mut tar, kind, name, link)?;
            Ok(tar.into_inner()?)
        };
        fn entry<'a>(kind: tar::EntryType, name: &'a str, link: Option<&'a Path>) -> Make<'a> {
            Box::new(move |tar| append(tar, kind, name, link))
        }
        let alone = |name: &'static str, bytes: Vec<u8>| -> Make<'_> { Box::new(move |tar| add(tar, name, &bytes)) };
        // Beside a `config.dump` that is right.
        let beside = |name: &'static str, bytes: Vec<u8>| -> Make<'_> {
            let config = &config;
            Box::new(move |tar| {
                add(tar, "config.dump", config.as_bytes())?;
                add(tar, name, &bytes)
            })
        };
        let other = serde_json::json!({ "rootfsImageRef": format!("sha256:{}", "ab".repeat(32)) }).to_string();
        let cases: Vec<(&str, Make<'_>)> = vec![
            ("leads out", entry(tar::EntryType::Regular, "../../../../canary", None)),
            ("neither a file nor a folder", entry(tar::EntryType::Symlink, "checkpoint", Some(Path::new("/etc")))),
            ("neither a file nor a folder", entry(tar::EntryType::Link, "config.dump", Some(&canary))),
            ("device", entry(tar::EntryType::Block, "checkpoint/pages-1.img", None)),
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
            ("not on this node", alone("config.dump", other.into_bytes())),
            ("not on this node", alone("config.dump", br#"{"rootfsImageRef":"busybox"}"#.to_vec())),
            ("config.dump", alone("config.dump", b"no json".to_vec())),
            ("config.dump", alone("spec.dump", br#"{"process":{"user":{"uid":0}}}"#.to_vec())),
            ("device", beside("rootfs-diff.tar", changes(tar::EntryType::Block, "dev/sda", None)?)),
            ("leads out", beside("rootfs-diff.tar", changes(tar::EntryType::Regular, "../../canary", None)?)),
            ("hard link", beside("rootfs-diff.tar", changes(tar::EntryType::Link, "x", Some(&canary))?)),
            ("no such image", beside("checkpoint/tmpfs-dev-41.tar.gz.img", Vec::new())),
            ("no image of CRIU", beside("checkpoint/inventory.img", b"nonsense".to_vec())),
            ("missing", beside("checkpoint/pages-1.img", Vec::new())),
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
