//! CreateContainer: a container whose process waits to be started, or the one that the same request made before.
//! Decodes in the task of the RPC; the engine's own task does the work and finishes it whoever still waits.
//! Owns nothing. Must never take the sandbox's configuration from this request: the sandbox keeps its own.

use keelson_cri::v1;

use super::{
    Cri, container_spec, id,
    rpc::{Call, about_container, about_sandbox},
    status::{Failure, READ_ONLY_TREE, unsupported},
};
use crate::container::{
    ContainerSpec,
    spec::{Access, Seccomp},
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::CreateContainerRequest>,
) -> Result<v1::CreateContainerResponse, Failure> {
    about_sandbox(&call.message.pod_sandbox_id);
    let spec = decode(cri, call.message.config)?;
    let sandbox = id::sandbox(&cri.engine, &call.message.pod_sandbox_id)?;
    let name = spec.key.name.clone();
    let id = cri.engine.create_container(&sandbox.id, spec).await?;
    about_container(id.as_str());
    tracing::info!(name, "container is created");
    Ok(v1::CreateContainerResponse { container_id: id.to_string() })
}

/// What is asked for, as far as this host can do it.
pub(super) fn decode(cri: &Cri, config: Option<v1::ContainerConfig>) -> Result<ContainerSpec, Failure> {
    let mut spec = container_spec::decode(config)?;
    if !cri.engine.features().recursive_read_only
        && spec.volumes.iter().any(|it| it.access == Access::RecursiveReadOnly)
    {
        let reason = "needs Linux 5.12 or newer: use a newer kernel, or plain readonly";
        return Err(unsupported(READ_ONLY_TREE, reason));
    }
    if spec.security.seccomp == Seccomp::RuntimeDefault {
        spec.security.seccomp = cri.about.default_seccomp.clone();
    }
    Ok(spec)
}
