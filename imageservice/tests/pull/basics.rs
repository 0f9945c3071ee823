//! What works on a good day, and what a registry may send that is no image.

use keelson_imageservice::{
    Digest,
    pull::{PullError, PullFailure},
};
use serde_json::{Value, json};

use super::{
    Node,
    image::{self, Family, Image, Layer, Packing, noise},
    server::{Reply, Server, Shelf, shelf},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_packing_of_both_families_is_pulled() {
    for family in [Family::Oci, Family::Docker] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let layers = vec![
                Layer::new(packing, &[("a", b"one"), ("dir/b", &noise(1, 300_000))]),
                Layer::new(packing, &[("a", b"two")]),
            ];
            let made = Image::new(family, "amd64", layers);
            let server = Server::plain(made.shelf("team/app", "1"), |_| None).await;
            let node = Node::new();
            let name = format!("{}/team/app:1", server.host());
            let image = node.pull(&name).await.unwrap();
            assert_eq!(image.id, made.id());
            assert_eq!(image.tags, std::slice::from_ref(&name));
            assert_eq!(image.digests, [format!("{}/team/app@{}", server.host(), made.digest())]);
            assert_eq!(image.config.cmd, ["/hello"]);
            for layer in &made.layers {
                assert!(node.service.layers().has(&image::digest(&layer.tar)));
            }
            assert_eq!(node.service.find(&made.id().to_string()).as_deref(), Some(&*image));
            assert_eq!(server.count("GET", "/blobs/"), 3, "{:?}", server.seen());
            assert_eq!(server.count("GET", "/manifests/"), 1, "one round trip for the document");
            node.assert_clean();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_yields_the_image_for_this_node() {
    let (intel, arm) =
        (Image::simple(1), Image::new(Family::Oci, "arm64", vec![Layer::new(Packing::Gzip, &[("x", b"arm")])]));
    for family in [Family::Oci, Family::Docker] {
        let mut shelf = Shelf::new();
        let index = image::publish_index(family, &[&arm, &intel], &mut shelf, ("app", "1"));
        let server = Server::plain(shelf, |_| None).await;
        let node = Node::new();
        let image = node.pull(&format!("{}/app:1", server.host())).await.unwrap();
        assert_eq!(image.id, intel.id());
        assert_eq!(
            image.digests,
            [format!("{}/app@{index}", server.host())],
            "the digest is that of what was asked for"
        );
        let node = Node::with(|config| config.platform.architecture = "riscv64".into());
        let text = node.refuse(&format!("{}/app:1", server.host())).await;
        assert!(text.contains("not built for linux/riscv64") && text.contains("linux/arm64"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_is_held_to_that_digest() {
    let made = Image::simple(2);
    let other = Image::simple(3);
    let lie = other.manifest.clone();
    let honest = Server::plain(made.shelf("app", "1"), |_| None).await;
    let liar = Server::plain(made.shelf("app", "1"), move |request| {
        (request.is("GET", "/manifests/")).then(|| Reply::ok("application/vnd.oci.image.manifest.v1+json", lie.clone()))
    })
    .await;
    let node = Node::new();
    let text = node.refuse(&format!("{}/app@{}", liar.host(), made.digest())).await;
    assert!(
        text.contains(&format!("asked for {}, got content with the digest {}", made.digest(), other.digest())),
        "{text}"
    );
    let image = node.pull(&format!("{}/app:1@{}", honest.host(), made.digest())).await.unwrap();
    assert!(image.tags.is_empty(), "a tag beside a digest was not checked: {:?}", image.tags);
    assert_eq!(image.digests, [format!("{}/app@{}", honest.host(), made.digest())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_tag_costs_one_head_and_a_moved_one_moves() {
    let (old, new) = (Image::simple(4), Image::simple(5));
    let mut all = old.shelf("app", "1");
    new.publish(&mut all, "app", "2");
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (flag, copy) = (moved.clone(), all.clone());
    let server = Server::plain(all, move |request| {
        let flip = flag.load(std::sync::atomic::Ordering::SeqCst) && request.path.ends_with("/manifests/1");
        let mut request = request.clone();
        request.path = request.path.replace("/manifests/1", "/manifests/2");
        flip.then(|| shelf(&copy, &request))
    })
    .await;
    let node = Node::new();
    let name = format!("{}/app:1", server.host());
    let first = node.pull(&name).await.unwrap();
    server.forget();
    assert_eq!(node.pull(&name).await.unwrap(), first);
    assert_eq!(server.seen().len(), 1);
    assert_eq!(server.count("HEAD", "/manifests/1"), 1);
    moved.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(node.pull(&name).await.unwrap().id, new.id());
    assert_eq!(node.service.find(&name).unwrap().id, new.id());
    let left = node.service.find(&old.id().to_string()).unwrap();
    assert!(left.tags.is_empty() && !left.digests.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_under_two_names_is_one_image() {
    let made = Image::simple(6);
    let mut all = made.shelf("one", "1");
    made.publish(&mut all, "two", "latest");
    let server = Server::plain(all, |_| None).await;
    let node = Node::new();
    let (one, two) = (format!("{}/one:1", server.host()), format!("{}/two", server.host()));
    node.pull(&one).await.unwrap();
    let fetched = server.count("GET", "/blobs/");
    let image = node.pull(&two).await.unwrap();
    assert_eq!(image.tags, [one, format!("{two}:latest")]);
    assert_eq!(node.service.list().len(), 1);
    assert_eq!(server.count("GET", "/blobs/"), fetched, "nothing is fetched twice");
}

fn hostile(change: impl FnOnce(&mut Value)) -> Reply {
    let made = Image::simple(7);
    let mut document: Value = serde_json::from_slice(&made.manifest).unwrap();
    change(&mut document);
    Reply::ok(document["mediaType"].as_str().unwrap_or("application/json"), document.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_with_its_reason() {
    let none = |_: &mut Value| {};
    let table: Vec<(Reply, &str, &str)> = vec![
        (hostile(|document| document["manifests"] = json!([])), "InvalidManifest", "both `layers` and `manifests`"),
        (
            Reply::ok("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#),
            "InvalidManifest",
            "schema 1",
        ),
        (
            Reply::ok("application/vnd.oci.image.index.v1+json", hostile(none).body),
            "InvalidManifest",
            "was announced as",
        ),
        (hostile(|document| document["layers"] = json!([])), "InvalidManifest", "0 layers, the config 1 diff ids"),
        (
            hostile(|document| document["layers"][0]["digest"] = json!("sha256:../../../etc/passwd")),
            "InvalidManifest",
            "digest",
        ),
        (
            hostile(|document| document["layers"][0]["size"] = json!(u64::MAX)),
            "InvalidManifest",
            "the limit of this node",
        ),
        (
            hostile(|document| document["config"]["mediaType"] = json!("application/vnd.example.model")),
            "InvalidManifest",
            "artifact",
        ),
        (
            Reply::ok("application/vnd.oci.image.manifest.v1+json", vec![b' '; 5 << 20]),
            "BadAnswer",
            "larger than 4194304 bytes",
        ),
        (
            Reply::ok("application/vnd.oci.image.manifest.v1+json", "{".repeat(10_000)),
            "InvalidManifest",
            "parse manifest",
        ),
        (Reply::ok("application/vnd.oci.image.manifest.v1+json", ""), "InvalidManifest", "parse manifest"),
        (Reply::ok("text/html; charset=utf-8", "<html>log in</html>"), "BadAnswer", "a web page instead of a manifest"),
        (
            hostile(none).header("docker-content-digest", Digest::from_sha256([7; 32]).to_string()),
            "BadAnswer",
            "got content with the digest",
        ),
    ];
    for (reply, variant, want) in table {
        let shelf = Image::simple(7).shelf("app", "other");
        let server =
            Server::plain(shelf, move |request| request.path.ends_with("/manifests/1").then(|| reply.clone())).await;
        let node = Node::new();
        let name = format!("{}/app:1", server.host());
        let error = node.pull(&name).await.unwrap_err();
        let text = super::chain(&error);
        assert!(format!("{error:?}").starts_with(variant), "{want}: {error:?}");
        assert!(text.contains(want) && text.contains(&name) && text.len() < 1500, "{want}: {text}");
        assert_eq!(error.kind(), PullFailure::Invalid, "{text}");
        node.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_become_errors_that_say_what_to_do() {
    let table: Vec<(Reply, PullFailure, &[&str])> = vec![
        (
            Reply::error(404, "NAME_UNKNOWN", "no\\nsuch repo"),
            PullFailure::NotFound,
            &["not found (NAME_UNKNOWN: no such repo)", "check name and tag"],
        ),
        (Reply::status(401), PullFailure::Unauthorized, &["401", "asked without credentials", "image pull secret"]),
        (Reply::error(403, "DENIED", "no"), PullFailure::Unauthorized, &["403 forbidden (DENIED: no)"]),
        (
            Reply::status(429).header("retry-after", "3600"),
            PullFailure::Unavailable,
            &["429", "retry after 3600 s", "mirror in hosts.toml"],
        ),
        (Reply::status(500), PullFailure::Unavailable, &["500", "try again later"]),
        (Reply::status(418), PullFailure::Invalid, &["418"]),
        (Reply::status(302), PullFailure::Invalid, &["names no location"]),
        (
            Reply::status(302).header("location", "file:///etc/passwd"),
            PullFailure::Invalid,
            &["leads to a `file:` URL"],
        ),
        (Reply::status(307).header("location", "/v2/app/manifests/1"), PullFailure::Invalid, &["more than 5 in a row"]),
    ];
    for (reply, kind, words) in table {
        let server = Server::plain(Shelf::new(), move |_| Some(reply.clone())).await;
        let node = Node::new();
        let name = format!("{}/app:1", server.host());
        let error = node.pull(&name).await.unwrap_err();
        let text = super::chain(&error);
        assert_eq!(error.kind(), kind, "{text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(
            text.contains(&format!("http://{}/v2/app/manifests/1", server.host())) && !text.contains('\n'),
            "{text}"
        );
    }
    let node = Node::new();
    // Nobody listens on port 1.
    let text = node.refuse("127.0.0.1:1/app:1").await;
    assert!(
        text.contains("registry unavailable")
            && text.contains("refused")
            && text.contains("check that the registry runs"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_trouble_is_waited_out() {
    let made = Image::simple(8);
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let server =
        Server::plain(made.shelf("app", "1"), move |_| match tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Some(Reply::status(429).header("retry-after", "1")),
            1 | 3 => Some(Reply::status(503)),
            _ => None,
        })
        .await;
    assert_eq!(Node::new().pull(&format!("{}/app:1", server.host())).await.unwrap().id, made.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_layers_and_configs_are_refused_and_leave_nothing() {
    let good = Layer::new(Packing::Gzip, &[("f", &noise(9, 50_000))]);
    let mut cut = good.clone();
    cut.blob.truncate(cut.blob.len() / 2);
    let mut lie = good.clone();
    lie.tar = b"something else".to_vec();
    let traversal = {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..12].copy_from_slice(b"../../escape");
        header.set_size(4);
        header.set_mode(0o644);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b"evil"[..]).unwrap();
        Layer::of_tar(Packing::Gzip, builder.into_inner().unwrap())
    };
    for (layer, want) in [(cut, "inflate"), (lie, "diff id"), (traversal, "escape")] {
        let made = Image::new(Family::Oci, "amd64", vec![Layer::new(Packing::Gzip, &[("ok", b"1")]), layer]);
        let server = Server::plain(made.shelf("app", "1"), |_| None).await;
        let text = Node::new().refuse(&format!("{}/app:1", server.host())).await;
        assert!(text.contains(want) && text.contains("layer 2 of 2"), "{want}: {text}");
    }
    let made = Image::simple(10);
    for broken in ["config", "layer"] {
        let blob = if broken == "config" { made.id() } else { made.layers[0].digest() };
        let mut shelf = made.shelf("app", "1");
        let (_, bytes) = shelf.get_mut(&format!("/v2/app/blobs/{blob}")).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        let server = Server::plain(shelf, |_| None).await;
        let node = Node::new();
        let text = node.refuse(&format!("{}/app:1", server.host())).await;
        assert!(text.contains("got content with the digest") && text.contains(broken), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_sent_are_refused_before_anything_is_asked() {
    let server = Server::plain(Shelf::new(), |_| None).await;
    let bad = super::Credentials { auth: "not base64!".into(), ..super::Credentials::default() };
    let error = Node::new().pull_as(&format!("{}/app", server.host()), Some(bad)).await.unwrap_err();
    assert!(matches!(error, PullError::InvalidCredentials { .. }));
    assert!(server.seen().is_empty());
}

/// A small filesystem, gone with the value.
struct SmallDisk<'a>(&'a std::path::Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_full_disk_is_told_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let mounted = rustix::mount::mount("tmpfs", temp.path(), "tmpfs", flags, Some(c"size=1m,mode=755"));
    if let Err(errno) = mounted {
        println!("SKIP privileged_a_full_disk_is_told_and_leaves_nothing: mount tmpfs: {errno}");
        return;
    }
    let _disk = SmallDisk(temp.path());
    let (small, large) = (Image::of_sizes(11, &[1000]), Image::of_sizes(12, &[1000, 3_000_000]));
    let mut shelf = small.shelf("app", "small");
    large.publish(&mut shelf, "app", "large");
    let server = Server::plain(shelf, |_| None).await;
    let node = Node::with(|config| config.root = temp.path().to_owned());
    let error = node.pull(&format!("{}/app:large", server.host())).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { .. }), "{error:?}");
    assert_eq!(error.kind(), PullFailure::Exhausted);
    let text = super::chain(&error);
    assert!(text.contains("no space left") && text.contains("free space"), "{text}");
    // The daemon goes on, and what fits is pulled as soon as the trash is empty.
    super::eventually("the trash is empty", || node.service.is_drained().unwrap()).await;
    node.pull(&format!("{}/app:small", server.host())).await.unwrap();
    node.service.stop_pulls().await;
}
