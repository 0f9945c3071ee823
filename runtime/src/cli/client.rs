//! A CRI client for the operator's tools: the same socket and messages as kubelet's.
//! Async, on the tool's own small runtime. Owns the connection.
//! Must never reach around the socket into the daemon's folders.

use std::path::Path;

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
