//! The newest CRI: clients with this project's own messages, for what the k8s-cri crate does not have yet.
//! In a test process. Owns nothing.
//! Must never replace the k8s-cri client where that will do: it is the one that was not written here.

use anyhow::Result;
use keelson_cri::v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use crate::node::Node;

/// Both clients.
#[derive(Clone)]
pub struct Newest {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

/// The same message in the other set of types: what is on the wire is one.
pub fn same<A: Message, B: Message + Default>(message: &A) -> Result<B> {
    Ok(B::decode(message.encode_to_vec().as_slice())?)
}

impl Newest {
    /// Clients of a node's daemon.
    pub fn of(node: &Node) -> Result<Newest> {
        let channel = Endpoint::from_shared(format!("unix://{}", node.socket().display()))?.connect_lazy();
        let limit = keelson_cri::MAX_MESSAGE_BYTES;
        Ok(Newest {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit),
        })
    }

    /// Creates a container; the sandbox keeps its own configuration.
    pub async fn create(&mut self, pod: &str, config: v1::ContainerConfig) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(v1::PodSandboxConfig::default()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Creates and starts one.
    pub async fn run(&mut self, pod: &str, config: v1::ContainerConfig) -> Result<String> {
        let id = self.create(pod, config).await?;
        self.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await?;
        Ok(id)
    }

    pub async fn status(&mut self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        Ok(self.runtime.container_status(request).await?.into_inner().status.unwrap_or_default())
    }
}
