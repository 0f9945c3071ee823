//! StopContainer: asks a container's process to end, and after a grace kills all of it.
//! Decodes in the task of the RPC; the engine's own task does the work, and a shorter second request shortens the first.
//! Owns nothing. Must never fail for a container that is gone: "this call is idempotent, and must not return an error if
//! the container has already been stopped" (CRI).

use std::time::Duration;

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::StopContainerRequest>,
) -> Result<v1::StopContainerResponse, Failure> {
    let v1::StopContainerRequest { container_id, timeout } = call.message;
    about_container(&container_id);
    let seconds =
        u64::try_from(timeout).map_err(|_| invalid("timeout", format!("{timeout}: want seconds, 0 or more")))?;
    if let Some(id) = id::container_if_known(&cri.engine, &container_id)? {
        cri.engine.stop_container(&id, Duration::from_secs(seconds)).await?;
        tracing::info!("container is stopped");
    }
    Ok(v1::StopContainerResponse {})
}
