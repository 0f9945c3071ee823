//! RunPodSandbox: a sandbox with its namespaces and network, or the one that the same request made before.
//! Decodes in the task of the RPC; the engine's own task does the work and finishes it whoever still waits.
//! Owns nothing. Must never pass on a configuration that was not read whole.

use keelson_cri::v1;

use super::{
    Cri,
    rpc::{Call, about_sandbox},
    sandbox_spec,
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::RunPodSandboxRequest>,
) -> Result<v1::RunPodSandboxResponse, Failure> {
    let spec = sandbox_spec::decode(call.message.config, call.message.runtime_handler)?;
    let name = format!("{}/{}", spec.key.namespace, spec.key.name);
    let id = cri.engine.run_sandbox(spec).await?;
    about_sandbox(id.as_str());
    tracing::info!(name, "sandbox is ready");
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}
