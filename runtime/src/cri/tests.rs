//! Every RPC of the protocol, over a real socket: what an empty request is answered.

use std::collections::BTreeMap;

use keelson_cri::v1;
use tonic::{Code, transport::Channel};

use super::*;
use crate::{config::Overrides, engine::EngineConfig, socket::Socket};

const PROTO: &str = include_str!("../../../api/cri/proto/runtime_v1.proto");

/// A daemon in this process, with folders of its own, and a channel to it.
struct Node {
    channel: Channel,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let overrides = Overrides {
            root: Some(folder.path().join("root")),
            state: Some(folder.path().join("state")),
            ..Overrides::default()
        };
        let config = Config::parse("[network]\nenabled = false\n", "test", &overrides).unwrap();
        let images = keelson_imageservice::Config { root: config.root.clone(), ..Default::default() };
        // Any program will do: nothing is launched.
        let shim = std::env::current_exe().unwrap();
        let engine = EngineConfig::new(config.root.clone(), config.state.clone(), shim, images);
        let engine = Engine::open(engine).await.unwrap();
        let images = Arc::clone(engine.images());
        let streaming = crate::streaming::StreamingConfig {
            address: config.streaming.address,
            tls: None,
            idle_timeout: config.streaming.idle_timeout,
            creation_timeout: config.streaming.creation_timeout,
        };
        let streaming = crate::streaming::server::Server::bind(streaming).await.unwrap();
        let socket = Socket::bind(&config.socket).await.unwrap();
        let address = format!("unix://{}", config.socket.display());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let cri = Cri::new(engine, images, streaming.handle(), config);
        let served = tokio::spawn(crate::cri::server::serve(socket, cri, async {
            let _ = stopped.await;
        }));
        let channel = tonic::transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        Self { channel, stop: Some(stop), served, folder }
    }

    /// The answer to an empty request: any message is a good encoding of nothing.
    async fn ask(&self, service: &str, rpc: &str) -> Result<(), Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = format!("/runtime.v1.{service}/{rpc}").parse().unwrap();
        // An answer that is a stream may have no end.
        client.server_streaming(Request::new(()), path, tonic_prost::ProstCodec::<(), ()>::default()).await.map(|_| ())
    }

    /// Stops it as SIGTERM does. The client stays connected, as kubelet does: the daemon must not wait for it to leave.
    async fn end(mut self) {
        let began = std::time::Instant::now();
        let _ = self.stop.take().unwrap().send(());
        self.served.await.unwrap().unwrap();
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(!self.folder.path().join("state/keelson.sock").exists());
    }
}

/// Every RPC in the protocol file, with its service.
fn protocol() -> BTreeMap<&'static str, &'static str> {
    let mut service = "";
    let mut rpcs = BTreeMap::new();
    for line in PROTO.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.trim_end_matches(" {");
        } else if let Some(rest) = line.strip_prefix("rpc ") {
            rpcs.insert(rest.split_once('(').unwrap().0, service);
        }
    }
    rpcs
}

/// What each RPC answers to an empty request.
const ANSWERS: &[(&str, Code)] = &[
    ("Version", Code::Ok),
    ("Status", Code::Ok),
    ("RuntimeConfig", Code::Ok),
    ("RunPodSandbox", Code::InvalidArgument),
    ("StopPodSandbox", Code::InvalidArgument),
    ("RemovePodSandbox", Code::InvalidArgument),
    ("PodSandboxStatus", Code::InvalidArgument),
    ("ListPodSandbox", Code::Ok),
    ("CreateContainer", Code::InvalidArgument),
    ("StartContainer", Code::InvalidArgument),
    ("StopContainer", Code::InvalidArgument),
    ("RemoveContainer", Code::InvalidArgument),
    ("ListContainers", Code::Ok),
    ("ContainerStatus", Code::InvalidArgument),
    ("UpdateContainerResources", Code::InvalidArgument),
    ("ReopenContainerLog", Code::InvalidArgument),
    ("ExecSync", Code::InvalidArgument),
    ("Exec", Code::InvalidArgument),
    ("Attach", Code::InvalidArgument),
    ("PortForward", Code::InvalidArgument),
    ("ContainerStats", Code::InvalidArgument),
    ("ListContainerStats", Code::Ok),
    ("PodSandboxStats", Code::InvalidArgument),
    ("UpdatePodSandboxResources", Code::InvalidArgument),
    ("ListPodSandboxStats", Code::Ok),
    ("ListMetricDescriptors", Code::Ok),
    ("ListPodSandboxMetrics", Code::Ok),
    ("ListImages", Code::Ok),
    ("ImageStatus", Code::InvalidArgument),
    ("PullImage", Code::InvalidArgument),
    ("RemoveImage", Code::InvalidArgument),
    ("ImageFsInfo", Code::Ok),
    ("UpdateRuntimeConfig", Code::Ok),
    ("GetContainerEvents", Code::Ok),
    ("StreamPodSandboxes", Code::Ok),
    ("StreamContainers", Code::Ok),
    ("StreamContainerStats", Code::Ok),
    ("StreamPodSandboxStats", Code::Ok),
    ("StreamPodSandboxMetrics", Code::Ok),
    ("StreamImages", Code::Ok),
    ("CheckpointContainer", Code::InvalidArgument),
    ("CheckpointPod", Code::InvalidArgument),
    ("RestorePod", Code::InvalidArgument),
];

#[tokio::test]
async fn privileged_every_rpc_of_the_protocol_is_answered() {
    let node = Node::start().await;
    let rpcs = protocol();
    assert_eq!(rpcs.len(), 43);
    let answers: BTreeMap<_, _> = ANSWERS.iter().copied().collect();
    for (rpc, service) in rpcs {
        let answer = node.ask(service, rpc).await;
        let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
        assert_eq!(Some(&code), answers.get(rpc), "{rpc}: {answer:?}");
    }
    node.end().await;
}

#[tokio::test]
async fn privileged_the_handshake_is_what_kubelet_insists_on() {
    let node = Node::start().await;
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(node.channel.clone());
    let version = client.version(v1::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert_eq!(version.runtime_name, "keelson");
    let status = client.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let kinds: Vec<&str> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(kinds, ["RuntimeReady", "NetworkReady"]);
    let handlers: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(handlers, ["", "native"]);
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(config["stateDir"].as_str(), node.folder.path().join("state").to_str());
    node.end().await;
}

#[tokio::test]
async fn privileged_what_is_gone_can_be_stopped_and_removed_and_not_asked_about() {
    let node = Node::start().await;
    let id = "a5".repeat(32);
    let mut runtime = v1::runtime_service_client::RuntimeServiceClient::new(node.channel.clone());
    for id in [id.clone(), "a5a5".to_owned(), "../../etc".to_owned()] {
        runtime.stop_container(v1::StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.unwrap();
        runtime.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
        runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
        runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
        let asked = runtime.container_status(v1::ContainerStatusRequest { container_id: id.clone(), verbose: false });
        let status = asked.await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, format!("container `{id}` not found").as_str()));
    }
    let mut images = v1::image_service_client::ImageServiceClient::new(node.channel.clone());
    let image = Some(v1::ImageSpec { image: "docker.io/library/none:1".into(), ..v1::ImageSpec::default() });
    images.remove_image(v1::RemoveImageRequest { image: image.clone() }).await.unwrap();
    let status = images.image_status(v1::ImageStatusRequest { image, verbose: true }).await.unwrap();
    assert_eq!(status.into_inner(), v1::ImageStatusResponse::default());
    node.end().await;
}
