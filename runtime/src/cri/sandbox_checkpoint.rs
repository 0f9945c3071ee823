//! CheckpointPod: memory and changed files of a sandbox's containers into one archive; all are held before the first is written and
//! go on when the last is.
//! Decodes in the task of the RPC; the engine's own task does the work and finishes it whoever still waits.
//! Owns nothing. Must never take an option that it does not know.

use keelson_cri::v1;

use super::{
    Cri, container_checkpoint, id,
    rpc::{Call, about_sandbox},
    status::{Failure, invalid},
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::CheckpointPodRequest>,
) -> Result<v1::CheckpointPodResponse, Failure> {
    let v1::CheckpointPodRequest { pod_sandbox_id, output_path, container_ids, options } = call.message;
    about_sandbox(&pod_sandbox_id);
    if let Some(name) = options.keys().min() {
        return Err(invalid("options", format!("`{}` is none of this runtime", name.escape_debug())));
    }
    let location = container_checkpoint::place("output_path", output_path)?;
    let sandbox = id::sandbox(&cri.engine, &pod_sandbox_id)?;
    let ids = container_ids.iter().map(|text| id::container(&cri.engine, text).map(|view| view.id.clone()));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    cri.engine.checkpoint_sandbox(&sandbox, &ids, location).await?;
    tracing::info!("sandbox is checkpointed");
    Ok(v1::CheckpointPodResponse {})
}
