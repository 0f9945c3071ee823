//! Many callers, one transfer; callers that go away, and what goes on without them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keelson_imageservice::{PullError, PullRequest};

use super::{
    Node, eventually,
    image::Image,
    server::{Reply, Server, Shelf},
};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_pulls_of_one_image_fetch_every_blob_once() {
    let made = Image::of_sizes(1, &[200_000, 100_000, 50_000, 10_000]);
    let server = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Arc::new(Node::new());
    let name = format!("{}/app:1", server.host());
    let pulls = (0..20).map(|_| {
        let (node, name) = (node.clone(), name.clone());
        tokio::spawn(async move { node.pull(&name).await.unwrap().id })
    });
    for pull in pulls.collect::<Vec<_>>() {
        assert_eq!(pull.await.unwrap(), made.id());
    }
    assert_eq!(server.count("GET", "/manifests/"), 1);
    assert_eq!(server.count("GET", "/blobs/"), 5, "{:?}", server.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn different_images_share_the_transfer_of_a_common_layer() {
    let common = Image::of_sizes(2, &[300_000]).layers[0].clone();
    let mut shelf = Shelf::new();
    let mut names = Vec::new();
    for number in 0..8_u64 {
        let own = Image::of_sizes(100 + number, &[1000]).layers[0].clone();
        let made = Image::new(super::image::Family::Oci, "amd64", vec![common.clone(), own]);
        let name = format!("app-{number}");
        made.publish(&mut shelf, &name, "1");
        names.push(name);
    }
    let (blob, body) = (common.digest().to_string(), common.blob.clone());
    let server = Server::plain(shelf, move |request| {
        let slow = Reply {
            drip: Some((50_000, Duration::from_millis(30))),
            ..Reply::ok("application/octet-stream", body.clone())
        };
        request.path.ends_with(&blob).then_some(slow)
    })
    .await;
    let node = Arc::new(Node::new());
    let pulls = names.into_iter().map(|name| {
        let (node, name) = (node.clone(), format!("{}/{name}:1", server.host()));
        tokio::spawn(async move { node.pull(&name).await.map(|image| image.id) })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(server.count("GET", &common.digest().to_string()), 1);
    assert_eq!(node.service.list().len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_registry_that_fails_does_not_fail_the_same_layer_from_another() {
    let made = Image::of_sizes(3, &[200_000]);
    let (blob, half) = (made.layers[0].digest().to_string(), made.layers[0].blob.clone());
    let bad = Server::plain(made.shelf("app", "1"), move |request| {
        let stalled = Reply { stall: Some(half.len() / 2), ..Reply::ok("application/octet-stream", half.clone()) };
        request.path.ends_with(&blob).then_some(stalled)
    })
    .await;
    let good = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Arc::new(Node::new());
    let first = tokio::spawn({
        let (node, name) = (node.clone(), format!("{}/app:1", bad.host()));
        async move { node.pull(&name).await }
    });
    eventually("the layer is asked for", || bad.count("GET", "/blobs/") >= 2).await;
    assert_eq!(node.pull(&format!("{}/app:1", good.host())).await.unwrap().id, made.id());
    // It failed, or found the layer that the other had brought.
    drop(first.await.unwrap());
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_does_not_stop_the_pull_and_the_next_one_joins_it() {
    let made = Image::of_sizes(4, &[100_000]);
    let gate = Arc::new(AtomicBool::new(false));
    let (open, blob, body) = (gate.clone(), made.layers[0].digest().to_string(), made.layers[0].blob.clone());
    let server = Server::plain(made.shelf("app", "1"), move |request| {
        let slow = Reply {
            drip: Some((10_000, Duration::from_millis(40))),
            ..Reply::ok("application/octet-stream", body.clone())
        };
        (request.path.ends_with(&blob) && !open.swap(true, Ordering::SeqCst)).then_some(slow)
    })
    .await;
    let node = Node::new();
    let name = format!("{}/app:1", server.host());
    let request = || PullRequest { reference: name.parse().unwrap(), credentials: None };
    let error = node.service.pull_within(request(), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, PullError::DeadlineExceeded { .. }), "{error}");
    let mut joined = 0;
    while node.service.find(&name).is_none() {
        assert!(joined < 1000, "half a minute of calls, and no image");
        joined += 1;
        let _ = node.service.pull_within(request(), Duration::from_millis(30)).await;
    }
    assert!(joined > 1, "it took longer than one call");
    assert_eq!(node.service.find(&name).unwrap().id, made.id());
    assert_eq!(server.count("GET", "/blobs/"), 2, "{:?}", server.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_pulls_and_leaves_nothing() {
    let made = Image::of_sizes(5, &[400_000]);
    let (blob, body) = (made.layers[0].digest().to_string(), made.layers[0].blob.clone());
    let server = Server::plain(made.shelf("app", "1"), move |request| {
        let slow = Reply {
            drip: Some((5_000, Duration::from_millis(50))),
            ..Reply::ok("application/octet-stream", body.clone())
        };
        request.path.ends_with(&blob).then_some(slow)
    })
    .await;
    let node = Arc::new(Node::new());
    let name = format!("{}/app:1", server.host());
    let pull = tokio::spawn({
        let (node, name) = (node.clone(), name.clone());
        async move { node.pull(&name).await }
    });
    eventually("the layer is asked for", || server.count("GET", "/blobs/") >= 2).await;
    node.service.stop_pulls().await;
    assert!(matches!(pull.await.unwrap(), Err(PullError::Interrupted { .. })));
    node.assert_clean();
    assert!(matches!(node.pull(&name).await, Err(PullError::Interrupted { .. })), "nothing starts any more");
}
