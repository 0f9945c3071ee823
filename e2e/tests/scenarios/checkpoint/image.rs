//! Restores from OCI images that carry a checkpoint, as `buildah` and `checkpointctl build` make them: the archive's members are the
//! layers' files, an annotation of the manifest says so. T14: the image is trusted with no more than an archive.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, pod};
use tonic::Code;

use super::{COUNTER, add, checkpoint, count, criu, folders, goes_on, members};
use crate::scenario_with;

const OLD: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";
const NEW: &str = "org.criu.checkpoint.container.name";

/// The members of an archive in two layers: the texts below, CRIU's images above.
fn layers(archive: &Path, change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let (mut below, mut above) = (tar::Builder::new(Vec::new()), tar::Builder::new(Vec::new()));
    for (name, bytes) in members(archive)? {
        if name.ends_with('/') || name == "checkpoint" {
            continue;
        }
        let bytes = change(&name, bytes);
        add(if name.starts_with("checkpoint/") { &mut above } else { &mut below }, &name, &bytes)?;
    }
    Ok(vec![below.into_inner()?, above.into_inner()?])
}

/// An image of these layers, served by the node's registry; its name by digest.
fn serve(node: &Node, repository: &str, annotation: Option<&str>, layers: Vec<Vec<u8>>) -> String {
    let registry = node.registry();
    let descriptor = |media: &str, digest: &str, size: usize| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{media}"), "digest": digest, "size": size });
    let mut diff_ids = Vec::new();
    let mut described = Vec::new();
    for layer in layers {
        let size = layer.len();
        let digest = registry.add(layer);
        described.push(descriptor("layer.v1.tar", &digest, size));
        diff_ids.push(digest);
    }
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        // Nothing of it counts.
        "config": { "User": "0", "Cmd": ["/bin/evil"], "Labels": { "repository": repository } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string().into_bytes();
    let size = config.len();
    let config = descriptor("config.v1+json", &registry.add(config), size);
    let annotations: BTreeMap<&str, &str> = annotation.map(|name| (name, "counter")).into_iter().collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": described,
        "annotations": annotations,
    });
    format!("docker.io/library/{repository}@{}", registry.add(manifest.to_string().into_bytes()))
}

/// A pod, and the archive of a container that counts in it.
async fn counting(node: &Node, cri: &mut Cri) -> Result<(cri::PodSandboxConfig, String, PathBuf)> {
    cri.pull("busybox").await?;
    let sandbox = pod(node, "pod");
    let id = cri.run_pod(&sandbox).await?;
    let script = format!("echo kept > /etc/kept; {COUNTER}");
    let c = cri.run(&id, container("c", "busybox", &script), &sandbox).await?;
    goes_on(node, "pod/c.log").await?;
    let archive = node.logs_dir().join("c.tar");
    checkpoint(cri, &c, &archive, 60).await?;
    Ok((sandbox, id, archive))
}

fn honest(_: &str, bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[test]
fn a_container_goes_on_from_an_image_that_carries_its_checkpoint() {
    let Some(config) = criu("a_container_goes_on_from_an_image_that_carries_its_checkpoint") else { return };
    scenario_with(&format!("{config}images = true\n"), async |node, mut cri| {
        let (sandbox, id, archive) = counting(node, &mut cri).await?;
        for (name, annotation) in [("old", OLD), ("new", NEW)] {
            let image = serve(node, name, Some(annotation), layers(&archive, honest)?);
            cri.pull(&image).await?;
            let made = cri.create(&id, container(name, &image, "echo never run"), &sandbox).await?;
            // The image itself is not needed any more, and a daemon that is killed finds the container as it was.
            let spec = cri::ImageSpec { image: image.clone(), ..Default::default() };
            cri.images.remove_image(cri::RemoveImageRequest { image: Some(spec) }).await?;
            node.kill()?;
            node.boot()?;
            cri = node.cri()?;
            cri.start(&made).await?;
            goes_on(node, &format!("pod/{name}.log")).await?;
            let text = node.container_log(&format!("pod/{name}.log"));
            ensure!(count(text.lines().next().context("an empty log")?) > 1 && !text.contains("never"), "{text}");
            ensure!(cri.shell(&made, "cat /etc/kept").await? == "kept\n");
            let (status, busybox) = (cri.status(&made).await?, cri.pull("busybox").await?);
            ensure!(status.image_id == busybox || status.image_ref.contains(&busybox), "{status:?}");
            ensure!(folders(node) == 0, "folders are left");
        }
        Ok(())
    });
}

#[test]
fn an_image_with_a_checkpoint_is_trusted_with_no_more_than_an_archive() {
    let Some(config) = criu("an_image_with_a_checkpoint_is_trusted_with_no_more_than_an_archive") else { return };
    scenario_with(&format!("{config}images = true\n"), async |node, mut cri| {
        let (sandbox, id, archive) = counting(node, &mut cri).await?;
        let refused = async |cri: &mut Cri, image: &str, words: &str| -> Result<()> {
            cri.pull(image).await?;
            let made = cri.create(&id, container("hostile", image, "true"), &sandbox).await;
            let status = made.err().with_context(|| format!("`{words}` was taken"))?;
            ensure!(status.message().contains(words), "want `{words}`: {status}");
            ensure!(folders(node) == 0, "a folder is left");
            Ok(())
        };
        // A spec that asks for everything is not looked at; a process with more than the request is refused.
        let spec = |name: &str, bytes| {
            let all =
                br#"{"mounts":[{"destination":"/host","source":"/","type":"bind"}],"process":{"user":{"uid":0}}}"#;
            if name == "spec.dump" { all.to_vec() } else { bytes }
        };
        let image = serve(node, "spec", Some(NEW), layers(&archive, spec)?);
        cri.pull(&image).await?;
        let made = cri.run(&id, container("spec", &image, "true"), &sandbox).await?;
        goes_on(node, "pod/spec.log").await?;
        ensure!(cri.exec(&made, &["ls", "/host"], 5).await?.exit_code != 0, "a mount of the archive's spec");
        let mut less = container("less", &image, "true");
        less.linux.get_or_insert_default().security_context = Some(cri::LinuxContainerSecurityContext {
            run_as_user: Some(cri::Int64Value { value: 1000 }),
            ..Default::default()
        });
        let status = cri.create(&id, less, &sandbox).await.err().context("root for a request of uid 1000")?;
        ensure!(status.message().contains("user id"), "{status}");
        // A link in the place of a file, an image of another kind, a base image that is not here.
        let mut parts = layers(&archive, honest)?;
        let mut links = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        links.append_link(&mut header, "checkpoint/pages-1.img", "/etc/shadow")?;
        parts.push(links.into_inner()?);
        refused(&mut cri, &serve(node, "link", Some(NEW), parts), "neither a regular file").await?;
        let mut parts = layers(&archive, honest)?;
        let mut more = tar::Builder::new(Vec::new());
        add(&mut more, "checkpoint/netdev-9.img", b"")?;
        parts.push(more.into_inner()?);
        refused(&mut cri, &serve(node, "more", Some(NEW), parts), "no such image").await?;
        let other = |name: &str, bytes| {
            let config = format!(r#"{{"rootfsImageRef":"sha256:{}"}}"#, "ab".repeat(32));
            if name == "config.dump" { config.into_bytes() } else { bytes }
        };
        refused(&mut cri, &serve(node, "other", Some(NEW), layers(&archive, other)?), "not on this node").await?;
        // Without the annotation it is a root filesystem like any.
        let plain = serve(node, "plain", None, layers(&archive, honest)?);
        cri.pull(&plain).await?;
        cri.create(&id, container("plain", &plain, "true"), &sandbox).await?;
        ensure!(folders(node) == 0, "an image without a note is restored");
        Ok(())
    });
}

#[test]
fn nobody_s_image_is_restored_where_the_operator_has_not_allowed_it() {
    scenario_with("", async |node, mut cri| {
        cri.pull("busybox").await?;
        let sandbox = pod(node, "pod");
        let id = cri.run_pod(&sandbox).await?;
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, "config.dump", b"{}")?;
        add(&mut tar, "checkpoint/inventory.img", b"")?;
        let image = serve(node, "dump", Some(NEW), vec![tar.into_inner()?]);
        cri.pull(&image).await?;
        let status = cri.create(&id, container("c", &image, "true"), &sandbox).await.err().context("it was taken")?;
        ensure!(status.code() == Code::FailedPrecondition && status.message().contains("images = true"), "{status}");
        ensure!(folders(node) == 0, "a folder is left");
        // The note alone changes nothing: otherwise whoever can push a manifest could stop everybody's containers of an image.
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, "etc/note", b"only files")?;
        let image = serve(node, "note", Some(OLD), vec![tar.into_inner()?]);
        cri.pull(&image).await?;
        cri.create(&id, container("note", &image, "true"), &sandbox).await?;
        Ok(())
    });
}
