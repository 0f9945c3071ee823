//! Why a subcommand failed: the last line a person sees.
//! Plain values on the main thread. Owns nothing.
//! Must never repeat its cause: the whole chain is printed once, in `main`.

use std::{io, path::PathBuf};

use crate::{
    config::ConfigError,
    engine::OpenError,
    logging::LogError,
    observe::{EndpointError, TraceError},
    socket::SocketError,
};

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("start the daemon")]
    Open(#[from] OpenError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("serve CRI")]
    Serve(#[from] tonic::transport::Error),
    #[error(transparent)]
    Streaming(#[from] crate::streaming::server::ServerError),
    #[error("{act} needs root: mounts, namespaces and cgroups are made; run it with sudo")]
    NotRoot { act: &'static str },
    #[error("find the shim `{path}`: it is built and installed beside keelson; set `shim` in the configuration")]
    NoShim { path: PathBuf, source: io::Error },
    #[error("{act}")]
    Host { act: &'static str, source: io::Error },
    #[error("{act} `{path}`")]
    File { act: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "connect to `{path}`: no daemon serves there; start one with `keelson serve`, or name its socket with --socket"
    )]
    NoDaemon { path: PathBuf, source: io::Error },
    #[error("connect to `{path}`: only root and its group may; run it with sudo")]
    NotAllowed { path: PathBuf, source: io::Error },
    #[error("connect to `{path}`")]
    Connect { path: PathBuf, source: tonic::transport::Error },
    #[error("{rpc}: {message} ({code:?})")]
    Rpc { rpc: &'static str, message: String, code: tonic::Code },
    #[error("{step}: {reason}")]
    Try { step: &'static str, reason: String },
    #[error("import the built-in image")]
    Import { source: Box<dyn std::error::Error + Send + Sync> },
}

impl CliError {
    /// What a daemon answered.
    pub(super) fn rpc(rpc: &'static str) -> impl Fn(tonic::Status) -> Self {
        move |status| Self::Rpc { rpc, message: status.message().to_owned(), code: status.code() }
    }
}
