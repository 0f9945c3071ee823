//! Port-forward: in all its forms, and what rude pods and clients do.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use keelson_runtime::streaming::{
    StreamingConfig,
    spdy::frame::{self, Frame},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    clients::{Spdy, hear, say, websocket},
    lab::{Lab, config, until},
};

const FORWARD: [&str; 1] = ["portforward.k8s.io"];

/// A pod's server: does what its first byte says. Answers its port.
async fn pod() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

async fn serve(mut stream: TcpStream) {
    match stream.read_u8().await {
        // Echo until the end, then say goodbye: half-close from the client.
        Ok(b'e') => {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.write_all(b"bye").await;
        }
        // Reset, with something sent before.
        Ok(b'r') => {
            stream.write_all(b"half").await.unwrap();
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
        // Ends its side first, then tells how much came: half-close from the pod.
        Ok(b'h') => {
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert_eq!(rest, b"after");
        }
        _ => {}
    }
}

async fn pair<C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Spdy<C>,
    port: u16,
    id: &str,
) -> (u32, u32) {
    let port = port.to_string();
    let mut headers = vec![("port", port.as_str()), ("streamtype", "error")];
    if !id.is_empty() {
        headers.push(("requestid", id));
    }
    let error = client.open(&headers).await;
    headers[1].1 = "data";
    (error, client.open(&headers).await)
}

#[tokio::test]
async fn many_connections_at_once_each_end_by_themselves() {
    let (lab, port) = (Lab::start().await, pod().await);
    let (mut client, answer) = Spdy::connect(&lab.forward(&[]), &FORWARD).await;
    assert!(answer.contains("x-stream-protocol-version: portforward.k8s.io"), "{answer}");
    let mut pairs = Vec::new();
    for id in 0..100 {
        pairs.push(pair(&mut client, port, &id.to_string()).await);
    }
    for (error, data) in &pairs {
        client.send(*error, b"", true).await;
        client.send(*data, format!("e{data}").as_bytes(), true).await;
    }
    let all: Vec<u32> = pairs.iter().flat_map(|(error, data)| [*error, *data]).collect();
    let brought = client.collect(&all).await;
    for (error, data) in pairs {
        assert_eq!((brought.text(error), brought.text(data)), (String::new(), format!("{data}bye")));
    }
    assert!(brought.reset.is_empty(), "{brought:?}");
}

#[tokio::test]
async fn a_refusal_and_a_reset_cost_one_stream_each() {
    let (lab, port) = (Lab::start().await, pod().await);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (mut client, _) = Spdy::connect(&lab.forward(&[]), &FORWARD).await;
    for round in 0..20 {
        let (error, data) = pair(&mut client, closed, &format!("closed {round}")).await;
        let brought = client.collect(&[error, data]).await;
        assert!(brought.text(error).contains("Connection refused"), "{brought:?}");
        assert_eq!((brought.reset.as_slice(), brought.ended.as_slice()), (&[data][..], &[error][..]));
        let (error, data) = pair(&mut client, port, &format!("reset {round}")).await;
        client.send(data, b"r", false).await;
        let brought = client.collect(&[error, data]).await;
        // No word on the error stream: clients end the whole session for one.
        assert_eq!((brought.reset.as_slice(), brought.text(error).as_str()), (&[data][..], ""));
    }
    let (_, data) = pair(&mut client, port, "after all that").await;
    client.send(data, b"ehello", true).await;
    assert_eq!(client.collect(&[data]).await.text(data), "hellobye");
}

#[tokio::test]
async fn either_side_may_end_first() {
    let (lab, port) = (Lab::start().await, pod().await);
    let (mut client, _) = Spdy::connect(&lab.forward(&[]), &FORWARD).await;
    let (error, data) = pair(&mut client, port, "1").await;
    client.send(data, b"h", false).await;
    let brought = client.collect(&[error, data]).await;
    assert_eq!((brought.ended.len(), brought.reset.len()), (2, 0));
    client.send(data, b"after", true).await;
    // A client that resets ends it inside, and only it.
    let (_, data) = pair(&mut client, port, "2").await;
    client.send(data, b"ex", false).await;
    assert!(matches!(next_data(&mut client, data).await, Frame::Data { .. }));
    client.raw(&frame::reset(data, 5)).await;
    let (_, data) = pair(&mut client, port, "3").await;
    client.send(data, b"ey", true).await;
    assert_eq!(client.collect(&[data]).await.text(data), "ybye");
    drop(client);
    until("the session is over", || lab.streaming.counts().running() == 0).await;
}

async fn next_data(client: &mut Spdy, wanted: u32) -> Frame {
    loop {
        match client.frame().await.unwrap() {
            frame @ Frame::Data { stream, .. } if stream == wanted => return frame,
            _ => {}
        }
    }
}

#[tokio::test]
async fn clients_without_request_ids_are_paired_by_number() {
    let (lab, port) = (Lab::start().await, pod().await);
    let (mut client, _) = Spdy::connect(&lab.forward(&[]), &[]).await;
    let (first, second) = (pair(&mut client, port, "").await, pair(&mut client, port, "").await);
    client.send(second.1, b"e2", true).await;
    client.send(first.1, b"e1", true).await;
    let brought = client.collect(&[first.1, second.1]).await;
    assert_eq!((brought.text(first.1).as_str(), brought.text(second.1).as_str()), ("1bye", "2bye"));
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused_alone() {
    let port = pod().await;
    let lab = Lab::with(StreamingConfig { creation_timeout: Duration::from_millis(500), ..config() }).await;
    let (mut client, _) = Spdy::connect(&lab.forward(&[]), &FORWARD).await;
    let mut odd = Vec::new();
    for headers in [
        &[("port", "80"), ("streamtype", "other")][..],
        &[("port", "0"), ("streamtype", "data")],
        &[("port", "99999"), ("streamtype", "data")],
        &[("streamtype", "data")],
        &[],
    ] {
        odd.push(client.open(headers).await);
    }
    assert_eq!(client.collect(&odd).await.reset, odd);
    let alone = client.open(&[("port", "80"), ("streamtype", "error"), ("requestid", "x")]).await;
    let brought = client.collect(&[alone]).await;
    assert!(brought.text(alone).contains("the data stream of this request did not come"), "{brought:?}");
    let (_, data) = pair(&mut client, port, "fine").await;
    client.send(data, b"ez", true).await;
    assert_eq!(client.collect(&[data]).await.text(data), "zbye");
}

#[tokio::test]
async fn websocket_channels_carry_two_a_port() {
    let (lab, port) = (Lab::start().await, pod().await);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (mut socket, chosen) = websocket(&lab.forward(&[port, closed]), "v4.channel.k8s.io").await;
    assert_eq!(chosen, "v4.channel.k8s.io");
    say(&mut socket, 0, b"r").await;
    let heard = hear(&mut socket).await;
    assert_eq!(heard[&0][..2], port.to_le_bytes());
    assert_eq!(heard[&1], port.to_le_bytes());
    assert_eq!(heard[&2], closed.to_le_bytes());
    assert_eq!(heard[&3][..2], closed.to_le_bytes());
    assert!(String::from_utf8_lossy(&heard[&3][2..]).contains("refused"));
    let (mut socket, _) = websocket(&lab.forward(&[port]), "v4.base64.channel.k8s.io").await;
    socket.send(Message::text("0ZXg=")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if let Message::Text(text) = socket.next().await.unwrap().unwrap() {
            seen.push(text.to_string());
        }
    }
    assert_eq!(seen[2], "0eA==");
    drop(socket);
    until("the session is over", || lab.streaming.counts().running() == 0).await;
}

#[tokio::test]
async fn spdy_travels_in_a_websocket() {
    let (lab, port) = (Lab::start().await, pod().await);
    let (mut socket, chosen) = websocket(&lab.forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    assert_eq!(chosen, "SPDY/3.1+portforward.k8s.io");
    // The tunnel's other end: bytes to messages and back.
    let (mut inner, outer): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                read = inner.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => socket.send(Message::Binary(buffer[..count].to_vec().into())).await.unwrap(),
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => inner.write_all(&bytes).await.unwrap(),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break,
                },
            }
        }
    });
    let mut client = Spdy::over(outer);
    let (error, data) = pair(&mut client, port, "1").await;
    client.send(data, b"e", false).await;
    client.send(data, &[b'x'; 200_000], true).await;
    let brought = client.collect(&[error, data]).await;
    assert_eq!(brought.bytes[&data].len(), 200_003);
    drop(client);
    until("the session is over", || lab.streaming.counts().running() == 0).await;
}
