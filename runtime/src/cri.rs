//! The CRI face: both gRPC services, one file per RPC, over the engine and the image service.
//! Runs on tokio workers; an RPC decodes, checks, calls, encodes, and waits for work that others own.
//! Owns the mapping between CRI's messages and the engine's words; no other room of the daemon knows these messages.
//! Must never hold state of its own: two clients, or one before and one after a restart, see the same node.

mod batch;
mod bound;
mod container_attach;
mod container_checkpoint;
mod container_create;
mod container_events;
mod container_exec;
mod container_exec_sync;
mod container_list;
mod container_list_stats;
mod container_remove;
mod container_reopen_log;
mod container_spec;
mod container_start;
mod container_stats;
mod container_status;
mod container_stop;
mod container_update;
mod container_view;
mod id;
mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
mod image_status;
mod image_view;
mod info;
mod metric_descriptors;
mod metrics;
mod resource;
mod rpc;
mod runtime_config;
mod runtime_status;
mod runtime_update;
mod runtime_version;
mod sandbox_checkpoint;
mod sandbox_list;
mod sandbox_list_metrics;
mod sandbox_list_stats;
mod sandbox_port_forward;
mod sandbox_remove;
mod sandbox_restore;
mod sandbox_run;
mod sandbox_spec;
mod sandbox_stats;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod sandbox_view;
mod security_spec;
pub mod server;
mod signal;
mod stats_view;
mod status;

use std::sync::Arc;

use keelson_cri::v1;
use keelson_imageservice::ImageService;
use tonic::{Request, Response, Status, codegen::BoxStream};

use self::status::{Failure, invalid};
use crate::{
    config::{Config, DefaultSeccomp},
    container::spec::Seccomp,
    engine::Engine,
    streaming::Streaming,
};

/// Both services; serve it behind one `Arc`.
pub struct Cri {
    engine: Engine,
    images: Arc<ImageService>,
    streaming: Streaming,
    about: About,
}

/// What the face must know beside the engine: settings to show, and the kernel's name.
struct About {
    config: Config,
    kernel: String,
    default_seccomp: Seccomp,
}

impl Cri {
    /// The face of this engine.
    #[must_use]
    pub fn new(engine: Engine, images: Arc<ImageService>, streaming: Streaming, config: Config) -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let about = About {
            default_seccomp: match config.containers.seccomp {
                DefaultSeccomp::RuntimeDefault => Seccomp::RuntimeDefault,
                DefaultSeccomp::Unconfined => Seccomp::Unconfined,
            },
            kernel,
            config,
        };
        Self { engine, images, streaming, about }
    }

    /// The id of the image that has this name here.
    fn image_id(&self, name: &str) -> Option<String> {
        self.images.find(name).map(|image| image.id.to_string())
    }
}

/// The name of the image a request is about.
fn image_name(image: Option<v1::ImageSpec>) -> Result<String, Failure> {
    image.map(|image| image.image).filter(|name| !name.is_empty()).ok_or_else(|| invalid("image.image", "is empty"))
}

/// Runs something that may block on the pool for it.
async fn blocking<T: Send + 'static>(
    act: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let held = crate::observe::counters().blocking.hold();
    let work = move || {
        let _held = held;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::Host { act, source: std::io::Error::other(error) })
}

/// Writes out a service: the RPCs that answer once, and those that answer with a stream.
macro_rules! service {
    (
        $service:path;
        built { $($method:ident $rpc:literal ($request:ident) -> $response:ident = $handler:ident;)* }
        streamed { $($stream:ident $stream_rpc:literal ($query:ident) -> $item:ident = $streamer:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl $service for Cri {
            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                rpc::serve($rpc, request, |call| $handler::handle(self, call)).await
            })*
            $(async fn $stream(&self, request: Request<v1::$query>) -> Result<Response<BoxStream<v1::$item>>, Status> {
                rpc::serve($stream_rpc, request, |call| $streamer::stream(self, call)).await
            })*
        }
    };
}

service! {
    v1::runtime_service_server::RuntimeService;
    built {
        version "Version" (VersionRequest) -> VersionResponse = runtime_version;
        status "Status" (StatusRequest) -> StatusResponse = runtime_status;
        runtime_config "RuntimeConfig" (RuntimeConfigRequest) -> RuntimeConfigResponse = runtime_config;
        run_pod_sandbox "RunPodSandbox" (RunPodSandboxRequest) -> RunPodSandboxResponse = sandbox_run;
        stop_pod_sandbox "StopPodSandbox" (StopPodSandboxRequest) -> StopPodSandboxResponse = sandbox_stop;
        remove_pod_sandbox "RemovePodSandbox" (RemovePodSandboxRequest) -> RemovePodSandboxResponse = sandbox_remove;
        pod_sandbox_status "PodSandboxStatus" (PodSandboxStatusRequest) -> PodSandboxStatusResponse = sandbox_status;
        list_pod_sandbox "ListPodSandbox" (ListPodSandboxRequest) -> ListPodSandboxResponse = sandbox_list;
        create_container "CreateContainer" (CreateContainerRequest) -> CreateContainerResponse = container_create;
        start_container "StartContainer" (StartContainerRequest) -> StartContainerResponse = container_start;
        stop_container "StopContainer" (StopContainerRequest) -> StopContainerResponse = container_stop;
        remove_container "RemoveContainer" (RemoveContainerRequest) -> RemoveContainerResponse = container_remove;
        list_containers "ListContainers" (ListContainersRequest) -> ListContainersResponse = container_list;
        container_status "ContainerStatus" (ContainerStatusRequest) -> ContainerStatusResponse = container_status;
        checkpoint_container "CheckpointContainer" (CheckpointContainerRequest)
            -> CheckpointContainerResponse = container_checkpoint;
        checkpoint_pod "CheckpointPod" (CheckpointPodRequest) -> CheckpointPodResponse = sandbox_checkpoint;
        restore_pod "RestorePod" (RestorePodRequest) -> RestorePodResponse = sandbox_restore;
        update_container_resources "UpdateContainerResources" (UpdateContainerResourcesRequest)
            -> UpdateContainerResourcesResponse = container_update;
        reopen_container_log "ReopenContainerLog" (ReopenContainerLogRequest)
            -> ReopenContainerLogResponse = container_reopen_log;
        exec "Exec" (ExecRequest) -> ExecResponse = container_exec;
        attach "Attach" (AttachRequest) -> AttachResponse = container_attach;
        port_forward "PortForward" (PortForwardRequest) -> PortForwardResponse = sandbox_port_forward;
        exec_sync "ExecSync" (ExecSyncRequest) -> ExecSyncResponse = container_exec_sync;
        container_stats "ContainerStats" (ContainerStatsRequest) -> ContainerStatsResponse = container_stats;
        list_container_stats "ListContainerStats" (ListContainerStatsRequest)
            -> ListContainerStatsResponse = container_list_stats;
        pod_sandbox_stats "PodSandboxStats" (PodSandboxStatsRequest) -> PodSandboxStatsResponse = sandbox_stats;
        list_pod_sandbox_stats "ListPodSandboxStats" (ListPodSandboxStatsRequest)
            -> ListPodSandboxStatsResponse = sandbox_list_stats;
        list_metric_descriptors "ListMetricDescriptors" (ListMetricDescriptorsRequest)
            -> ListMetricDescriptorsResponse = metric_descriptors;
        list_pod_sandbox_metrics "ListPodSandboxMetrics" (ListPodSandboxMetricsRequest)
            -> ListPodSandboxMetricsResponse = sandbox_list_metrics;
        update_pod_sandbox_resources "UpdatePodSandboxResources" (UpdatePodSandboxResourcesRequest)
            -> UpdatePodSandboxResourcesResponse = sandbox_update;
        update_runtime_config "UpdateRuntimeConfig" (UpdateRuntimeConfigRequest)
            -> UpdateRuntimeConfigResponse = runtime_update;
    }
    streamed {
        get_container_events "GetContainerEvents" (GetEventsRequest) -> ContainerEventResponse = container_events;
        stream_pod_sandboxes "StreamPodSandboxes" (StreamPodSandboxesRequest)
            -> StreamPodSandboxesResponse = sandbox_list;
        stream_containers "StreamContainers" (StreamContainersRequest) -> StreamContainersResponse = container_list;
        stream_container_stats "StreamContainerStats" (StreamContainerStatsRequest)
            -> StreamContainerStatsResponse = container_list_stats;
        stream_pod_sandbox_stats "StreamPodSandboxStats" (StreamPodSandboxStatsRequest)
            -> StreamPodSandboxStatsResponse = sandbox_list_stats;
        stream_pod_sandbox_metrics "StreamPodSandboxMetrics" (StreamPodSandboxMetricsRequest)
            -> StreamPodSandboxMetricsResponse = sandbox_list_metrics;
    }
}

service! {
    v1::image_service_server::ImageService;
    built {
        list_images "ListImages" (ListImagesRequest) -> ListImagesResponse = image_list;
        image_status "ImageStatus" (ImageStatusRequest) -> ImageStatusResponse = image_status;
        pull_image "PullImage" (PullImageRequest) -> PullImageResponse = image_pull;
        remove_image "RemoveImage" (RemoveImageRequest) -> RemoveImageResponse = image_remove;
        image_fs_info "ImageFsInfo" (ImageFsInfoRequest) -> ImageFsInfoResponse = image_fs_info;
    }
    streamed {
        stream_images "StreamImages" (StreamImagesRequest) -> StreamImagesResponse = image_list;
    }
}

#[cfg(test)]
mod tests;
