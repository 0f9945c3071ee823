//! What sessions ask of the node: processes with their streams, and connections into pods. The engine answers; tests stand in.
//! Async, called in the task of a session. Owns nothing.
//! Must never leave a process behind: dropping what is handed out here ends an exec and detaches an attach.

use std::{future::Future, io, pin::Pin};

use keelson_api::{ContainerId, SandboxId};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::channel::TerminalSize;

/// Which streams of a process a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// One terminal instead of three streams.
    pub terminal: bool,
    /// Bytes go in.
    pub stdin: bool,
    /// Output comes out.
    pub stdout: bool,
    /// Error output comes out; never with a terminal.
    pub stderr: bool,
}

/// Bytes for a process. Dropping it is end-of-file.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;
/// Bytes of a process. Ends by itself when the process has ended and its output has come.
pub type Source = Box<dyn AsyncRead + Send + Unpin>;
/// Gives the terminal a size.
pub type Resize = Box<dyn Fn(TerminalSize) -> io::Result<()> + Send + Sync>;
/// Waits for the end; an error is told to the client as it is. Dropping it ends the process (exec) or lets it go (attach).
pub type End = Pin<Box<dyn Future<Output = Result<Ended, String>> + Send>>;

/// A process and this session's streams to it.
pub struct Process {
    /// Absent when not asked for, or the process takes no input.
    pub stdin: Option<Sink>,
    /// Absent when not asked for.
    pub stdout: Option<Source>,
    /// Absent when not asked for, and with a terminal.
    pub stderr: Option<Source>,
    /// Absent without a terminal.
    pub resize: Option<Resize>,
    /// How it ends.
    pub end: End,
}

/// How a session's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// An exec's exit code, 128 + signal.
    Exit(i32),
    /// The container that the session was attached to has ended.
    Detached,
    /// The client took the output too slowly to stay attached.
    FellBehind,
}

/// The node, as sessions see it. Errors are texts for the client.
#[tonic::async_trait]
pub trait Node: Send + Sync + 'static {
    /// Starts a program in a running container.
    async fn exec(&self, container: &ContainerId, args: Vec<String>, streams: Streams) -> Result<Process, String>;

    /// Joins the streams of a running container's first process.
    async fn attach(&self, container: &ContainerId, streams: Streams) -> Result<Process, String>;

    /// Connects to a port of a pod's loopback.
    async fn connect(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream, String>;
}
