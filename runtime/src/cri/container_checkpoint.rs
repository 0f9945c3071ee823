//! CheckpointContainer: memory and changed files of a running container into an archive; it goes on running.
//! Decodes in the task of the RPC; the engine's own task does the work and finishes it whoever still waits.
//! Owns nothing. Must never write where the request did not say.

use std::{path::PathBuf, time::Duration};

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::CheckpointContainerRequest>,
) -> Result<v1::CheckpointContainerResponse, Failure> {
    let v1::CheckpointContainerRequest { container_id, location, timeout } = call.message;
    about_container(&container_id);
    let seconds =
        u64::try_from(timeout).map_err(|_| invalid("timeout", format!("{timeout}: want seconds, 0 for no limit")))?;
    let location = place("location", location)?;
    let container = id::container(&cri.engine, &container_id)?;
    let timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
    cri.engine.checkpoint_container(&container.id, location, timeout).await?;
    tracing::info!("container is checkpointed");
    Ok(v1::CheckpointContainerResponse {})
}

/// An absolute path of a file.
pub(super) fn place(field: &'static str, path: String) -> Result<PathBuf, Failure> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > 4095 {
        return Err(invalid(field, "want the absolute path of an archive"));
    }
    Ok(PathBuf::from(path))
}
