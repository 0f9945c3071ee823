//! Images: pulls of every kind, identity, sharing, errors, removal.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, container, pod};

use crate::scenario;

async fn list(cri: &mut Cri) -> Result<Vec<cri::Image>> {
    Ok(cri.images.list_images(cri::ListImagesRequest::default()).await?.into_inner().images)
}

async fn status(cri: &mut Cri, image: &str) -> Result<Option<cri::Image>> {
    let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
    Ok(cri.images.image_status(cri::ImageStatusRequest { image, verbose: false }).await?.into_inner().image)
}

async fn remove(cri: &mut Cri, image: &str) -> Result<()> {
    let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
    cri.images.remove_image(cri::RemoveImageRequest { image }).await?;
    Ok(())
}

#[test]
fn every_kind_of_image_is_pulled_and_run() {
    scenario(async |node, mut cri| {
        for image in [
            "busybox",
            "nginx",
            "library/debian:bookworm",
            "manyfiles:gzip",
            "manyfiles:zstd",
            "docker.io/library/user:latest",
        ] {
            cri.pull(image).await.with_context(|| format!("pull {image}"))?;
        }
        ensure!(list(&mut cri).await?.len() == 6);
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let mut trees = Vec::new();
        for kind in ["gzip", "zstd"] {
            let c = cri.run(&id, container(kind, &format!("manyfiles:{kind}"), "sleep 1000"), &config).await?;
            let tree = "cd / && find . -xdev -path ./etc/resolv.conf -prune -o -path ./dev -prune -o -path ./proc -prune -o -path ./sys -prune -o -type f -print | sort | grep -v -e etc/host -e etc/resolv | xargs cat | sha256sum; find usr -xdev | wc -l";
            trees.push(cri.shell(&c, tree).await?);
        }
        ensure!(trees[0] == trees[1], "gzip and zstd give the same tree: {trees:?}");
        ensure!(trees[0].lines().last().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 3000), "{trees:?}");
        Ok(())
    });
}

#[test]
fn one_content_of_two_names_is_one_image() {
    scenario(async |_, mut cri| {
        let one = cri.pull("docker.io/library/busybox:latest").await?;
        let two = cri.pull("registry.k8s.io/e2e-test-images/busybox:1.29-2").await?;
        ensure!(one == two, "{one} {two}");
        let images = list(&mut cri).await?;
        ensure!(
            images.len() == 1
                && images[0].id == one
                && images[0].repo_tags.len() == 2
                && images[0].repo_digests.len() == 2,
            "{images:?}"
        );
        ensure!(images[0].size > 100_000 && images[0].uid.is_none() | images[0].uid.is_some());
        for name in ["busybox", "docker.io/library/busybox", &one, &one["sha256:".len()..], &images[0].repo_digests[0]]
        {
            ensure!(status(&mut cri, name).await?.is_some_and(|i| i.id == one), "status by `{name}`");
        }
        ensure!(status(&mut cri, "absent:latest").await?.is_none(), "an absent image is an empty answer");
        remove(&mut cri, "docker.io/library/busybox:latest").await?;
        ensure!(list(&mut cri).await?.is_empty(), "removal by one name removes all");
        remove(&mut cri, "docker.io/library/busybox:latest").await?;
        Ok(())
    });
}

#[test]
fn concurrent_pulls_fetch_each_blob_once_and_a_repeated_pull_fetches_none() {
    scenario(async |node, mut cri| {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let mut cri = cri.clone();
            tasks.spawn(async move { cri.pull("nginx:latest").await });
        }
        while let Some(result) = tasks.join_next().await {
            result??;
        }
        let blobs = |node: &keelson_e2e::node::Node| {
            node.registry().requests().iter().filter(|r| r.starts_with("GET") && r.contains("/blobs/")).count()
        };
        ensure!(blobs(node) == 2, "one config and one layer: {:?}", node.registry().requests());
        cri.pull("nginx:latest").await?;
        ensure!(blobs(node) == 2);
        Ok(())
    });
}

#[test]
fn the_image_of_a_running_container_can_go_and_its_files_stay() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox", "sleep 1000"), &config).await?;
        remove(&mut cri, "busybox").await?;
        ensure!(list(&mut cri).await?.is_empty());
        ensure!(cri.shell(&c, "cat /etc/passwd").await?.contains("root"));
        cri.stop(&c, 0).await?;
        cri.remove(&c).await?;
        let used = cri.images.image_fs_info(cri::ImageFsInfoRequest {}).await?.into_inner().image_filesystems;
        ensure!(used.len() == 1 && used[0].fs_id.is_some(), "{used:?}");
        Ok(())
    });
}

#[test]
fn failed_pulls_say_why_and_leave_nothing() {
    scenario(async |node, mut cri| {
        let before = walk(&node.root_dir());
        for (image, code, word) in [
            ("docker.io/library/absent:latest", tonic::Code::NotFound, "absent"),
            ("127.0.0.1:1/x:latest", tonic::Code::Unavailable, "RegistryUnavailable"),
            ("UPPER/case", tonic::Code::InvalidArgument, "UPPER"),
            ("busybox@sha256:short", tonic::Code::InvalidArgument, "short"),
            ("", tonic::Code::InvalidArgument, "image"),
            ("busybox:la test", tonic::Code::InvalidArgument, "la test"),
        ] {
            let error = cri.pull(image).await.err().with_context(|| format!("`{image}` must fail"))?;
            ensure!(error.code() == code && error.message().contains(word), "`{image}`: {error:?}");
        }
        ensure!(walk(&node.root_dir()) == before, "a failed pull leaves nothing");
        Ok(())
    });
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
