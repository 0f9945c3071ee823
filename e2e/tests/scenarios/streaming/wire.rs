//! The smallest clients there can be, written from the protocols alone: they share no code with the server.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a session travels on.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

pub(crate) type Io = Box<dyn Wire>;

/// One GET without anything; the whole answer.
pub(crate) async fn http(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

/// Asks for an upgrade with these header lines; the connection and the answer's head.
pub(crate) async fn upgrade(url: &str, lines: &str) -> Result<(Io, String)> {
    let rest = url.split_once("://").context("no URL")?.1;
    let (address, path) = rest.split_at(rest.find('/').context("no path")?);
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, stream.read_u8()).await?.context("the answer is cut")?);
    }
    Ok((Box::new(stream), String::from_utf8(answer)?))
}

/// A WebSocket.
pub(crate) struct Web(pub(crate) Io);

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
        while let Some(message) = self.message().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// The next message; `None`: the server closes.
    pub(crate) async fn message(&mut self) -> Result<Option<Vec<u8>>> {
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
                1 | 2 => return Ok(Some(bytes)),
                8 => return Ok(None),
                _ => {}
            }
        }
    }

    async fn byte(&mut self) -> Result<u8> {
        Ok(timeout(PATIENCE, self.0.read_u8()).await.context("a message in time")??)
    }
}

/// The bytes of a SPDY session in binary WebSocket messages, until either side ends.
async fn tunnel(socket: Io, session: DuplexStream) -> Result<()> {
    let (from_server, mut to_server) = tokio::io::split(socket);
    let (mut from_client, mut to_client) = tokio::io::split(session);
    let down = async {
        let mut from_server = from_server;
        loop {
            let mut head = [0; 2];
            from_server.read_exact(&mut head).await?;
            let length = match head[1] {
                126 => usize::from(from_server.read_u16().await?),
                127 => usize::try_from(from_server.read_u64().await?)?,
                short => usize::from(short),
            };
            let mut bytes = vec![0; length];
            from_server.read_exact(&mut bytes).await?;
            match head[0] & 0x0f {
                2 => to_client.write_all(&bytes).await?,
                8 => return anyhow::Ok(()),
                _ => {}
            }
        }
    };
    let up = async {
        let mut buffer = [0; 4096];
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 {
                return anyhow::Ok(());
            }
            let [high, low] = u16::try_from(length)?.to_be_bytes();
            // The mask is zero: that is allowed, and shows the bytes.
            to_server.write_all(&[&[0x82, 0x80 | 126, high, low, 0, 0, 0, 0], &buffer[..length]].concat()).await?;
        }
    };
    tokio::select! {
        done = down => done,
        done = up => done,
    }
}

/// What a stream has brought.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) bytes: Vec<u8>,
    /// It ended in order.
    pub(crate) ended: bool,
    pub(crate) reset: bool,
}

impl Heard {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A SPDY client that opens streams and keeps what they bring; it skips what it need not know.
pub(crate) struct Spdy {
    io: Io,
    deflate: Compress,
    next: u32,
    heard: HashMap<u32, Heard>,
}

impl Spdy {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Result<Self> {
        let mut lines = "Upgrade: SPDY/3.1\r\n".to_owned();
        if !protocol.is_empty() {
            lines.push_str(&format!("X-Stream-Protocol-Version: {protocol}\r\n"));
        }
        let (io, answer) = upgrade(url, &lines).await?;
        ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        ensure!(answer.to_ascii_lowercase().contains(&format!("version: {protocol}")), "{answer}");
        Ok(Self::over(io))
    }

    /// The same inside a WebSocket.
    pub(crate) async fn tunnelled(url: &str) -> Result<Self> {
        let Web(socket) = Web::connect(url, "SPDY/3.1+portforward.k8s.io").await?;
        let (near, far) = tokio::io::duplex(1 << 16);
        // Ends with either side; what that means shows in the session.
        tokio::spawn(tunnel(socket, far));
        Ok(Self::over(Box::new(near)))
    }

    fn over(io: Io) -> Self {
        // Without the dictionary: whether it is used is the client's choice.
        Self { io, deflate: Compress::new(Compression::fast(), true), next: 1, heard: HashMap::new() }
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
        self.io.write_all(&frame).await?;
        Ok(id)
    }

    pub(crate) async fn send(&mut self, id: u32, bytes: &[u8]) -> Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend(u32::try_from(bytes.len())?.to_be_bytes());
        frame.extend(bytes);
        Ok(self.io.write_all(&frame).await?)
    }

    /// Nothing more comes from here on this stream.
    pub(crate) async fn close(&mut self, id: u32) -> Result<()> {
        Ok(self.io.write_all(&[&id.to_be_bytes()[..], &[1, 0, 0, 0]].concat()).await?)
    }

    /// The stream is no longer wanted.
    pub(crate) async fn reset(&mut self, id: u32) -> Result<()> {
        Ok(self.io.write_all(&[&[0x80, 3, 0, 3, 0, 0, 0, 8], &id.to_be_bytes()[..], &[0, 0, 0, 5]].concat()).await?)
    }

    /// What a stream has brought when it is over.
    pub(crate) async fn outcome(&mut self, id: u32) -> Result<Heard> {
        while !self.heard.get(&id).is_some_and(|heard| heard.ended || heard.reset) {
            self.frame().await.with_context(|| format!("the end of stream {id}"))?;
        }
        Ok(self.heard.remove(&id).unwrap_or_default())
    }

    /// The data of a stream until its end.
    pub(crate) async fn hear(&mut self, id: u32) -> Result<Vec<u8>> {
        Ok(self.outcome(id).await?.bytes)
    }

    /// Waits until a stream, which goes on, has brought this.
    pub(crate) async fn wait(&mut self, id: u32, text: &str) -> Result<()> {
        while self.heard.get(&id).is_none_or(|heard| heard.bytes != text.as_bytes()) {
            let heard = self.heard.entry(id).or_default();
            ensure!(!heard.ended && !heard.reset, "stream {id} is over before `{text}`: {heard:?}");
            self.frame().await.with_context(|| format!("`{text}` on stream {id}"))?;
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<()> {
        let mut head = [0; 8];
        timeout(PATIENCE, self.io.read_exact(&mut head)).await.context("a frame in time")??;
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let mut body = vec![0; length];
        timeout(PATIENCE, self.io.read_exact(&mut body)).await??;
        let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if head[0] & 0x80 == 0 {
            let heard = self.heard.entry(number(&head)).or_default();
            heard.bytes.extend(body);
            heard.ended |= head[4] & 1 == 1;
        } else if head[..4] == [0x80, 3, 0, 3] {
            self.heard.entry(number(&body)).or_default().reset = true;
        }
        Ok(())
    }
}
