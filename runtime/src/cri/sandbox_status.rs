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
    time,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::PodSandboxStatusRequest>,
) -> Result<v1::PodSandboxStatusResponse, Failure> {
    about_sandbox(&call.message.pod_sandbox_id);
    let view = id::sandbox(&cri.engine, &call.message.pod_sandbox_id)?;
    let containers = cri.engine.containers();
    let containers = containers.iter().filter(|container| container.sandbox == view.id);
    Ok(v1::PodSandboxStatusResponse {
        status: Some(sandbox_view::status(&view)),
        info: if call.message.verbose { info::of_sandbox(&view) } else { HashMap::new() },
        containers_statuses: containers.map(|it| container_view::status(it, |name| cri.image_id(name))).collect(),
        timestamp: time::now(),
    })
}
