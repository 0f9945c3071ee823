//! Port-forward: many connections into one pod, each a pair of the client's streams (data and error) or two WebSocket channels.
//! Async; a session's task owns one task per forwarded connection, in a `JoinSet`, and ends them with the session.
//! Must let the end of one connection, however rude, end that one alone: the session goes on until its client closes it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use keelson_api::SandboxId;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

use super::{
    life::Life,
    node::Node,
    spdy::{Input, ResetStatus, Session, Stream, StreamReader, StreamWriter},
};

/// Read from a pod at once, bytes.
const CHUNK: usize = 32 * 1024;
/// How often half a pair that waits for its other half is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Which pod a session is for, and what it may do there.
pub(super) struct Target {
    pub(super) node: Arc<dyn Node>,
    pub(super) sandbox: SandboxId,
    /// How long the second stream of a pair may take to come.
    pub(super) creation: Duration,
}

/// What the two streams of a pair have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Named(String),
    /// The number of the error stream: clients older than request ids open the data stream right after it.
    Numbered(u32),
}

#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

/// Serves a session until its client closes it.
pub(super) async fn spdy(session: &mut Session, target: &Arc<Target>, life: &Arc<Life>) {
    let mut waiting: HashMap<Key, (Instant, Pair)> = HashMap::new();
    let mut forwards = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            stream = session.accept() => {
                let Some(stream) = stream else { return };
                life.touch();
                let Some((key, port)) = add(&mut waiting, stream).await else { continue };
                let complete = |pair: &(Instant, Pair)| pair.1.data.is_some() && pair.1.error.is_some();
                if waiting.get(&key).is_some_and(complete)
                    && let Some((_, Pair { data: Some(data), error: Some(error) })) = waiting.remove(&key)
                {
                    forwards.spawn(forward(port, data, error.writer, Arc::clone(target), Arc::clone(life)));
                }
            }
            Some(_) = forwards.join_next() => {}
            _ = look.tick(), if !waiting.is_empty() => {
                let late = |since: &Instant| since.elapsed() >= target.creation;
                for (_, (_, pair)) in waiting.extract_if(|_, (since, _)| late(since)) {
                    give_up(pair).await;
                }
            }
            _ = life.over() => return,
        }
    }
}

/// Puts a stream to its other half. `None`: it made no sense and is reset.
async fn add(waiting: &mut HashMap<Key, (Instant, Pair)>, stream: Stream) -> Option<(Key, u16)> {
    let kind = stream.header("streamtype").map(str::to_owned);
    let port = stream.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port != 0);
    let is_data = match kind.as_deref() {
        Some("data") => Some(true),
        Some("error") => Some(false),
        Some(_) | None => None,
    };
    let (Some(port), Some(is_data)) = (port, is_data) else {
        tracing::debug!(stream = stream.id, "port-forward stream without a port or a type");
        let _ = stream.writer.reset(ResetStatus::Protocol).await;
        return None;
    };
    let key = match stream.header("requestid") {
        Some(id) => Key::Named(id.to_owned()),
        None => Key::Numbered(if is_data { stream.id.saturating_sub(2) } else { stream.id }),
    };
    let (_, pair) = waiting.entry(key.clone()).or_insert_with(|| (Instant::now(), Pair::default()));
    let place = if is_data { &mut pair.data } else { &mut pair.error };
    if place.is_some() {
        let _ = stream.writer.reset(ResetStatus::Protocol).await;
        return None;
    }
    *place = Some(stream);
    Some((key, port))
}

/// The other half did not come.
async fn give_up(pair: Pair) {
    if let Some(error) = pair.error {
        let _ =
            error.writer.send(Bytes::from_static(b"port-forward: the data stream of this request did not come")).await;
        let _ = error.writer.finish().await;
    }
    if let Some(data) = pair.data {
        let _ = data.writer.reset(ResetStatus::Cancel).await;
    }
}

/// One forwarded connection from its beginning to its end.
async fn forward(port: u16, data: Stream, error: StreamWriter, target: Arc<Target>, life: Arc<Life>) {
    let Stream { mut reader, writer, .. } = data;
    match target.node.connect(&target.sandbox, port).await {
        Err(why) => {
            let _ = error.send(Bytes::from(why)).await;
            let _ = error.finish().await;
            let _ = writer.reset(ResetStatus::Cancel).await;
        }
        Ok(pod) => {
            copy(pod, &mut reader, &writer, &error, &life).await;
            // The client waits for the end of the error stream; nothing in it is success. Told twice does no harm.
            let _ = error.finish().await;
        }
    }
}

/// Both directions; each ends by itself, a reset on either side ends both.
async fn copy(mut pod: TcpStream, reader: &mut StreamReader, writer: &StreamWriter, error: &StreamWriter, life: &Life) {
    let (mut from_pod, mut to_pod) = pod.split();
    let up = async {
        let mut takes = true;
        loop {
            match reader.next().await {
                Input::Data(bytes) => {
                    life.touch();
                    // What the pod does not take any more is thrown away; its answer may still come.
                    takes = takes && to_pod.write_all(&bytes).await.is_ok();
                }
                Input::End => {
                    let _ = to_pod.shutdown().await;
                    return true;
                }
                Input::Reset => return false,
            }
        }
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match from_pod.read_buf(&mut buffer).await {
                Ok(0) => {
                    // Clients of today close their side when both streams have ended.
                    let _ = writer.finish().await;
                    let _ = error.finish().await;
                    return true;
                }
                Ok(_) => {
                    life.touch();
                    if writer.send(buffer.split().freeze()).await.is_err() {
                        return false;
                    }
                }
                // A reset inside the pod: this stream's, and no word on the error stream, which would end the client.
                Err(_) => {
                    let _ = writer.reset(ResetStatus::Cancel).await;
                    return false;
                }
            }
        }
    };
    tokio::pin!(up, down);
    let (mut up_done, mut down_done) = (false, false);
    while !(up_done && down_done) {
        let whole = tokio::select! {
            whole = &mut up, if !up_done => { up_done = true; whole }
            whole = &mut down, if !down_done => { down_done = true; whole }
        };
        if !whole {
            return;
        }
    }
}

/// One port of a session over WebSocket channels: `input` and messages on `channel`, errors on the next one.
/// The form has no word for the end of one direction: the pod's end is the end.
pub(super) async fn channel(
    port: u16,
    channel: u8,
    mut input: mpsc::Receiver<Input>,
    messages: mpsc::Sender<(u8, Bytes)>,
    (target, life): (Arc<Target>, Arc<Life>),
) {
    // Each channel begins with its port, two bytes, the low one first.
    for number in [channel, channel + 1] {
        if messages.send((number, Bytes::copy_from_slice(&port.to_le_bytes()))).await.is_err() {
            return;
        }
    }
    let mut pod = match target.node.connect(&target.sandbox, port).await {
        Ok(pod) => pod,
        Err(why) => {
            let _ = messages.send((channel + 1, Bytes::from(why))).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = pod.split();
    let up = async {
        let mut takes = true;
        while let Some(Input::Data(bytes)) = input.recv().await {
            life.touch();
            takes = takes && to_pod.write_all(&bytes).await.is_ok();
        }
        // The client is gone: the session ends us.
        std::future::pending::<()>().await;
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            let Ok(1..) = from_pod.read_buf(&mut buffer).await else { return };
            life.touch();
            if messages.send((channel, buffer.split().freeze())).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
