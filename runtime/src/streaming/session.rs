//! From an upgraded connection to a session: opens the channels that the request asks for, on whatever carries them.
//! Async, in the connection's task, to the session's end. Owns the connection.
//! Must end with its client: when that is gone whatever the session started goes too.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{sync::mpsc, task::JoinSet, time::timeout_at};

use super::{
    Ask,
    channel::{Channels, Reader, Writer},
    forward::{self, Target},
    life::Life,
    node::Streams,
    remote,
    route::{Admitted, Door, Protocol},
    spdy::{ResetStatus, Session},
    tunnel::Tunnel,
    upgrade::{Forward, Remote, Transport},
    websocket::{self, Connection, Form, INPUTS},
};
use crate::observe::counters;

/// How long a client may take to read the last words and close.
const LINGER: Duration = Duration::from_secs(30);

type Io = TokioIo<Upgraded>;

/// Channel numbers of exec and attach.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

impl Admitted {
    /// Runs the session to its end.
    pub(super) async fn run(self, door: &Door) {
        let Ok(upgraded) = self.upgrade.await else { return };
        let counts = Arc::clone(&door.streaming.counts);
        counts.started.fetch_add(1, Ordering::Relaxed);
        counts.running.fetch_add(1, Ordering::Relaxed);
        counters().streaming_opened.one();
        let _open = counters().streaming_sessions.hold();
        let counted = Counted(counts);
        let io = TokioIo::new(upgraded);
        let life = Arc::new(Life::new(door.limits.idle, door.stop.clone()));
        match (self.ask, self.protocol) {
            (Ask::PortForward { sandbox, ports }, Protocol::Forward(form)) => {
                let creation = door.limits.creation;
                let target = Arc::new(Target { node: Arc::clone(&door.node), sandbox, creation });
                port_forward(io, form, ports, target, life).await;
            }
            (ask @ (Ask::Exec { .. } | Ask::Attach { .. }), Protocol::Remote(Transport::Spdy, form)) => {
                over_spdy(io, form, ask, door, &life).await;
            }
            (ask @ (Ask::Exec { .. } | Ask::Attach { .. }), Protocol::Remote(Transport::WebSocket, form)) => {
                over_websocket(io, form, ask, door, &life).await;
            }
            // The protocol was chosen for what was asked.
            (Ask::PortForward { .. }, Protocol::Remote(..)) | (_, Protocol::Forward(_)) => {}
        }
        drop(counted);
    }
}

/// A running session.
struct Counted(Arc<super::Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

fn streams(ask: &Ask) -> Streams {
    match ask {
        Ask::Exec { streams, .. } | Ask::Attach { streams, .. } => *streams,
        Ask::PortForward { .. } => Streams { terminal: false, stdin: false, stdout: false, stderr: false },
    }
}

async fn open(door: &Door, ask: Ask) -> Result<super::node::Process, String> {
    match ask {
        Ask::Exec { container, args, streams } => door.node.exec(&container, args, streams).await,
        Ask::Attach { container, streams } => door.node.attach(&container, streams).await,
        Ask::PortForward { .. } => Err("a port-forward has no process".to_owned()),
    }
}

async fn over_spdy(io: Io, form: Remote, ask: Ask, door: &Door, life: &Life) {
    let mut session = Session::new(io);
    let wanted = streams(&ask);
    let Some(channels) = gather(&mut session, form, wanted, door.limits.creation).await else { return };
    let gone = async {
        while let Some(stream) = session.accept().await {
            let _ = stream.writer.reset(ResetStatus::Refused).await;
        }
    };
    tokio::select! {
        () = remote::run(channels, open(door, ask), life) => {}
        () = gone => return,
    }
    session.close(LINGER).await;
}

/// Waits for the streams that the request and the protocol's version call for. `None`: they did not come in time.
async fn gather(session: &mut Session, form: Remote, wanted: Streams, within: Duration) -> Option<Channels> {
    let deadline = tokio::time::Instant::now() + within;
    let (mut stdin, mut resize, mut stdout, mut stderr, mut status) = (None, None, None, None, None);
    loop {
        let whole = status.is_some()
            && wanted.stdin == stdin.is_some()
            && wanted.stdout == stdout.is_some()
            && (wanted.stderr && !wanted.terminal) == stderr.is_some()
            && (wanted.terminal && form.resize) == resize.is_some();
        if whole {
            break;
        }
        let stream = timeout_at(deadline, session.accept()).await.ok()??;
        let (reader, writer) = (Reader::Spdy(stream.reader), Writer::Spdy(stream.writer));
        let kind = stream.headers.iter().find(|(name, _)| name == "streamtype").map(|(_, value)| value.as_str());
        let place = match kind {
            Some("error") => &mut status,
            Some("stdin") if wanted.stdin => &mut stdin,
            Some("stdout") if wanted.stdout => &mut stdout,
            Some("stderr") if wanted.stderr && !wanted.terminal => &mut stderr,
            Some("resize") if wanted.terminal && form.resize => &mut resize,
            Some(_) | None => {
                writer.refuse().await;
                continue;
            }
        };
        if place.is_some() {
            writer.refuse().await;
        } else {
            *place = Some((reader, writer));
        }
    }
    let (_, status) = status?;
    Some(Channels {
        stdin: stdin.map(|(reader, _)| reader),
        resize: resize.map(|(reader, _)| reader),
        stdout: stdout.map(|(_, writer)| writer),
        stderr: stderr.map(|(_, writer)| writer),
        status,
        form: form.form,
    })
}

async fn over_websocket(io: Io, form: Remote, ask: Ask, door: &Door, life: &Life) {
    let wanted = streams(&ask);
    let socket = websocket::accept(io).await;
    let mut inputs = Vec::new();
    let mut input = |number, wanted: bool| {
        wanted.then(|| {
            let (sender, receiver) = mpsc::channel(INPUTS);
            inputs.push((number, sender));
            Reader::WebSocket(receiver)
        })
    };
    let stdin = input(STDIN, wanted.stdin);
    let resize = input(RESIZE, wanted.terminal);
    let (mut connection, messages) = Connection::serve(socket, Form { base64: form.base64, close: form.close }, inputs);
    let writer = |channel| Writer::WebSocket { channel, messages: messages.clone() };
    let channels = Channels {
        stdin,
        resize,
        stdout: wanted.stdout.then(|| writer(STDOUT)),
        stderr: (wanted.stderr && !wanted.terminal).then(|| writer(STDERR)),
        status: writer(STATUS),
        form: form.form,
    };
    // An empty first message tells clients that wait for one that the server is there.
    let first = if wanted.stdout { STDOUT } else { STATUS };
    if messages.send((first, Bytes::new())).await.is_err() {
        return;
    }
    drop(messages);
    tokio::select! {
        () = remote::run(channels, open(door, ask), life) => {}
        () = connection.gone() => return,
    }
    connection.close(LINGER).await;
}

async fn port_forward(io: Io, form: Forward, ports: Vec<u16>, target: Arc<Target>, life: Arc<Life>) {
    let mut session = match form {
        Forward::Spdy => Session::new(io),
        Forward::Tunnel => Session::new(Tunnel::new(websocket::accept(io).await)),
        Forward::Channels { base64 } => return by_channels(io, base64, ports, target, life).await,
    };
    forward::spdy(&mut session, &target, &life).await;
    // The client is gone, or is told to go.
    session.close(Duration::from_secs(1)).await;
}

async fn by_channels(io: Io, base64: bool, ports: Vec<u16>, target: Arc<Target>, life: Arc<Life>) {
    let socket = websocket::accept(io).await;
    let (mut inputs, mut receivers) = (Vec::new(), Vec::new());
    // At most 64 ports: checked with the request.
    for (channel, port) in (0_u8..=254).step_by(2).zip(ports) {
        let (sender, receiver) = mpsc::channel(INPUTS);
        inputs.push((channel, sender));
        receivers.push((port, channel, receiver));
    }
    let (mut connection, messages) = Connection::serve(socket, Form { base64, close: false }, inputs);
    let mut forwards = JoinSet::new();
    for (port, channel, receiver) in receivers {
        let shared = (Arc::clone(&target), Arc::clone(&life));
        forwards.spawn(forward::channel(port, channel, receiver, messages.clone(), shared));
    }
    drop(messages);
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = connection.gone() => return,
        _ = life.over() => {}
    }
    drop(forwards);
    connection.close(LINGER).await;
}
