//! A CRI client for the operator's tools: the same socket and messages as kubelet's.
//! Async, on the tool's own small runtime. Owns the connection.
//! Must never reach around the socket into the daemon's folders.

use std::{io, path::Path};

use keelson_cri::{
    MAX_MESSAGE_BYTES,
    v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use tonic::transport::{Channel, Endpoint};

use super::CliError;

/// Both services of one daemon.
pub(super) struct Client {
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) image: ImageServiceClient<Channel>,
}

impl Client {
    pub(super) async fn connect(socket: &Path) -> Result<Self, CliError> {
        // Tried first by itself: the transport's own error does not tell the cases apart.
        if let Err(source) = tokio::net::UnixStream::connect(socket).await {
            let path = socket.to_owned();
            return Err(match source.kind() {
                io::ErrorKind::PermissionDenied => CliError::NotAllowed { path, source },
                _ => CliError::NoDaemon { path, source },
            });
        }
        let failed = |source| CliError::Connect { path: socket.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(failed)?;
        let channel = endpoint.connect().await.map_err(failed)?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            image: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        })
    }
}

/// A runtime of one thread for a tool's work.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| CliError::Host { act: "start the async runtime", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_not_there_is_said_to_be_so() {
        let connect = Client::connect(Path::new("/nonexistent/keelson.sock"));
        let said = runtime().unwrap().block_on(connect).err().unwrap().to_string();
        assert!(said.starts_with("connect to `/nonexistent/keelson.sock`: no daemon serves there"), "{said}");
    }
}
