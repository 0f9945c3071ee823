//! RemoveContainer: removes a container, by force if it runs.
//! Decodes in the task of the RPC; the engine's own task does the work.
//! Owns nothing. Must never fail for a container that is gone: "this call is idempotent, and must not return an error if
//! the container has already been removed" (CRI). The log file is kubelet's to delete.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::RemoveContainerRequest>,
) -> Result<v1::RemoveContainerResponse, Failure> {
    about_container(&call.message.container_id);
    if let Some(id) = id::container_if_known(&cri.engine, &call.message.container_id)? {
        cri.engine.remove_container(&id).await?;
        tracing::info!("container is removed");
    }
    Ok(v1::RemoveContainerResponse {})
}
