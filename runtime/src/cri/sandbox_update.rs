//! UpdatePodSandboxResources: what a pod may use as a whole has changed; kubelet has set it on the pod's cgroup itself.
//! Decodes in the task of the RPC; the sandbox's own task takes note, for its record and for those who ask.
//! Owns nothing. Must never write to the pod's cgroup: it is kubelet's.

use keelson_cri::v1;

use super::{
    Cri, id, resource,
    rpc::{Call, about_sandbox},
    status::Failure,
};
use crate::sandbox::spec::Whole;

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::UpdatePodSandboxResourcesRequest>,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Failure> {
    about_sandbox(&call.message.pod_sandbox_id);
    let whole = Whole {
        resources: call.message.resources.map(resource::for_update).transpose()?,
        overhead: call.message.overhead.map(resource::for_update).transpose()?,
    };
    let sandbox = id::sandbox(&cri.engine, &call.message.pod_sandbox_id)?;
    cri.engine.update_sandbox(&sandbox.id, whole).await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
