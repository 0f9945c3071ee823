//! One SPDY/3.1 connection as its server: streams that the client opens, each with headers, input and output.
//! Two tokio tasks per connection, reader and writer, owned by the [`Session`]; both end with it. Owns the connection.
//! Must let one stream's reset end that stream only, and bound what it holds. Flow control is TCP's: the clients of this
//! protocol (kubelet, crictl, kubectl) neither send window updates nor wait for them.

mod dictionary;
pub mod frame;
mod header;

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};

use frame::{Decoder, Encoder, Frame};
pub use header::Headers;

/// Streams that may be open at once on one connection: a port-forward of a busy browser needs two per request.
const STREAMS_MAX: usize = 2048;
/// Pieces of input that wait for one slow stream before the connection is read no further.
const INPUT_PIECES: usize = 64;
const OUTPUT_PIECES: usize = 32;
/// Longest data frame we send, bytes.
const DATA_MAX: usize = 64 * 1024;

/// The status of a reset stream (draft 3.1, section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetStatus {
    /// Not accepted, nothing was done.
    Refused = 3,
    /// No longer wanted.
    Cancel = 5,
    /// A failure of ours.
    Internal = 6,
}

/// What comes in on a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Some bytes.
    Data(Bytes),
    /// The client sends no more; it may still read.
    End,
    /// The client ended the stream, or the connection is gone.
    Reset,
}

enum Output {
    Reply(u32),
    Data { stream: u32, bytes: Bytes, fin: bool },
    Control(Vec<u8>),
}

/// A stream that the client opened.
pub struct Stream {
    /// Its headers, names in lower case.
    pub headers: Headers,
    /// What the client sends.
    pub reader: StreamReader,
    /// What the client gets.
    pub writer: StreamWriter,
}

/// The receiving half of a stream.
pub struct StreamReader {
    input: mpsc::Receiver<Input>,
    over: bool,
}

/// The sending half of a stream; clones send on the same stream.
#[derive(Clone)]
pub struct StreamWriter {
    stream: u32,
    output: mpsc::Sender<Output>,
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send on stream: the connection is closed")]
pub struct Closed;

impl Stream {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl StreamReader {
    /// The next input; after [`Input::End`] or [`Input::Reset`] always [`Input::Reset`].
    pub async fn next(&mut self) -> Input {
        if self.over {
            return Input::Reset;
        }
        let input = self.input.recv().await.unwrap_or(Input::Reset);
        self.over = matches!(input, Input::Reset);
        input
    }
}

impl StreamWriter {
    /// Sends bytes, in frames as long as allowed; waits while the connection is slow.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(DATA_MAX));
            self.output(Output::Data { stream: self.stream, bytes: piece, fin: false }).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn finish(&self) -> Result<(), Closed> {
        self.output(Output::Data { stream: self.stream, bytes: Bytes::new(), fin: true }).await
    }

    /// Ends the stream in both directions.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn reset(&self, status: ResetStatus) -> Result<(), Closed> {
        self.output(Output::Control(frame::reset(self.stream, status as u32))).await
    }

    async fn output(&self, output: Output) -> Result<(), Closed> {
        self.output.send(output).await.map_err(|_| Closed)
    }
}

/// A connection; dropping it closes it.
pub struct Session {
    streams: mpsc::Receiver<Stream>,
    tasks: JoinSet<()>,
}

impl Session {
    /// Serves a connection that was just upgraded.
    ///
    /// # Errors
    /// The compression state cannot be made: only by a defect of the library.
    pub fn new<C>(connection: C) -> Result<Self, flate2::CompressError>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(connection);
        let (opened, streams) = mpsc::channel(16);
        let (output, outputs) = mpsc::channel(OUTPUT_PIECES);
        let encoder = Encoder::new()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(read_frames(read, opened, output));
        tasks.spawn(write_frames(write, encoder, outputs));
        Ok(Self { streams, tasks })
    }

    /// The next stream that the client opens; `None`: the connection is closed or opens no more.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Waits until everything that was sent is on its way, then closes. Every stream must have been dropped.
    pub async fn close(mut self) {
        self.streams.close();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Hands each frame to its stream. Ends with the connection, a protocol error, or when the session is dropped.
async fn read_frames(
    mut connection: impl AsyncRead + Unpin,
    opened: mpsc::Sender<Stream>,
    output: mpsc::Sender<Output>,
) {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    let mut streams: HashMap<u32, mpsc::Sender<Input>> = HashMap::new();
    loop {
        let frame = match decoder.decode(&mut buffer) {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                buffer.reserve(16 * 1024);
                let read = tokio::select! {
                    read = connection.read_buf(&mut buffer) => read,
                    () = opened.closed() => break,
                };
                match read {
                    Ok(1..) => continue,
                    Ok(0) | Err(_) => break,
                }
            }
            Err(error) => {
                tracing::debug!(error = %error, "end spdy session");
                break;
            }
        };
        match frame {
            Frame::Open { stream, headers, fin } => {
                streams.retain(|_, input| !input.is_closed());
                if streams.len() >= STREAMS_MAX || streams.contains_key(&stream) {
                    let refusal = frame::reset(stream, ResetStatus::Refused as u32);
                    if output.send(Output::Control(refusal)).await.is_err() {
                        break;
                    }
                    continue;
                }
                let (input, receiver) = mpsc::channel(INPUT_PIECES);
                if fin {
                    // Room for it is there: the channel is new.
                    let _ = input.try_send(Input::End);
                }
                streams.insert(stream, input);
                let writer = StreamWriter { stream, output: output.clone() };
                let reader = StreamReader { input: receiver, over: false };
                let accepted = output.send(Output::Reply(stream)).await.is_ok()
                    && opened.send(Stream { headers, reader, writer }).await.is_ok();
                if !accepted {
                    break;
                }
            }
            Frame::Data { stream, bytes, fin } => {
                if let Some(input) = streams.get(&stream) {
                    // A stream whose reader has gone discards what still comes.
                    if !bytes.is_empty() {
                        let _ = input.send(Input::Data(bytes)).await;
                    }
                    if fin {
                        let _ = input.send(Input::End).await;
                        streams.remove(&stream);
                    }
                }
            }
            Frame::Reset { stream, .. } => {
                // Dropping the sender tells the reader.
                streams.remove(&stream);
            }
            Frame::Ping { id } => {
                if output.send(Output::Control(frame::ping(id))).await.is_err() {
                    break;
                }
            }
            Frame::GoAway | Frame::Reply { .. } | Frame::Other => {}
        }
    }
}

/// Writes what the streams send, until the last of them is gone or the connection breaks.
async fn write_frames(
    mut connection: impl AsyncWrite + Unpin,
    mut encoder: Encoder,
    mut outputs: mpsc::Receiver<Output>,
) {
    while let Some(output) = outputs.recv().await {
        let written = match output {
            Output::Reply(stream) => match encoder.reply(stream) {
                Ok(bytes) => connection.write_all(&bytes).await,
                Err(_) => break,
            },
            Output::Data { stream, bytes, fin } => {
                let head = frame::data_head(stream, bytes.len(), fin);
                match connection.write_all(&head).await {
                    Ok(()) => connection.write_all(&bytes).await,
                    Err(error) => Err(error),
                }
            }
            Output::Control(bytes) => connection.write_all(&bytes).await,
        };
        if written.is_err() || (outputs.is_empty() && connection.flush().await.is_err()) {
            return;
        }
    }
    // The last words may still be in the connection's buffer.
    let _ = connection.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn client() -> (tokio::io::DuplexStream, Session, Encoder) {
        let (client, server) = tokio::io::duplex(4096);
        (client, Session::new(server).unwrap(), Encoder::new().unwrap())
    }

    #[tokio::test]
    async fn a_stream_carries_bytes_both_ways_and_ends() {
        let (mut client, mut session, mut encoder) = client().await;
        let mut bytes = encoder.open(1, &[("streamtype", "stdin")], false).unwrap();
        bytes.extend(frame::data_head(1, 3, true));
        bytes.extend(b"abc");
        client.write_all(&bytes).await.unwrap();
        let mut stream = session.accept().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("stdin"));
        assert_eq!(stream.reader.next().await, Input::Data(Bytes::from_static(b"abc")));
        assert_eq!(stream.reader.next().await, Input::End);
        stream.writer.send(Bytes::from_static(b"reply")).await.unwrap();
        stream.writer.finish().await.unwrap();
        drop(stream);
        let mut got = Vec::new();
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        while got.last() != Some(&Frame::Data { stream: 1, bytes: Bytes::new(), fin: true }) {
            client.read_buf(&mut buffer).await.unwrap();
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got[0], Frame::Reply { stream: 1, fin: false });
        assert_eq!(got[1], Frame::Data { stream: 1, bytes: Bytes::from_static(b"reply"), fin: false });
    }

    #[tokio::test]
    async fn a_reset_ends_one_stream_only() {
        let (mut client, mut session, mut encoder) = client().await;
        for id in [1, 3] {
            client.write_all(&encoder.open(id, &[], false).unwrap()).await.unwrap();
        }
        let mut one = session.accept().await.unwrap();
        let mut two = session.accept().await.unwrap();
        client.write_all(&frame::reset(1, 5)).await.unwrap();
        assert_eq!(one.reader.next().await, Input::Reset);
        client.write_all(&frame::data_head(3, 1, false)).await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(two.reader.next().await, Input::Data(Bytes::from_static(b"x")));
        drop(client);
        assert_eq!(two.reader.next().await, Input::Reset);
    }
}
