//! Connections that break, stall, lie about lengths, or know no ranges.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{
    Node,
    image::Image,
    server::{self, Reply, Request, Server},
};

/// Serves `made`, its first layer by `reply(number of the request, request, honest reply)`.
async fn rude(made: &Image, reply: impl Fn(usize, &Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let shelf = made.shelf("app", "1");
    let (copy, blob, number) = (shelf.clone(), made.layers[0].digest().to_string(), AtomicUsize::new(0));
    Server::plain(shelf, move |request| {
        request.path.ends_with(&blob).then(|| {
            let honest = server::shelf(&copy, request);
            reply(number.fetch_add(1, Ordering::SeqCst), request, honest)
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let made = Image::of_sizes(1, &[600_000]);
    let server = rude(&made, |number, _, honest| match number {
        0 => Reply { cut: Some(100_000), ..honest },
        1 => Reply { cut: Some(0), ..honest },
        2 => Reply { cut: Some(250_000), ..honest },
        _ => honest,
    })
    .await;
    let node = Node::new();
    assert_eq!(node.pull(&format!("{}/app:1", server.host())).await.unwrap().id, made.id());
    let blob = made.layers[0].digest().to_string();
    let starts: Vec<usize> = server.seen().iter().filter(|r| r.path.ends_with(&blob)).map(Request::from).collect();
    assert_eq!(starts, [0, 100_000, 100_000, 350_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_read_from_the_start_without_repeating_a_byte() {
    let made = Image::of_sizes(2, &[600_000]);
    let body = made.layers[0].blob.clone();
    let server = rude(&made, move |number, _, _| {
        let whole = Reply::ok("application/octet-stream", body.clone());
        if number == 0 { Reply { cut: Some(123_457), ..whole } } else { whole }
    })
    .await;
    assert_eq!(Node::new().pull(&format!("{}/app:1", server.host())).await.unwrap().id, made.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_at_the_next_endpoint() {
    let made = Image::of_sizes(3, &[600_000]);
    let mirror = rude(&made, |number, _, honest| match number {
        0 => Reply { cut: Some(200_000), ..honest },
        _ => Reply::status(404),
    })
    .await;
    let origin = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Node::new();
    node.hosts("r.test", &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.host(), mirror.host()));
    node.pull("r.test/app:1").await.unwrap();
    let starts: Vec<usize> = origin.seen().iter().map(Request::from).collect();
    assert_eq!(starts, [200_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_always_breaks_is_given_up_on() {
    let made = Image::of_sizes(4, &[600_000]);
    let server = rude(&made, |_, _, honest| Reply { cut: Some(1000), ..honest }).await;
    let text = Node::new().refuse(&format!("{}/app:1", server.host())).await;
    assert!(text.contains("the connection broke after") && text.contains("layer 1 of 1"), "{text}");
    assert!(server.count("GET", "/blobs/") < 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_drip_feed_are_both_stalls() {
    let made = Image::of_sizes(5, &[600_000]);
    for drip in [false, true] {
        let server = rude(&made, move |_, _, honest| match drip {
            // 100 bytes a second, never silent for long; the floor of these tests is 1000.
            true => Reply { drip: Some((5, Duration::from_millis(50))), ..honest },
            false => Reply { stall: Some(50_000), ..honest },
        })
        .await;
        let start = Instant::now();
        let text = Node::new().refuse(&format!("{}/app:1", server.host())).await;
        assert!(text.contains("stalled") && text.contains("1000 bytes a second"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    // Slow, but above the floor.
    let made = Image::of_sizes(6, &[6_000]);
    let server = rude(&made, |_, _, honest| Reply { drip: Some((500, Duration::from_millis(100))), ..honest }).await;
    Node::new().pull(&format!("{}/app:1", server.host())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_never_answers_is_passed_over() {
    let made = Image::simple(7);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = Server::plain(made.shelf("app", "1"), |_| None).await;
    let node = Node::new();
    node.service.set_registry_timing(keelson_imageservice::registry::Timing {
        answer: Duration::from_millis(200),
        ..keelson_imageservice::registry::Timing::default()
    });
    let address = silent.local_addr().unwrap();
    node.hosts("r.test", &format!("server = \"http://{}\"\n[host.\"http://{address}\"]\n", origin.host()));
    node.pull("r.test/app:1").await.unwrap();
    let text = node.service.pull_within(
        keelson_imageservice::PullRequest { reference: format!("{address}/app:1").parse().unwrap(), credentials: None },
        Duration::from_secs(20),
    );
    let text = super::chain(&text.await.unwrap_err());
    assert!(text.contains("no answer within"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_do_not_fit_are_refused_at_once() {
    let made = Image::of_sizes(8, &[100_000]);
    let longer = rude(&made, |_, _, mut honest| {
        honest.body.extend_from_slice(&[0; 4096]);
        honest
    })
    .await;
    let text = Node::new().refuse(&format!("{}/app:1", longer.host())).await;
    assert!(text.contains("the manifest states"), "{text}");
    let shorter = rude(&made, |_, _, mut honest| {
        honest.body.truncate(50_000);
        honest
    })
    .await;
    let text = Node::new().refuse(&format!("{}/app:1", shorter.host())).await;
    assert!(text.contains("it has 50000 bytes"), "{text}");
    let wrong = rude(&made, |number, _, honest| match number {
        0 => Reply { cut: Some(10_000), ..honest },
        _ => Reply { status: 206, ..Reply::ok("application/octet-stream", honest.body) }
            .header("content-range", "bytes 7-9/100"),
    })
    .await;
    let text = Node::new().refuse(&format!("{}/app:1", wrong.host())).await;
    assert!(text.contains("got another range"), "{text}");
}
