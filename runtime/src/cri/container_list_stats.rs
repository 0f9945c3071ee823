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
    let views = select(cri, call.message.filter);
    Ok(v1::ListContainerStatsResponse { stats: read(cri, &views).await })
}

/// The running containers that the filter means, oldest first; from memory. A stream takes them in pieces.
pub(super) fn select(cri: &Cri, filter: Option<v1::ContainerStatsFilter>) -> Vec<Arc<ContainerView>> {
    let filter = Filter::of_stats(filter);
    let mut views = cri.engine.containers();
    views.retain(|view| matches!(view.state, ContainerState::Running { .. }) && filter.matches(view));
    views
}

/// What these use now; those that ended meanwhile are left out.
pub(super) async fn read(cri: &Cri, views: &[Arc<ContainerView>]) -> Vec<v1::ContainerStats> {
    let stats = cri.engine.stats_of(views.iter().map(|view| view.id.clone()).collect()).await;
    let mut stats: HashMap<_, _> = stats.into_iter().collect();
    let encode = |view: &Arc<ContainerView>| stats.remove(&view.id).map(|stats| stats_view::container(view, &stats));
    views.iter().filter_map(encode).collect()
}
