//! ContainerStats: what one container uses now.
//! Decodes in the task of the RPC; the engine reads the cgroup on the blocking pool.
//! Owns nothing. Must never answer with values from another moment than their timestamp.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    stats_view,
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ContainerStatsRequest>,
) -> Result<v1::ContainerStatsResponse, Failure> {
    about_container(&call.message.container_id);
    let container = id::container(&cri.engine, &call.message.container_id)?;
    let stats = cri.engine.container_stats(&container.id).await?;
    Ok(v1::ContainerStatsResponse { stats: Some(stats_view::container(&container, &stats)) })
}
