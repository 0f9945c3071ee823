//! Volumes: images, options, read-only trees, propagation, host paths; and the container's own cgroup.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Cri, Node, container, pod},
};
use tonic::Code;

use crate::scenario;

/// A pod, and what makes containers of it with the newest fields.
async fn sandbox(cri: &mut Cri, node: &Node) -> Result<(String, Newest)> {
    cri.pull("busybox:latest").await?;
    Ok((cri.run_pod(&pod(node, "pod")).await?, Newest::of(node)?))
}

/// The same, where containers may be privileged.
async fn privileged_sandbox(cri: &mut Cri, node: &Node) -> Result<(String, Newest)> {
    cri.pull("busybox:latest").await?;
    let mut config = pod(node, "pod");
    let security = k8s_cri::v1::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(security);
    Ok((cri.run_pod(&config).await?, Newest::of(node)?))
}

fn with_mounts(name: &str, mounts: Vec<v1::Mount>) -> Result<v1::ContainerConfig> {
    let mut config: v1::ContainerConfig = same(&container(name, "busybox:latest", "sleep 1000"))?;
    config.mounts = mounts;
    Ok(config)
}

fn image(path: &str, image: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(v1::ImageSpec { image: image.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

fn host(path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount { container_path: path.into(), host_path: host_path.to_string_lossy().into_owned(), ..Default::default() }
}

async fn fails(cri: &mut Cri, id: &str, script: &str) -> Result<bool> {
    Ok(cri.exec(id, &["sh", "-c", script], 10).await?.exit_code != 0)
}

/// The layers of every image, as folders of the node's root.
fn layers(node: &Node) -> usize {
    fs::read_dir(node.root_dir().join("layers")).into_iter().flatten().count()
}

#[test]
fn an_image_is_a_volume_read_only_with_its_digest_in_the_status() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = sandbox(&mut cri, node).await?;
        let data = cri.pull("debian:bookworm").await?;
        let mounts = vec![
            image("/image", &data, ""),
            image("/new/etc", "debian:bookworm", "etc"),
            image("/of/two/layers", "busybox:latest", "/bin"),
        ];
        let c = newest.run(&id, with_mounts("c", mounts)?).await?;
        ensure!(cri.shell(&c, "cat /image/etc/debian_version").await?.starts_with("12"), "the image is there");
        ensure!(cri.shell(&c, "cat /new/etc/debian_version").await?.starts_with("12"), "the folder is there");
        ensure!(cri.shell(&c, "ls /new/etc/etc /new/etc/bin 2>&1 | grep -c 'No such'").await?.trim() == "2");
        ensure!(cri.shell(&c, "/of/two/layers/busybox echo ran").await? == "ran\n", "programs of an image can be run");
        for path in ["/image/x", "/image/etc/passwd", "/new/etc/x", "/of/two/layers/x"] {
            ensure!(fails(&mut cri, &c, &format!("echo x >> {path}")).await?, "`{path}` was written");
        }
        let status = newest.status(&c).await?;
        let [whole, folder, busybox] = status.mounts.as_slice() else { anyhow::bail!("{:?}", status.mounts) };
        let reference = |mount: &v1::Mount| mount.image.clone().unwrap_or_default().image_ref;
        ensure!(reference(whole) == data && reference(folder) == data, "{status:?}");
        ensure!(reference(busybox) == status.image_id, "the same image, the same id: {status:?}");
        ensure!(folder.image_sub_path == "etc" && folder.readonly && folder.host_path.is_empty(), "{folder:?}");
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mountinfo.contains(&*node.root_dir().to_string_lossy()), "nothing of it is mounted on the host");
        Ok(())
    });
}

#[test]
fn an_image_that_cannot_be_mounted_is_told_in_kubelets_word() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = sandbox(&mut cri, node).await?;
        for (mount, code, words) in [
            (image("/i", "debian:never-pulled", ""), Code::NotFound, "not on this node"),
            (image("/i", "busybox", "etc/nothing"), Code::InvalidArgument, "is not in the image"),
            (image("/i", "busybox", "bin/busybox"), Code::InvalidArgument, "is not a folder"),
        ] {
            let error = newest.create(&id, with_mounts("c", vec![mount])?).await.err().context("refused")?;
            ensure!(error.message().starts_with("ImageVolumeMountFailed: "), "{error:?}");
            ensure!(error.code() == code && error.message().contains(words), "{error:?}");
        }
        for mount in [
            v1::Mount { readonly: false, ..image("/i", "busybox", "") },
            image("/i", "busybox", "etc/../.."),
            v1::Mount { host_path: "/srv".into(), ..image("/i", "busybox", "") },
        ] {
            let error = newest.create(&id, with_mounts("c", vec![mount])?).await.err().context("refused")?;
            ensure!(error.code() == Code::InvalidArgument, "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn an_image_is_in_use_while_a_container_has_it_as_a_volume() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = sandbox(&mut cri, node).await?;
        let before = layers(node);
        let data = cri.pull("debian:bookworm").await?;
        let c = newest.run(&id, with_mounts("c", vec![image("/image", &data, "")])?).await?;
        let spec = v1::ImageSpec { image: data.clone(), ..Default::default() };
        newest.images.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await?;
        ensure!(layers(node) > before, "the layers stay under the container");
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        ensure!(cri.shell(&c, "cat /image/etc/debian_version").await?.starts_with("12"), "still there");
        ensure!(layers(node) > before, "and after a kill of the daemon");
        let status = Newest::of(node)?.status(&c).await?;
        ensure!(status.mounts[0].image.clone().unwrap_or_default().image_ref == data, "{status:?}");
        cri.stop(&c, 0).await?;
        cri.remove(&c).await?;
        keelson_e2e::node::eventually("the layers go with the container", async || {
            (layers(node) == before).then_some(())
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_volume_is_barred_from_what_its_options_say() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = sandbox(&mut cri, node).await?;
        let features =
            newest.runtime.status(v1::StatusRequest::default()).await?.into_inner().features.unwrap_or_default();
        ensure!(features.mount_options, "{features:?}");
        let dir = tempfile::tempdir_in("/var/tmp")?;
        fs::write(dir.path().join("run"), "#!/bin/sh\necho ran\n")?;
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(dir.path().join("run"), mode(0o755))?;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("null"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 3),
        )?;
        let barred = |options: &[&str]| v1::Mount {
            mount_options: options.iter().map(|name| (*name).to_owned()).collect(),
            ..host("/v", dir.path())
        };
        let open = newest.run(&id, with_mounts("open", vec![barred(&[])])?).await?;
        ensure!(cri.shell(&open, "/v/run").await? == "ran\n" && !fails(&mut cri, &open, "cat /v/null").await?);
        let all = ["noexec", "nodev", "nosuid"];
        let closed = newest.run(&id, with_mounts("closed", vec![barred(&all)])?).await?;
        ensure!(fails(&mut cri, &closed, "/v/run").await?, "a program was run");
        ensure!(fails(&mut cri, &closed, "cat /v/null").await?, "a device was opened");
        ensure!(cri.shell(&closed, "grep ' /v ' /proc/self/mountinfo").await?.contains("nosuid,nodev,noexec"));
        ensure!(newest.status(&closed).await?.mounts[0].mount_options == all);
        let tools = image("/tools", "busybox", "bin");
        let tools = v1::Mount { mount_options: vec!["noexec".into()], ..tools };
        let c = newest.run(&id, with_mounts("tools", vec![tools])?).await?;
        ensure!(fails(&mut cri, &c, "/tools/busybox true").await?, "a program of the image was run");
        for option in ["exec", "ro", "context=x", ""] {
            let error =
                newest.create(&id, with_mounts("c", vec![barred(&[option])])?).await.err().context("refused")?;
            ensure!(error.code() == Code::InvalidArgument && error.message().contains("noexec"), "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn a_read_only_tree_is_so_to_its_leaves_and_its_refusals_are_clear() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = sandbox(&mut cri, node).await?;
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let below = dir.path().join("below");
        fs::create_dir(&below)?;
        let mount = |arguments: &[&str]| -> Result<()> {
            ensure!(Command::new("mount").args(arguments).arg(&below).status()?.success(), "mount {arguments:?}");
            Ok(())
        };
        mount(&["-t", "tmpfs", "keelson-e2e"])?;
        let made = async || -> Result<()> {
            let readonly =
                |recursive| v1::Mount { readonly: true, recursive_read_only: recursive, ..host("/v", dir.path()) };
            let plain = newest.clone().run(&id, with_mounts("plain", vec![readonly(false)])?).await?;
            let tree = newest.clone().run(&id, with_mounts("tree", vec![readonly(true)])?).await?;
            let mut cri = node.cri()?;
            ensure!(
                fails(&mut cri, &plain, "touch /v/x").await? && !fails(&mut cri, &plain, "touch /v/below/x").await?
            );
            ensure!(fails(&mut cri, &tree, "touch /v/x").await? && fails(&mut cri, &tree, "touch /v/below/y").await?);
            cri.stop_pod(&id).await?;
            Ok(())
        };
        let result = made().await;
        ensure!(Command::new("umount").arg(&below).status()?.success(), "umount");
        result?;
        let other = cri.run_pod(&pod(node, "other")).await?;
        for (readonly, propagation) in [(false, 0), (true, 1), (true, 2)] {
            let mount = v1::Mount { readonly, recursive_read_only: true, propagation, ..host("/v", dir.path()) };
            let error = newest.create(&other, with_mounts("c", vec![mount])?).await.err().context("refused")?;
            ensure!(
                error.code() == Code::InvalidArgument && error.message().contains("recursive_read_only"),
                "{error:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn mounts_travel_only_where_they_were_asked_to_and_from_where_they_can() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = privileged_sandbox(&mut cri, node).await?;
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let shared = dir.path().join("shared");
        for name in ["shared/from-host", "shared/from-container", "private"] {
            fs::create_dir_all(dir.path().join(name))?;
        }
        let run = |program: &str, arguments: &[&str]| -> Result<()> {
            ensure!(Command::new(program).args(arguments).status()?.success(), "{program} {arguments:?}");
            Ok(())
        };
        let place = shared.to_string_lossy().into_owned();
        run("mount", &["--bind", &place, &place])?;
        let mut made = async || -> Result<()> {
            run("mount", &["--make-private", &place])?;
            for propagation in [1, 2] {
                let mount = v1::Mount { propagation, ..host("/v", &shared) };
                let error = newest.create(&id, with_mounts("c", vec![mount])?).await.err().context("refused")?;
                ensure!(error.message().contains("must be shared"), "{error:?}");
            }
            run("mount", &["--make-shared", &place])?;
            let mut containers = Vec::new();
            for (propagation, name) in [(0, "private"), (1, "slave"), (2, "shared")] {
                let mut c = with_mounts(name, vec![v1::Mount { propagation, ..host("/v", &shared) }])?;
                let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
                c.linux.get_or_insert_default().security_context = Some(context);
                containers.push(newest.run(&id, c).await?);
            }
            run("mount", &["-t", "tmpfs", "keelson-e2e", &format!("{place}/from-host")])?;
            fs::write(shared.join("from-host/mark"), "")?;
            let mut cri = node.cri()?;
            for (c, sees) in containers.iter().zip([false, true, true]) {
                ensure!(fails(&mut cri, c, "test -e /v/from-host/mark").await? != sees, "{c} {sees}");
            }
            for (c, sees) in containers.iter().zip([false, false, true]) {
                cri.shell(c, "mount -t tmpfs keelson-e2e /v/from-container && touch /v/from-container/mark").await?;
                ensure!(shared.join("from-container/mark").exists() == sees, "{c} {sees}");
            }
            cri.stop_pod(&id).await?;
            Ok(())
        };
        let result = made().await;
        for path in ["from-host", "from-container", ""] {
            let _ = Command::new("umount").arg(shared.join(path)).stderr(std::process::Stdio::null()).status();
        }
        result
    });
}

#[test]
fn host_paths_are_resolved_made_or_refused() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = sandbox(&mut cri, node).await?;
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let real = dir.path().join("real");
        fs::create_dir(&real)?;
        fs::write(real.join("file"), "content\n")?;
        symlink("real", dir.path().join("link"))?;
        symlink(dir.path().join("link/file"), dir.path().join("file-link"))?;
        symlink("nowhere/at/all", dir.path().join("dangling"))?;
        let at = |name: &str| dir.path().join(name);
        let mounts = vec![
            host("/folder", &at("link")),
            host("/one-file", &at("file-link")),
            host("/made", &at("not/there/yet")),
        ];
        let c = newest.run(&id, with_mounts("c", mounts)?).await?;
        ensure!(cri.shell(&c, "cat /folder/file /one-file").await? == "content\ncontent\n");
        cri.shell(&c, "touch /made/x").await?;
        ensure!(at("not/there/yet/x").exists(), "a missing host path is a folder to be");
        let status = newest.status(&c).await?;
        ensure!(status.mounts[0].host_path == real.canonicalize()?.to_string_lossy(), "{status:?}");
        for (path, words) in [("dangling", "cannot be made"), ("real/file/below", "Not a directory")] {
            let error = newest.create(&id, with_mounts("d", vec![host("/v", &at(path))])?).await.err().context(path)?;
            ensure!(error.code() == Code::InvalidArgument && error.message().contains(words), "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn a_cgroup_is_mounted_as_asked_or_refused() {
    scenario(async |node, mut cri| {
        let (id, mut newest) = privileged_sandbox(&mut cri, node).await?;
        let features =
            newest.runtime.status(v1::StatusRequest::default()).await?.into_inner().features.unwrap_or_default();
        let with = |name: &str, mode: v1::CgroupMountMode, privileged| -> Result<v1::ContainerConfig> {
            let mut c = with_mounts(name, Vec::new())?;
            c.linux.get_or_insert_default().security_context = Some(v1::LinuxContainerSecurityContext {
                cgroup_mount_mode: mode.into(),
                privileged,
                ..Default::default()
            });
            Ok(c)
        };
        for (name, mode) in [("default", v1::CgroupMountMode::Unspecified), ("ro", v1::CgroupMountMode::ReadOnly)] {
            let c = newest.run(&id, with(name, mode, false)?).await?;
            ensure!(fails(&mut cri, &c, "mkdir /sys/fs/cgroup/sub").await?, "{name}: the cgroup is writable");
        }
        let error = newest.create(&id, with("p", v1::CgroupMountMode::ReadOnly, true)?).await.err().context("p")?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains("privileged"), "{error:?}");
        let writable = with("rw", v1::CgroupMountMode::Writable, false)?;
        if !features.cgroup_mount_mode {
            let error = newest.create(&id, writable).await.err().context("refused")?;
            ensure!(error.code() == Code::FailedPrecondition && error.message().contains("cgroup"), "{error:?}");
            return Ok(());
        }
        let c = newest.run(&id, writable).await?;
        cri.shell(&c, "mkdir -p /sys/fs/cgroup/sub/deep && echo $$ > /sys/fs/cgroup/sub/deep/cgroup.procs").await?;
        ensure!(fails(&mut cri, &c, "echo max > /sys/fs/cgroup/pids.max").await?, "its own limit was raised");
        cri.stop(&c, 0).await?;
        cri.remove(&c).await?;
        Ok(())
    });
}
