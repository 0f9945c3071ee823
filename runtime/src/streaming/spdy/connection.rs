//! The task of one SPDY connection: reads frames and hands each to its stream, writes what the streams send, asks for life signs.
//! Runs on a tokio worker until the client is gone, breaks the protocol, or the session is dropped. Owns the connection.
//! Must stop reading while the client's input is not taken, and still notice then that the client is gone: a ping finds out.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    CREDIT, Flow, Input, Output, Piece, ResetStatus, Stream, StreamReader, StreamWriter,
    frame::{self, Decoder, Frame, Replies},
};

/// Streams that may be open at once on one connection: a port-forward of a busy browser needs two per request.
const STREAMS_MAX: usize = 2048;
/// Input of all streams that may wait to be taken, bytes; above it the connection is read no further.
pub(super) const INPUT_BYTES: usize = 1 << 20;
/// Pieces of input that may wait for one stream.
const INPUT_PIECES: usize = 64;
/// What a piece counts for at least: it may hold on to a buffer larger than itself.
const PIECE_LEAST: usize = 1024;
/// Bytes asked of the connection at once.
const CHUNK: usize = 32 * 1024;
/// Between two pings. A client that is gone without a word is found by one of them at the latest.
const PING: Duration = Duration::from_secs(10);

/// Wakes every sender when the task ends, however it ends.
struct Ending(Arc<Flow>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.windows.close_all();
    }
}

pub(super) async fn run(
    connection: impl AsyncRead + AsyncWrite + Send + 'static,
    opened: mpsc::Sender<Stream>,
    (output, outputs): (mpsc::Sender<Output>, mpsc::Receiver<Output>),
) {
    let (read, write) = tokio::io::split(connection);
    let flow = Arc::new(Flow::default());
    let _ending = Ending(Arc::clone(&flow));
    let reader = Reader {
        streams: HashMap::new(),
        room: Arc::new(Semaphore::new(INPUT_BYTES)),
        opened,
        output,
        flow: Arc::clone(&flow),
    };
    tokio::select! {
        () = reader.run(read) => {}
        () = write_frames(write, outputs, &flow) => {}
    }
}

struct Reader {
    streams: HashMap<u32, mpsc::Sender<Piece>>,
    room: Arc<Semaphore>,
    opened: mpsc::Sender<Stream>,
    output: mpsc::Sender<Output>,
    flow: Arc<Flow>,
}

impl Reader {
    async fn run(mut self, mut connection: impl AsyncRead + Unpin) {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    if self.handle(frame).await.is_none() {
                        return;
                    }
                }
                Ok(None) => {
                    buffer.reserve(CHUNK);
                    match connection.read_buf(&mut buffer).await {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return,
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %keelson_api::chain(&error), "end spdy session");
                    return;
                }
            }
        }
    }

    /// `None`: the connection is over.
    async fn handle(&mut self, frame: Frame) -> Option<()> {
        match frame {
            Frame::Open { stream, headers, fin } => self.open(stream, headers, fin).await,
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::Reset { stream, .. } => {
                // Dropping the sender tells the reader; the writer's window tells the writer.
                self.streams.remove(&stream);
                self.flow.windows.close(stream);
                Some(())
            }
            // Odd numbers are the client's; an even one answers ours.
            Frame::Ping { id } if id % 2 == 1 => self.say(Output::Control(frame::ping(id))).await,
            Frame::Settings { window } => {
                if let Some(size) = window {
                    self.flow.windows.set_initial(size);
                }
                Some(())
            }
            Frame::Window { stream, more } => {
                if self.flow.windows.grow(stream, more).is_err() {
                    if stream == 0 {
                        return None;
                    }
                    self.streams.remove(&stream);
                    self.flow.windows.close(stream);
                    let reset = frame::reset(stream, ResetStatus::FlowControl as u32);
                    return self.say(Output::Control(reset)).await;
                }
                Some(())
            }
            Frame::Ping { .. } | Frame::GoAway | Frame::Reply { .. } | Frame::Other => Some(()),
        }
    }

    async fn open(&mut self, stream: u32, headers: super::Headers, fin: bool) -> Option<()> {
        let refuse = |status: ResetStatus| Output::Control(frame::reset(stream, status as u32));
        if stream.is_multiple_of(2) || stream <= self.flow.last.load(Ordering::Relaxed) {
            return self.say(refuse(ResetStatus::Protocol)).await;
        }
        self.flow.last.store(stream, Ordering::Relaxed);
        self.streams.retain(|_, input| !input.is_closed());
        if self.streams.len().max(self.flow.windows.len()) >= STREAMS_MAX {
            return self.say(refuse(ResetStatus::Refused)).await;
        }
        let (input, receiver) = mpsc::channel(INPUT_PIECES);
        if fin {
            // Room for it is there: the channel is new.
            let _ = input.try_send(Piece { input: Input::End, _room: None });
        } else {
            self.streams.insert(stream, input);
        }
        self.flow.windows.open(stream);
        let (output, flow) = (self.output.clone(), Arc::clone(&self.flow));
        let writer = StreamWriter { stream, output: output.clone(), flow: Arc::clone(&flow) };
        let reader = StreamReader { stream, input: receiver, output, flow, credit: 0, over: false };
        self.say(Output::Reply(stream)).await?;
        // The session is closing: what nobody accepts is dropped, and ends with the connection.
        let _ = self.opened.send(Stream { id: stream, headers, reader, writer }).await;
        Some(())
    }

    async fn data(&mut self, stream: u32, bytes: Bytes, fin: bool) -> Option<()> {
        let length = bytes.len();
        let mut taken = length == 0;
        if let Some(input) = self.streams.get(&stream) {
            if !taken {
                let room = Self::room(&self.room, length).await;
                taken = input.send(Piece { input: Input::Data(bytes), _room: room }).await.is_ok();
            }
            if fin {
                let _ = input.send(Piece { input: Input::End, _room: None }).await;
                self.streams.remove(&stream);
            }
        }
        if !taken {
            // A stream that is over, or whose reader has gone: discarded.
            self.flow.credit.fetch_add(u32::try_from(length).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        if self.flow.credit.load(Ordering::Relaxed) >= CREDIT {
            let more = self.flow.credit.swap(0, Ordering::Relaxed);
            self.say(Output::Control(frame::window(0, more))).await?;
        }
        Some(())
    }

    async fn room(room: &Arc<Semaphore>, length: usize) -> Option<OwnedSemaphorePermit> {
        let share = u32::try_from(length.max(PIECE_LEAST)).unwrap_or(u32::MAX);
        Arc::clone(room).acquire_many_owned(share).await.ok()
    }

    async fn say(&self, output: Output) -> Option<()> {
        self.output.send(output).await.ok()
    }
}

/// Writes what the streams send, until the connection breaks.
async fn write_frames(mut connection: impl AsyncWrite + Unpin, mut outputs: mpsc::Receiver<Output>, flow: &Flow) {
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Even numbers are the server's.
    let mut ping = 0_u32;
    let mut replies = Replies::default();
    loop {
        let output = tokio::select! {
            output = outputs.recv() => output,
            _ = pings.tick() => {
                ping = ping.wrapping_add(2);
                Some(Output::Control(frame::ping(ping)))
            }
        };
        let Some(output) = output else { return };
        let written = match output {
            Output::Reply(stream) => connection.write_all(&replies.reply(stream)).await,
            Output::Data { stream, bytes, fin } => {
                let head = frame::data_head(stream, bytes.len(), fin);
                connection.write_all_buf(&mut Buf::chain(&head[..], bytes)).await
            }
            Output::Control(bytes) => connection.write_all(&bytes).await,
            Output::GoAway => connection.write_all(&frame::go_away(flow.last.load(Ordering::Relaxed))).await,
        };
        if written.is_err() || (outputs.is_empty() && connection.flush().await.is_err()) {
            return;
        }
    }
}
