//! StopPodSandbox: kills what runs in a sandbox and gives back its network.
//! Decodes in the task of the RPC; the engine's own task does the work.
//! Owns nothing. Must never fail for a sandbox that is gone: "this call is idempotent, and must not return an error if all
//! relevant resources have already been reclaimed" (CRI).

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_sandbox},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::StopPodSandboxRequest>,
) -> Result<v1::StopPodSandboxResponse, Failure> {
    let text = &call.message.pod_sandbox_id;
    about_sandbox(text);
    if let Some(id) = id::sandbox_if_known(&cri.engine, text)? {
        cri.engine.stop_sandbox(&id).await?;
        tracing::info!("sandbox is stopped");
    }
    Ok(v1::StopPodSandboxResponse {})
}
