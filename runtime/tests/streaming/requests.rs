//! The HTTP door: tokens, paths, versions, bounds, TLS.

use std::{sync::Arc, time::Duration};

use keelson_runtime::streaming::{StreamingConfig, server::Server};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    clients::{Spdy, ask, parts, status},
    lab::{ALL, Lab, OUT, PATIENCE, config, until},
};

const SPDY: [&str; 2] = ["Connection: Upgrade", "Upgrade: SPDY/3.1"];

#[tokio::test]
async fn a_token_is_good_once_on_its_own_path() {
    let lab = Lab::start().await;
    let url = lab.exec(&["say", "", "", "0"], OUT);
    let (address, path) = parts(&url);
    assert_eq!(status(&format!("http://{address}/exec/AAAAAAAAAAAAAAAA"), &SPDY).await, 404);
    for odd in ["/", "/exec", "/exec/", "/healthz", "/exec/../exec/x", "/exec/a/b"] {
        assert_eq!(status(&format!("http://{address}{odd}"), &SPDY).await, 404, "{odd}");
    }
    assert_eq!(status(&url, &SPDY).await, 101);
    assert_eq!(status(&url, &SPDY).await, 404);
    let other = lab.exec(&["say", "", "", "0"], OUT).replace("/exec/", "/attach/");
    assert_eq!(status(&other, &SPDY).await, 404);
    assert!(path.starts_with("/exec/") && path.len() == "/exec/".len() + 16, "{path}");
    assert_eq!(lab.streaming.counts().started(), 1);
    assert_eq!(lab.streaming.counts().refused(), 9);
}

#[tokio::test]
async fn what_is_no_session_request_is_told_what_would_be() {
    let lab = Lab::start().await;
    assert_eq!(status(&lab.exec(&["cat"], OUT), &[]).await, 400);
    let odd = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v9.channel.k8s.io"];
    let url = lab.exec(&["cat"], OUT);
    let (address, path) = parts(&url);
    let mut io = TcpStream::connect(address).await.unwrap();
    let answer = ask(&mut io, path, &odd).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"), "{answer}");
    let no_key = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    assert_eq!(status(&lab.exec(&["cat"], OUT), &no_key).await, 400);
    let mut old = vec!["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 8"];
    old.extend(&no_key[..2]);
    assert_eq!(status(&lab.exec(&["cat"], OUT), &old).await, 400);
    // The form without ports in it needs them from the call.
    let channels = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: v4.channel.k8s.io",
    ];
    assert_eq!(status(&lab.forward(&[]), &channels).await, 400);
    assert_eq!(lab.streaming.counts().running(), 0);
}

#[tokio::test]
async fn waiting_sessions_are_bounded() {
    let lab = Lab::start().await;
    for _ in 0..1000 {
        lab.exec(&["cat"], OUT);
    }
    let sandbox = keelson_api::SandboxId::from_random([2; 32]);
    let refused = lab.streaming.url(keelson_runtime::streaming::Ask::PortForward { sandbox, ports: vec![] });
    assert!(refused.unwrap_err().to_string().contains("1000 sessions already wait"));
}

#[tokio::test]
async fn a_client_that_opens_no_streams_is_let_go() {
    let lab = Lab::with(StreamingConfig { creation_timeout: Duration::from_millis(200), ..config() }).await;
    let (mut client, _) = Spdy::connect(&lab.exec(&["cat"], ALL), &["v4.channel.k8s.io"]).await;
    client.open(&[("streamtype", "stdin")]).await;
    while client.frame().await.is_some() {}
    until("the session is over", || lab.streaming.counts().running() == 0).await;
    assert_eq!(lab.seen.alive.load(std::sync::atomic::Ordering::SeqCst), 0, "no process was started");
}

#[tokio::test]
async fn nothing_moving_ends_a_session_and_so_does_a_stop() {
    let lab = Lab::with(StreamingConfig { idle_timeout: Duration::from_millis(300), ..config() }).await;
    let (mut client, _) = Spdy::connect(&lab.exec(&["sleep"], OUT), &["v4.channel.k8s.io"]).await;
    let ids = client.streams(&["stdout", "stderr"]).await;
    let brought = client.collect(&ids).await;
    assert!(brought.text(ids[0]).contains("nothing moved for 0 s"), "{brought:?}");
    lab.all_gone().await;

    let lab = Lab::start().await;
    let (mut client, _) = Spdy::connect(&lab.exec(&["sleep"], OUT), &["v4.channel.k8s.io"]).await;
    let ids = client.streams(&["stdout", "stderr"]).await;
    until("it runs", || lab.seen.alive.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
    let seen = Arc::clone(&lab.seen);
    let stopping = tokio::spawn(lab.running.stop());
    let brought = client.collect(&ids).await;
    assert!(brought.text(ids[0]).contains("keelson is stopping"), "{brought:?}");
    drop(client);
    tokio::time::timeout(PATIENCE, stopping).await.unwrap().unwrap();
    assert_eq!(seen.alive.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_server_speaks_tls_when_it_has_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let lab = Lab::with(StreamingConfig { tls: Some((cert.clone(), key)), ..config() }).await;
    let url = lab.exec(&["say", "hello", "", "0"], OUT);
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let (address, path) = parts(&url);
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let tls = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let io = TcpStream::connect(address).await.unwrap();
    let mut io = connector.connect("localhost".try_into().unwrap(), io).await.unwrap();
    let answer = ask(&mut io, path, &[SPDY[0], SPDY[1], "X-Stream-Protocol-Version: v4.channel.k8s.io"]).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let mut client = Spdy::over(io);
    let ids = client.streams(&["stdout", "stderr"]).await;
    assert_eq!(client.collect(&ids).await.text(ids[1]), "hello");
    // A bad file is named.
    let bad = StreamingConfig { tls: Some((cert.clone(), cert.clone())), ..config() };
    let said = Server::bind(bad).await.err().unwrap().to_string();
    assert!(said.starts_with("read `") && said.contains("cert.pem"), "{said}");
}

#[tokio::test]
async fn a_head_that_never_ends_and_one_too_long_are_cut_off() {
    let lab = Lab::start().await;
    let url = lab.exec(&["cat"], OUT);
    let (address, path) = parts(&url);
    let mut io = TcpStream::connect(address).await.unwrap();
    let long = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "y".repeat(64 * 1024));
    let _ = io.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 101"), "{answer:?}");
}
