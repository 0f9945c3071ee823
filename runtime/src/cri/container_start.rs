//! StartContainer: lets a created container's process run.
//! Decodes in the task of the RPC; the engine's own task does the work.
//! Owns nothing. Must never answer before the program was really executed, or why it was not is known.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::StartContainerRequest>,
) -> Result<v1::StartContainerResponse, Failure> {
    about_container(&call.message.container_id);
    let container = id::container(&cri.engine, &call.message.container_id)?;
    cri.engine.start_container(&container.id).await?;
    tracing::info!("container is started");
    Ok(v1::StartContainerResponse {})
}
