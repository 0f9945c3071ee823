//! UpdateContainerResources: changes a container's limits while it runs.
//! Decodes in the task of the RPC; the engine's own task does the work.
//! Owns nothing. Must never restart anything, and never answer before the kernel has taken the limits.

use keelson_cri::v1;

use super::{
    Cri, id, resource,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::UpdateContainerResourcesRequest>,
) -> Result<v1::UpdateContainerResourcesResponse, Failure> {
    about_container(&call.message.container_id);
    let linux = call.message.linux.ok_or_else(|| invalid("linux", "missing: say which limits to change"))?;
    let resources = resource::for_update(linux)?;
    let container = id::container(&cri.engine, &call.message.container_id)?;
    cri.engine.update_container(&container.id, resources).await?;
    tracing::info!("container's limits are changed");
    Ok(v1::UpdateContainerResourcesResponse {})
}
