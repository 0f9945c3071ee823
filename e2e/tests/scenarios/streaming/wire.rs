//! The smallest clients there can be, written from the protocols alone: they share no code with the server.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// One GET without anything; the whole answer.
pub(crate) async fn http(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

/// Asks for an upgrade with these header lines; the connection and the answer's head.
pub(crate) async fn upgrade(url: &str, lines: &str) -> Result<(TcpStream, String)> {
    let rest = url.split_once("://").context("no URL")?.1;
    let (address, path) = rest.split_at(rest.find('/').context("no path")?);
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, stream.read_u8()).await?.context("the answer is cut")?);
    }
    Ok((stream, String::from_utf8(answer)?))
}

/// A WebSocket.
pub(crate) struct Web(pub(crate) TcpStream);

impl Web {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Result<Self> {
        let mut lines = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned();
        lines.push_str("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
        if !protocol.is_empty() {
            lines.push_str(&format!("Sec-WebSocket-Protocol: {protocol}\r\n"));
        }
        let (stream, answer) = upgrade(url, &lines).await?;
        let answer = answer.to_ascii_lowercase();
        ensure!(answer.starts_with("http/1.1 101"), "{answer}");
        // The answer to this key, from the protocol's own text (RFC 6455, section 1.3).
        ensure!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
        ensure!(protocol.is_empty() || answer.contains(&protocol.to_ascii_lowercase()), "{answer}");
        Ok(Self(stream))
    }

    /// A message of at most 125 bytes, binary or text. The mask is zero: that is allowed, and shows the bytes.
    pub(crate) async fn say(&mut self, binary: bool, bytes: &[u8]) -> Result<()> {
        let kind = if binary { 0x82 } else { 0x81 };
        let head = [kind, 0x80 | u8::try_from(bytes.len())?, 0, 0, 0, 0];
        Ok(self.0.write_all(&[&head[..], bytes].concat()).await?)
    }

    /// Every message until the server closes.
    pub(crate) async fn hear(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut messages = Vec::new();
        loop {
            let (kind, short) = (self.byte().await?, self.byte().await?);
            let length = match short {
                126 => usize::from(self.byte().await?) << 8 | usize::from(self.byte().await?),
                127 => usize::try_from(timeout(PATIENCE, self.0.read_u64()).await??)?,
                short => usize::from(short),
            };
            let mut bytes = vec![0; length];
            timeout(PATIENCE, self.0.read_exact(&mut bytes)).await??;
            match kind & 0x0f {
                1 | 2 => messages.push(bytes),
                8 => return Ok(messages),
                _ => {}
            }
        }
    }

    async fn byte(&mut self) -> Result<u8> {
        Ok(timeout(PATIENCE, self.0.read_u8()).await.context("a message in time")??)
    }
}

/// A SPDY client that opens streams and listens for data; it skips what it need not know.
pub(crate) struct Spdy {
    pub(crate) stream: TcpStream,
    deflate: Compress,
    next: u32,
}

impl Spdy {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Result<Self> {
        let lines = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        let (stream, answer) = upgrade(url, &lines).await?;
        ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        // Without the dictionary: whether it is used is the client's choice.
        Ok(Self { stream, deflate: Compress::new(Compression::fast(), true), next: 1 })
    }

    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let id = self.next;
        self.next += 2;
        let mut plain = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(u32::try_from(word.len())?.to_be_bytes());
            plain.extend(word.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync)?;
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend(u32::try_from(10 + block.len())?.to_be_bytes());
        frame.extend(id.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        self.stream.write_all(&frame).await?;
        Ok(id)
    }

    pub(crate) async fn send(&mut self, id: u32, bytes: &[u8]) -> Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend(u32::try_from(bytes.len())?.to_be_bytes());
        frame.extend(bytes);
        Ok(self.stream.write_all(&frame).await?)
    }

    /// Says that nothing more comes on this stream.
    pub(crate) async fn close(&mut self, id: u32) -> Result<()> {
        Ok(self.stream.write_all(&[&id.to_be_bytes()[..], &[1, 0, 0, 0]].concat()).await?)
    }

    /// The data of a stream until its end.
    pub(crate) async fn hear(&mut self, id: u32) -> Result<Vec<u8>> {
        let mut heard = Vec::new();
        loop {
            let mut head = [0; 8];
            timeout(PATIENCE, self.stream.read_exact(&mut head)).await.context("a frame in time")??;
            let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
            let mut body = vec![0; length];
            timeout(PATIENCE, self.stream.read_exact(&mut body)).await??;
            if head[..4] == id.to_be_bytes() {
                heard.extend(body);
                if head[4] & 1 == 1 {
                    return Ok(heard);
                }
            } else if head[..4] == [0x80, 3, 0, 3] && body[..4] == id.to_be_bytes() {
                return Ok(heard);
            }
        }
    }
}
