//! Clients of the streaming server, as small as they come: SPDY on a socket or in a tunnel, and WebSocket channels.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use keelson_runtime::streaming::spdy::frame::{self, Decoder, Encoder, Frame};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _, http::Request},
};

use super::lab::PATIENCE;

/// The address and the path of a URL.
pub(crate) fn parts(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    rest.split_at(rest.find('/').unwrap())
}

/// Sends a request with these header lines; the answer's head.
pub(crate) async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str, lines: &[&str]) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", lines.join("\r\n"));
    io.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if timeout(PATIENCE, io.read(&mut byte)).await.expect("an answer in time").unwrap_or(0) == 0 {
            break;
        }
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

/// The status code of a plain request for this URL.
pub(crate) async fn status(url: &str, lines: &[&str]) -> u16 {
    let (address, path) = parts(url);
    let mut io = TcpStream::connect(address).await.unwrap();
    let answer = ask(&mut io, path, lines).await;
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A SPDY connection's client.
pub(crate) struct Spdy<C = TcpStream> {
    pub(crate) io: C,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
    next: u32,
}

/// What streams have brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Brought {
    pub(crate) bytes: BTreeMap<u32, Vec<u8>>,
    /// In order.
    pub(crate) ended: Vec<u32>,
    pub(crate) reset: Vec<u32>,
}

impl Brought {
    pub(crate) fn text(&self, stream: u32) -> String {
        String::from_utf8(self.bytes.get(&stream).cloned().unwrap_or_default()).unwrap()
    }

    pub(crate) fn is_over(&self, stream: u32) -> bool {
        self.ended.contains(&stream) || self.reset.contains(&stream)
    }
}

impl Spdy<TcpStream> {
    pub(crate) async fn connect(url: &str, protocols: &[&str]) -> (Self, String) {
        let (address, path) = parts(url);
        let mut io = TcpStream::connect(address).await.unwrap();
        let mut lines = vec!["Connection: Upgrade".to_owned(), "Upgrade: SPDY/3.1".to_owned()];
        lines.extend(protocols.iter().map(|name| format!("X-Stream-Protocol-Version: {name}")));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let answer = ask(&mut io, path, &lines).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        (Self::over(io), answer)
    }

    /// As `connect`, of a server that may let its clients wait.
    pub(crate) async fn connect_slowly(url: &str) -> (Self, String) {
        let (address, path) = parts(url);
        let mut io = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
        );
        io.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(io.read_u8().await.unwrap());
        }
        (Self::over(io), String::from_utf8(answer).unwrap())
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Spdy<C> {
    pub(crate) fn over(io: C) -> Self {
        let (encoder, decoder) = (Encoder::new().unwrap(), Decoder::default());
        Self { io, encoder, decoder, buffer: BytesMut::new(), next: 1 }
    }

    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let bytes = self.encoder.open(id, headers, false).unwrap();
        self.io.write_all(&bytes).await.unwrap();
        id
    }

    /// The streams of an exec with these: error, and then these.
    pub(crate) async fn streams(&mut self, kinds: &[&str]) -> Vec<u32> {
        let mut ids = vec![self.open(&[("streamtype", "error")]).await];
        for kind in kinds {
            ids.push(self.open(&[("streamtype", kind)]).await);
        }
        ids
    }

    pub(crate) async fn send(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.io.write_all(&frame::data_head(stream, bytes.len(), fin)).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let read = timeout(PATIENCE, self.io.read_buf(&mut self.buffer)).await.expect("a frame in time");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Collects until these streams are over.
    pub(crate) async fn collect(&mut self, streams: &[u32]) -> Brought {
        let mut brought = Brought::default();
        while !streams.iter().all(|stream| brought.is_over(*stream)) {
            let frame = self.frame().await.unwrap_or_else(|| panic!("cut: {brought:?}"));
            match frame {
                Frame::Data { stream, bytes, fin } => {
                    brought.bytes.entry(stream).or_default().extend(&bytes);
                    if fin {
                        brought.ended.push(stream);
                    }
                }
                Frame::Reset { stream, .. } => brought.reset.push(stream),
                _ => {}
            }
        }
        brought
    }
}

pub(crate) type WebSocket = WebSocketStream<TcpStream>;

/// Connects with these subprotocols, in one header; also the one that was chosen.
pub(crate) async fn websocket(url: &str, protocols: &str) -> (WebSocket, String) {
    let (address, _) = parts(url);
    let url = url.replacen("http", "ws", 1);
    let mut request: Request<()> = url.into_client_request().unwrap();
    if !protocols.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    }
    let io = TcpStream::connect(address).await.unwrap();
    let (socket, answer) = tokio_tungstenite::client_async(request, io).await.unwrap();
    let chosen = answer.headers().get("sec-websocket-protocol").map(|name| name.to_str().unwrap().to_owned());
    (socket, chosen.unwrap_or_default())
}

/// Sends on a channel.
pub(crate) async fn say(socket: &mut WebSocket, channel: u8, bytes: &[u8]) {
    let message: Bytes = [&[channel], bytes].concat().into();
    socket.send(Message::Binary(message)).await.unwrap();
}

/// Collects channels until the server closes.
pub(crate) async fn hear(socket: &mut WebSocket) -> BTreeMap<u8, Vec<u8>> {
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("a message in time") {
            Some(Ok(Message::Binary(bytes))) => channels.entry(bytes[0]).or_default().extend(&bytes[1..]),
            Some(Ok(Message::Text(text))) => {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD.decode(&text[1..]).unwrap();
                channels.entry(text.as_bytes()[0] - b'0').or_default().extend(bytes);
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return channels,
        }
    }
}
