//! One SPDY/3.1 connection as its server: streams that the client opens, each with headers, input and output.
//! One tokio task per connection, owned by the [`Session`], reads and writes it; streams talk to it through bounded queues.
//! Must let one stream's reset end that stream only, and bound what it holds whatever a client sends or leaves unread.

mod connection;
mod dictionary;
pub mod frame;
mod header;
mod window;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinSet,
};

pub use header::Headers;
use window::Windows;

/// Pieces of output that wait for the connection, for all streams together.
const OUTPUT_PIECES: usize = 8;
/// Longest data frame we send, bytes.
const DATA_MAX: usize = 64 * 1024;
/// Bytes that must have been consumed before the client is told that it may send more: half of a window.
const CREDIT: u32 = 32 * 1024;

/// The status of a reset stream (draft 3.1, section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetStatus {
    /// Not as the protocol has it.
    Protocol = 1,
    /// Not accepted, nothing was done.
    Refused = 3,
    /// No longer wanted.
    Cancel = 5,
    /// A failure of ours.
    Internal = 6,
    /// A window grew beyond what is allowed.
    FlowControl = 7,
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

/// Something for the connection to write.
enum Output {
    Reply(u32),
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    Control(Vec<u8>),
    /// No more streams.
    GoAway,
}

/// Input of one stream that waits to be taken, and its share of the connection's memory.
struct Piece {
    input: Input,
    _room: Option<OwnedSemaphorePermit>,
}

/// What a connection's streams share.
#[derive(Default)]
struct Flow {
    windows: Windows,
    /// Bytes consumed, or discarded, that the client was not given back for the whole connection yet.
    credit: AtomicU32,
    /// The number of the newest stream.
    last: AtomicU32,
}

/// A stream that the client opened.
pub struct Stream {
    /// Its number: odd, growing.
    pub id: u32,
    /// Its headers, names in lower case.
    pub headers: Headers,
    /// What the client sends.
    pub reader: StreamReader,
    /// What the client gets.
    pub writer: StreamWriter,
}

/// The receiving half of a stream.
pub struct StreamReader {
    stream: u32,
    input: mpsc::Receiver<Piece>,
    output: mpsc::Sender<Output>,
    flow: Arc<Flow>,
    credit: u32,
    over: bool,
}

/// The sending half of a stream.
pub struct StreamWriter {
    stream: u32,
    output: mpsc::Sender<Output>,
    flow: Arc<Flow>,
}

/// The stream or the connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send on stream: it is closed")]
pub struct Closed;

impl Stream {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl StreamReader {
    /// The next input; after [`Input::Reset`] always that. Asking for the next says that the last is consumed. Cancel-safe.
    pub async fn next(&mut self) -> Input {
        if self.over {
            return Input::Reset;
        }
        let piece = loop {
            let due = self.credit >= CREDIT || self.flow.credit.load(Ordering::Relaxed) >= CREDIT;
            tokio::select! {
                biased;
                piece = self.input.recv() => break piece,
                // Never a reason to wait: a client that takes no output may still be waiting to send.
                permit = self.output.reserve(), if due => match permit {
                    Ok(permit) => permit.send(credit_due(self.stream, &mut self.credit, &self.flow)),
                    Err(_) => break None,
                },
            }
        };
        let input = piece.map_or(Input::Reset, |piece| piece.input);
        if let Input::Data(bytes) = &input {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            self.credit = self.credit.saturating_add(length);
            self.flow.credit.fetch_add(length, Ordering::Relaxed);
        }
        self.over = input == Input::Reset;
        input
    }
}

/// Gives back what was consumed: the stream's first, then the connection's.
fn credit_due(stream: u32, credit: &mut u32, flow: &Flow) -> Output {
    let of_stream = *credit >= CREDIT;
    let more = if of_stream { std::mem::take(credit) } else { flow.credit.swap(0, Ordering::Relaxed) };
    Output::Control(frame::window(if of_stream { stream } else { 0 }, more))
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        // What nobody will take counts as taken for the connection.
        self.input.close();
        while let Ok(piece) = self.input.try_recv() {
            if let Input::Data(bytes) = piece.input {
                self.flow.credit.fetch_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
            }
        }
    }
}

impl StreamWriter {
    /// Sends bytes; waits while the connection is slow, or the client has given no window for more.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let allowed = self.flow.windows.take(self.stream, bytes.len().min(DATA_MAX)).await;
            if allowed == 0 {
                return Err(Closed);
            }
            let piece = bytes.split_to(allowed);
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

impl Drop for StreamWriter {
    fn drop(&mut self) {
        self.flow.windows.close(self.stream);
    }
}

/// A connection; dropping it closes it at once.
pub struct Session {
    streams: mpsc::Receiver<Stream>,
    output: mpsc::Sender<Output>,
    task: JoinSet<()>,
}

impl Session {
    /// Serves a connection that was just upgraded.
    pub fn new<C>(connection: C) -> Self
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (opened, streams) = mpsc::channel(16);
        let (output, outputs) = mpsc::channel(OUTPUT_PIECES);
        let mut task = JoinSet::new();
        task.spawn(connection::run(connection, opened, (output.clone(), outputs)));
        Self { streams, output, task }
    }

    /// The next stream that the client opens; `None`: the client is gone. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Says that no more streams are served, and leaves it to the client to close: its library may throw away what it has not
    /// handed on yet when the connection ends first. Waits for that, but no longer than `patience`.
    pub async fn close(mut self, patience: Duration) {
        self.streams.close();
        let last = async {
            if self.output.send(Output::GoAway).await.is_ok() {
                while self.task.join_next().await.is_some() {}
            }
        };
        // Its end is the end of the connection either way.
        let _ = tokio::time::timeout(patience, last).await;
    }
}

#[cfg(test)]
mod tests;
