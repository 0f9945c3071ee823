//! Exec and attach, over both transports and every protocol version.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::SinkExt as _;
use keelson_runtime::streaming::{node::Streams, spdy::frame::Frame};
use tokio_tungstenite::tungstenite::Message;

use super::{
    clients::{Spdy, hear, say, websocket},
    lab::{ALL, Lab, OUT, TERMINAL, until},
};

const V4: [&str; 1] = ["v4.channel.k8s.io"];

#[tokio::test]
async fn output_comes_whole_and_the_exit_code_after_it() {
    let lab = Lab::start().await;
    let (mut client, answer) =
        Spdy::connect(&lab.exec(&["say", "to out", "to err", "3"], OUT), &["v3.channel.k8s.io", "v4.channel.k8s.io"])
            .await;
    assert!(answer.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{answer}");
    let ids = client.streams(&["stdout", "stderr"]).await;
    let brought = client.collect(&ids).await;
    assert_eq!((brought.text(ids[1]).as_str(), brought.text(ids[2]).as_str()), ("to out", "to err"));
    let status: serde_json::Value = serde_json::from_str(&brought.text(ids[0])).unwrap();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&"NonZeroExitCode".into(), &"3".into())
    );
    assert_eq!(client.frame().await, Some(Frame::GoAway));
    drop(client);
    until("the session is over", || lab.streaming.counts().running() == 0).await;

    let (mut client, _) = Spdy::connect(&lab.exec(&["much", "5000"], OUT), &V4).await;
    let ids = client.streams(&["stdout", "stderr"]).await;
    let brought = client.collect(&ids).await;
    assert_eq!(brought.bytes[&ids[1]].len(), 5_000_000);
    assert!(brought.text(ids[0]).contains("\"7\""), "{}", brought.text(ids[0]));
}

#[tokio::test]
async fn older_versions_tell_the_end_in_words_or_not_at_all() {
    let lab = Lab::start().await;
    for version in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        for (code, want) in [("0", ""), ("4", "command terminated with non-zero exit code: 4")] {
            let (mut client, answer) = Spdy::connect(&lab.exec(&["say", "x", "", code], OUT), &[version]).await;
            assert!(answer.contains(&format!("x-stream-protocol-version: {version}")), "{answer}");
            let ids = client.streams(&["stdout", "stderr"]).await;
            let brought = client.collect(&ids).await;
            assert_eq!((brought.text(ids[1]).as_str(), brought.text(ids[0]).as_str()), ("x", want));
        }
    }
    let (mut client, _) = Spdy::connect(&lab.exec(&["missing"], OUT), &["v4.channel.k8s.io"]).await;
    let ids = client.streams(&["stdout", "stderr"]).await;
    let said = client.collect(&ids).await.text(ids[0]);
    assert!(said.contains("InternalError") && said.contains("No such file or directory"), "{said}");
}

#[tokio::test]
async fn the_end_of_stdin_reaches_the_process() {
    let lab = Lab::start().await;
    let (mut client, _) = Spdy::connect(&lab.exec(&["count"], ALL), &V4).await;
    let ids = client.streams(&["stdin", "stdout", "stderr"]).await;
    for _ in 0..100 {
        client.send(ids[1], &[b'x'; 10_000], false).await;
    }
    client.send(ids[1], b"", true).await;
    let brought = client.collect(&[ids[0], ids[2], ids[3]]).await;
    assert_eq!(brought.text(ids[2]), "1000000");
    assert!(brought.text(ids[0]).contains("Success"));
}

#[tokio::test]
async fn a_terminal_follows_the_clients_size() {
    let lab = Lab::start().await;
    let (mut client, _) = Spdy::connect(&lab.exec(&["cat"], TERMINAL), &V4).await;
    let ids = client.streams(&["stdin", "stdout", "resize"]).await;
    client.send(ids[3], b"{\"Width\":120,\"Hei", false).await;
    client.send(ids[3], b"ght\":50}\n{\"Width\":80,\"Height\":24}", false).await;
    until("both sizes came", || lab.seen.sizes.lock().unwrap().len() == 2).await;
    assert_eq!(lab.seen.sizes.lock().unwrap()[0].width, 120);
    let (mut socket, _) = websocket(&lab.exec(&["cat"], TERMINAL), "v5.channel.k8s.io").await;
    say(&mut socket, 4, b"{\"Width\":132,\"Height\":43}").await;
    until("the third came", || lab.seen.sizes.lock().unwrap().len() == 3).await;
    assert_eq!(lab.seen.sizes.lock().unwrap()[2].height, 43);
    // The oldest versions have no such stream.
    let (mut client, _) = Spdy::connect(&lab.exec(&["say", "x", "", "0"], TERMINAL), &["v2.channel.k8s.io"]).await;
    let ids = client.streams(&["stdin", "stdout"]).await;
    assert_eq!(client.collect(&[ids[2]]).await.text(ids[2]), "x");
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_process_with_it() {
    let lab = Lab::start().await;
    for args in [&["sleep"][..], &["yes"], &["cat"]] {
        let (mut client, _) = Spdy::connect(&lab.exec(args, ALL), &V4).await;
        client.streams(&["stdin", "stdout", "stderr"]).await;
        until("it runs", || lab.seen.alive.load(Ordering::SeqCst) == 1).await;
        drop(client);
        lab.all_gone().await;
        let (socket, _) = websocket(&lab.exec(args, ALL), "v4.channel.k8s.io").await;
        until("it runs", || lab.seen.alive.load(Ordering::SeqCst) == 1).await;
        drop(socket);
        lab.all_gone().await;
    }
    // Its last words are still on their way into a process that takes none: a ping finds out.
    let (mut client, _) = Spdy::connect(&lab.exec(&["sleep"], ALL), &V4).await;
    let ids = client.streams(&["stdin", "stdout", "stderr"]).await;
    let flood = async {
        loop {
            client.send(ids[1], &[0; 60_000], false).await;
        }
    };
    tokio::time::timeout(Duration::from_millis(500), flood).await.unwrap_err();
    assert_eq!(lab.seen.alive.load(Ordering::SeqCst), 1);
    drop(client);
    lab.all_gone().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_the_process_and_nothing_else() {
    let lab = Lab::start().await;
    let (mut client, _) = Spdy::connect(&lab.exec(&["yes"], OUT), &V4).await;
    client.streams(&["stdout", "stderr"]).await;
    let (mut socket, _) = websocket(&lab.exec(&["yes"], OUT), "v5.channel.k8s.io").await;
    socket.flush().await.unwrap();
    let mut last = 0;
    // Until a while passes in which nothing was written.
    loop {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let written = lab.seen.written.load(Ordering::SeqCst);
        if written == last && written > 0 {
            break;
        }
        last = written;
        // Socket buffers of the kernel are most of it: a few megabytes each.
        assert!(written < 64 << 20, "{written}");
    }
    drop((client, socket));
    lab.all_gone().await;
}

#[tokio::test]
async fn every_websocket_version_carries_a_session() {
    let lab = Lab::start().await;
    for (offer, base64) in [
        ("", false),
        ("channel.k8s.io", false),
        ("base64.channel.k8s.io", true),
        ("v4.channel.k8s.io", false),
        ("v4.base64.channel.k8s.io", true),
        ("v5.channel.k8s.io", false),
    ] {
        let (mut socket, chosen) = websocket(&lab.exec(&["say", "out", "err", "5"], OUT), offer).await;
        assert_eq!(chosen, offer);
        let heard = hear(&mut socket).await;
        assert_eq!((heard[&1].as_slice(), heard[&2].as_slice()), (&b"out"[..], &b"err"[..]), "{offer}");
        let status = String::from_utf8(heard[&3].clone()).unwrap();
        assert_eq!(status.contains("NonZeroExitCode"), offer.starts_with('v'), "{offer}: {status}");
        assert!(status.contains('5'), "{status}");
        let (mut socket, _) = websocket(&lab.attach(ALL), offer).await;
        let message = if base64 { Message::text("0aGVsbG8=") } else { Message::Binary("\0hello".into()) };
        socket.send(message).await.unwrap();
        if offer == "v5.channel.k8s.io" {
            say(&mut socket, 255, &[0]).await;
            let heard = hear(&mut socket).await;
            assert_eq!(heard[&1], b"hello");
            assert!(String::from_utf8_lossy(&heard[&3]).contains("Success"));
        }
    }
    lab.all_gone().await;
}

#[tokio::test]
async fn a_session_has_the_streams_that_were_asked_for() {
    let lab = Lab::start().await;
    let only_in = Streams { terminal: false, stdin: true, stdout: false, stderr: false };
    let (mut client, _) = Spdy::connect(&lab.exec(&["count"], only_in), &V4).await;
    let stray = client.open(&[("streamtype", "stdout")]).await;
    let ids = client.streams(&["stdin"]).await;
    client.send(ids[1], b"abc", true).await;
    let brought = client.collect(&[ids[0], stray]).await;
    assert_eq!(brought.reset, [stray]);
    assert!(brought.text(ids[0]).contains("Success"), "{brought:?}");
    // A second one of a kind is refused too.
    let (mut client, _) = Spdy::connect(&lab.exec(&["say", "x", "", "0"], OUT), &V4).await;
    let first = client.open(&[("streamtype", "stdout")]).await;
    let second = client.open(&[("streamtype", "stdout")]).await;
    let ids = client.streams(&["stderr"]).await;
    let brought = client.collect(&[first, second, ids[0]]).await;
    assert_eq!((brought.reset.as_slice(), brought.text(first).as_str()), (&[second][..], "x"));
}
