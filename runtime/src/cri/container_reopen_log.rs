//! ReopenContainerLog: begins a new log file after kubelet has moved the old one away.
//! Decodes in the task of the RPC; the container's shim does the work, between two records.
//! Owns nothing. Must never answer before the new file is there: kubelet compresses the old one then.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ReopenContainerLogRequest>,
) -> Result<v1::ReopenContainerLogResponse, Failure> {
    about_container(&call.message.container_id);
    let container = id::container(&cri.engine, &call.message.container_id)?;
    cri.engine.reopen_log(&container.id).await?;
    Ok(v1::ReopenContainerLogResponse {})
}
