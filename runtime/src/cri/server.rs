//! The gRPC server behind the CRI socket.
//! Async, on the daemon's workers. Owns the socket while it serves.
//! Must never take calls after it was asked to stop, nor wait for ever for those under way, and never touch a container.

use std::{future::Future, sync::Arc, time::Duration};

use keelson_cri::{
    MAX_MESSAGE_BYTES,
    v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use tokio_stream::wrappers::UnixListenerStream;

use crate::{cri::Cri, socket::Socket};

/// How long requests under way may take once the daemon is asked to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Serves both services until `stop`; then takes no more calls and waits for those under way, within bounds.
///
/// # Errors
/// The transport failed.
pub async fn serve(socket: Socket, cri: Cri, stop: impl Future<Output = ()>) -> Result<(), tonic::transport::Error> {
    let (listener, file) = socket.into_parts();
    let engine = cri.engine.clone();
    let cri = Arc::new(cri);
    let runtime = RuntimeServiceServer::from_arc(Arc::clone(&cri))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let image = ImageServiceServer::from_arc(cri)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let stopping = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&stopping);
    let stop = async move {
        stop.await;
        told.notify_one();
        // Who listens would not go by itself.
        engine.close_events();
    };
    let serving = tonic::transport::Server::builder()
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
    let patience = async {
        stopping.notified().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving => served?,
        () = patience => tracing::warn!(seconds = GRACE.as_secs(), "calls under way are left to their callers"),
    }
    drop(file);
    Ok(())
}
