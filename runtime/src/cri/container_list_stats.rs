//! ListContainerStats: what each of the running containers a filter means uses now.
//! Filters in the task of the RPC; the engine reads the cgroups on the blocking pool.
//! Owns nothing. Must never fail for one container that ended meanwhile: it is left out.

use std::{collections::HashMap, sync::Arc};

use keelson_cri::v1;

use super::{Cri, container_view::Filter, rpc::Call, stats_view, status::Failure};
use crate::container::{ContainerState, ContainerView};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListContainerStatsRequest>,
) -> Result<v1::ListContainerStatsResponse, Failure> {
    let filter = Filter::of_stats(call.message.filter);
    let mut views = cri.engine.containers();
    views.retain(|view| matches!(view.state, ContainerState::Running { .. }) && filter.matches(view));
    let stats = cri.engine.stats_of(views.iter().map(|view| view.id.clone()).collect()).await;
    let mut stats: HashMap<_, _> = stats.into_iter().collect();
    let encode = |view: &Arc<ContainerView>| stats.remove(&view.id).map(|stats| stats_view::encode(view, &stats));
    Ok(v1::ListContainerStatsResponse { stats: views.iter().filter_map(encode).collect() })
}
