//! Endpoints in order, each asked only what it may be asked, every failure told.

use super::{
    Node,
    image::{Image, digest},
    server::{Reply, Server, Shelf},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_first_and_is_told_the_registry() {
    let made = Image::simple(1);
    let mirror = Server::plain(made.shelf("library/app", "latest"), |_| None).await;
    let origin = Server::plain(Shelf::new(), |_| Some(Reply::status(500))).await;
    let node = Node::new();
    node.hosts("docker.io", &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.host(), mirror.host()));
    let image = node.pull("app").await.unwrap();
    assert_eq!(image.tags, ["docker.io/library/app:latest"]);
    assert!(mirror.seen().iter().all(|request| request.query == "ns=docker.io"), "{:?}", mirror.seen());
    assert!(origin.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_may_only_pull_is_not_asked_for_tags() {
    let made = Image::simple(2);
    let mirror = Server::plain(made.shelf("app", "1"), |_| None).await;
    let resolver = Server::plain(made.shelf("app", "1"), |_| None).await;
    let origin = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Node::new();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"resolve\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        origin.host(),
        resolver.host(),
        mirror.host()
    );
    node.hosts("r.test", &text);
    node.pull("r.test/app:1").await.unwrap();
    assert_eq!(resolver.seen().len(), 1);
    assert_eq!(resolver.count("HEAD", "/manifests/1"), 1);
    assert_eq!(mirror.count("GET", &format!("/manifests/{}", made.digest())), 1);
    assert_eq!(mirror.count("GET", "/blobs/"), 2);
    assert!(origin.seen().is_empty(), "{:?}", origin.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_mirror_is_left_alone_for_the_rest_of_the_pull() {
    let made = Image::of_sizes(3, &[1000, 1000, 1000]);
    let mirror = Server::plain(Shelf::new(), |_| None).await;
    let origin = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Node::new();
    node.hosts("r.test", &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.host(), mirror.host()));
    node.pull("r.test/app:1").await.unwrap();
    assert_eq!(mirror.seen().len(), 1, "{:?}", mirror.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_mirror_is_passed_over_for_each_kind_of_content() {
    let made = Image::of_sizes(4, &[50_000]);
    let parts = [made.digest(), made.id(), digest(&made.layers[0].blob)];
    for (at, part) in parts.iter().enumerate() {
        let mut shelf = made.shelf("app", "1");
        for (path, (_, bytes)) in &mut shelf {
            let middle = bytes.len() / 2;
            if path.ends_with(&part.to_string()) {
                bytes[middle] ^= 0x40;
            }
        }
        let mirror = Server::plain(shelf, |_| None).await;
        let origin = Server::plain(made.shelf("app", "1"), |_| None).await;
        let node = Node::new();
        node.hosts("r.test", &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.host(), mirror.host()));
        let name = format!("r.test/app@{}", made.digest());
        assert_eq!(node.pull(&name).await.unwrap().id, made.id(), "part {at}");
        assert!(origin.count("GET", &part.to_string()) == 1, "part {at}: {:?}", origin.seen());
        node.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_tells_every_endpoint_and_the_last_one_decides() {
    let down = "127.0.0.1:1";
    let empty = Server::plain(Shelf::new(), |_| None).await;
    let busy = Server::plain(Shelf::new(), |_| Some(Reply::status(429))).await;
    let node = Node::new();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{down}\"]\n[host.\"http://{}\"]\n", empty.host(), busy.host());
    node.hosts("r.test", &text);
    let error = node.pull("r.test/app:1").await.unwrap_err();
    let text = super::chain(&error);
    for word in [
        down,
        "refused",
        &busy.host(),
        "429",
        &empty.host(),
        "not found (MANIFEST_UNKNOWN: no such thing)",
        "check name and tag",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(matches!(error, super::PullError::NotFound { .. }), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_hosts_file_fails_the_pull_and_only_of_its_registry() {
    let made = Image::simple(5);
    let server = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Node::new();
    node.hosts(&server.host(), "[host.\"http://127.0.0.1:1\"]\ncapabilities = \"pull\"\n");
    let text = node.refuse(&format!("{}/app:1", server.host())).await;
    assert!(text.contains("hosts.toml` line 2"), "{text}");
    assert!(server.seen().is_empty());
    node.hosts("fine.test", &format!("server = \"http://{}\"\n", server.host()));
    node.pull("fine.test/app:1").await.unwrap();
    // Put right, it works without a restart.
    node.hosts(&server.host(), "");
    node.pull(&format!("{}/app:1", server.host())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_that_may_be_asked_the_error_says_so() {
    let node = Node::new();
    node.hosts("r.test", "server = \"http://127.0.0.1:1\"\ncapabilities = [\"push\"]\n");
    let text = node.refuse("r.test/app:1").await;
    assert!(text.contains("hosts.toml leaves no endpoint"), "{text}");
}
