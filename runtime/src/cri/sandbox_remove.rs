//! RemovePodSandbox: stops a sandbox if need be, and removes it with its containers.
//! Decodes in the task of the RPC; the engine's own task does the work.
//! Owns nothing. Must never fail for a sandbox that is gone: "this call is idempotent, and must not return an error if the
//! sandbox has already been removed" (CRI).

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_sandbox},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::RemovePodSandboxRequest>,
) -> Result<v1::RemovePodSandboxResponse, Failure> {
    let text = &call.message.pod_sandbox_id;
    about_sandbox(text);
    if let Some(id) = id::sandbox_if_known(&cri.engine, text)? {
        cri.engine.remove_sandbox(&id).await?;
        tracing::info!("sandbox is removed");
    }
    Ok(v1::RemovePodSandboxResponse {})
}
