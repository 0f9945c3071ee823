//! PodSandboxStats: what one sandbox and its containers use now.
//! Decodes in the task of the RPC; the engine reads the cgroups on the blocking pool.
//! Owns nothing. Must never answer with values from another moment than their timestamp.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_sandbox},
    stats_view,
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::PodSandboxStatsRequest>,
) -> Result<v1::PodSandboxStatsResponse, Failure> {
    about_sandbox(&call.message.pod_sandbox_id);
    let sandbox = id::sandbox(&cri.engine, &call.message.pod_sandbox_id)?;
    let stats = cri.engine.sandbox_stats(&sandbox.id).await?;
    Ok(v1::PodSandboxStatsResponse { stats: Some(stats_view::sandbox(&stats)) })
}
