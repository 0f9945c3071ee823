//! GetContainerEvents: how every sandbox and container is, and then each change, until the client goes.
//! Encodes in the task of the connection, as fast as the client takes it. Owns its place among the engine's listeners.
//! Must never hold up the engine: a client that is too slow is let go by it, and is told so at the end of what it had coming.

use std::sync::Arc;

use futures_util::stream;
use keelson_cri::v1;
use keelson_imageservice::ImageService;
use tonic::{Status, codegen::BoxStream};

use super::{Cri, container_view, rpc::Call, sandbox_view, status::Failure};
use crate::engine::{
    Engine,
    events::{Event, EventKind, Listener},
};

pub(super) async fn stream(
    cri: &Cri,
    _: Call<v1::GetEventsRequest>,
) -> Result<BoxStream<v1::ContainerEventResponse>, Failure> {
    let listening = Listening {
        listener: cri.engine.listen().map_err(Failure::Events)?,
        engine: cri.engine.clone(),
        images: Arc::clone(&cri.images),
    };
    Ok(Box::pin(stream::try_unfold(listening, |mut listening| async {
        match listening.listener.next().await {
            Ok(event) => Ok(Some((listening.encode(&event), listening))),
            Err(end) => Err(Status::from(Failure::Events(end))),
        }
    })))
}

struct Listening {
    listener: Listener,
    engine: Engine,
    images: Arc<ImageService>,
}

impl Listening {
    /// With the statuses as they are now: at least as new as the event. kubelet takes its whole view of the pod from them.
    fn encode(&self, event: &Event) -> v1::ContainerEventResponse {
        let image_id = |name: &str| self.images.find(name).map(|image| image.id.to_string());
        // A sandbox that is gone is told of as it last was: its deletion names the pod by it.
        let sandbox = self.engine.find_sandbox(event.sandbox.id.as_str());
        let sandbox = sandbox.as_ref().unwrap_or(&event.sandbox);
        let containers = container_view::statuses(&self.engine.containers_of(&sandbox.id), image_id);
        v1::ContainerEventResponse {
            container_id: match &event.container {
                Some(container) => container.to_string(),
                None => sandbox.id.to_string(),
            },
            container_event_type: i32::from(match event.kind {
                EventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
                EventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
                EventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
                EventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
            }),
            created_at: event.at,
            pod_sandbox_status: Some(sandbox_view::status(sandbox)),
            containers_statuses: containers,
        }
    }
}
