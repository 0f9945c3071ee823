//! PodSandboxStatus: one sandbox as it is, with the statuses of its containers, and its inner details when asked.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never show the sandbox and its containers from two different moments without saying when.

use std::collections::HashMap;

use keelson_cri::v1;

use super::{
    Cri, container_view, id, info,
    rpc::{Call, about_sandbox},
    sandbox_view,
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::PodSandboxStatusRequest>,
) -> Result<v1::PodSandboxStatusResponse, Failure> {
    about_sandbox(&call.message.pod_sandbox_id);
    // Before anything is looked at: kubelet takes the newer of an answer and an event for the truth.
    let timestamp = cri.engine.timestamp();
    let view = id::sandbox(&cri.engine, &call.message.pod_sandbox_id)?;
    let containers = container_view::statuses(&cri.engine.containers_of(&view.id), |name| cri.image_id(name));
    Ok(v1::PodSandboxStatusResponse {
        status: Some(sandbox_view::status(&view)),
        info: if call.message.verbose { info::of_sandbox(&view) } else { HashMap::new() },
        containers_statuses: containers,
        timestamp,
    })
}
