//! A connection to a port of a sandbox: a TCP socket made inside its network namespace, connected from here.
//! The socket is made on a thread of its own, which enters the namespace and ends; tokio then connects it like any other.
//! Owns nothing afterwards. Must never move a tokio worker into another namespace.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use keelson_api::SandboxId;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

use crate::engine::{ErrorKind, shared::blocking};

/// A server on the same host that has not accepted by then has a full queue.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a program in the sandbox may listen on, in the order of trying.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PortError {
    /// No sandbox with this id.
    #[error("sandbox `{id}` not found")]
    NotFound {
        /// The id asked for.
        id: SandboxId,
    },
    /// The sandbox has been stopped.
    #[error("forward port {port} of sandbox {id}: it is not ready")]
    NotReady {
        /// Which sandbox.
        id: SandboxId,
        /// Which port.
        port: u16,
    },
    /// Nobody listens there.
    #[error("forward port {port} of sandbox {id}: connection refused: nothing listens there on 127.0.0.1 or ::1{own}")]
    Refused {
        /// Which sandbox.
        id: SandboxId,
        /// Which port.
        port: u16,
        /// What is tried besides: the sandbox has a network stack of its own, which its addresses alone lead to.
        own: &'static str,
    },
    /// The server does not accept.
    #[error("forward port {port} of sandbox {id}: the server did not accept within {PATIENCE:?}: its queue is full")]
    Timeout {
        /// Which sandbox.
        id: SandboxId,
        /// Which port.
        port: u16,
    },
    /// The system refused a step.
    #[error("forward port {port} of sandbox {id}: {step}")]
    Failed {
        /// Which sandbox.
        id: SandboxId,
        /// Which port.
        port: u16,
        /// The step.
        step: &'static str,
        /// What it said.
        #[source]
        source: Arc<io::Error>,
    },
}

impl PortError {
    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NotReady { .. } => ErrorKind::State,
            Self::Refused { .. } => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Failed { .. } => ErrorKind::Internal,
        }
    }
}

/// Connects to `port` on the loopback addresses of the namespace pinned at `netns`, or of the host.
pub(crate) async fn connect(id: &SandboxId, netns: Option<PathBuf>, port: u16) -> Result<TcpStream, PortError> {
    connect_to(id, netns, &LOOPBACK, port).await
}

/// Connects to `port` on the first of these addresses that takes it, from the namespace pinned at `netns`, or from the host.
pub(crate) async fn connect_to(
    id: &SandboxId,
    netns: Option<PathBuf>,
    addresses: &[IpAddr],
    port: u16,
) -> Result<TcpStream, PortError> {
    let failed = |step| {
        let id = id.clone();
        move |error: io::Error| PortError::Failed { id, port, step, source: Arc::new(error) }
    };
    let mut first = None;
    for address in addresses.iter().copied() {
        let netns = netns.clone();
        let socket = match blocking(move || socket(netns.as_deref(), address)).await {
            Ok(socket) => socket,
            // A kernel or namespace without IPv6: what IPv4 said counts.
            Err(_) if first.is_some() => break,
            Err(error) => return Err(failed("make a socket in its network namespace")(error)),
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        match tokio::time::timeout(PATIENCE, socket.connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => {
                // Interactive protocols go through here; a failure costs only speed.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => first = first.or(Some(error)),
            Err(_) => return Err(PortError::Timeout { id: id.clone(), port }),
        }
    }
    Err(match first {
        Some(error) if error.kind() != io::ErrorKind::ConnectionRefused => failed("connect")(error),
        Some(_) | None => PortError::Refused { id: id.clone(), port, own: "" },
    })
}

/// A TCP socket of that namespace. Blocks for the life of a thread.
fn socket(netns: Option<&Path>, address: IpAddr) -> io::Result<OwnedFd> {
    let make = move || -> io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
    };
    match netns {
        None => make(),
        Some(path) => {
            let namespace = File::open(path)?;
            keelson_sys::namespace::in_existing(&[namespace.as_fd()], make)?
        }
    }
}
