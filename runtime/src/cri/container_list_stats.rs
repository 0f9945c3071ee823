//! ListContainerStats and StreamContainerStats: what each of the running containers a filter means uses now.
//! Filters in the task of the RPC; the engine reads the cgroups on the blocking pool.
//! Owns nothing. Must never fail for one container that ended meanwhile: it is left out.

use std::{collections::HashMap, sync::Arc};

use keelson_cri::v1;
use tonic::codegen::BoxStream;

use super::{Cri, batch, container_view::Filter, rpc::Call, stats_view, status::Failure};
use crate::container::{ContainerState, ContainerView};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListContainerStatsRequest>,
) -> Result<v1::ListContainerStatsResponse, Failure> {
    Ok(v1::ListContainerStatsResponse { stats: items(cri, call.message.filter).await.collect() })
}

pub(super) async fn stream(
    cri: &Cri,
    call: Call<v1::StreamContainerStatsRequest>,
) -> Result<BoxStream<v1::StreamContainerStatsResponse>, Failure> {
    let items = items(cri, call.message.filter).await;
    Ok(batch::stream(items, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
}

/// The running containers that the filter means, oldest first; from memory.
fn select(cri: &Cri, filter: Option<v1::ContainerStatsFilter>) -> Vec<Arc<ContainerView>> {
    let filter = Filter::of_stats(filter);
    let mut views = cri.engine.containers();
    views.retain(|view| matches!(view.state, ContainerState::Running { .. }) && filter.matches(view));
    views
}

/// What these use now, each made a message when it is asked for.
async fn items(
    cri: &Cri,
    filter: Option<v1::ContainerStatsFilter>,
) -> impl Iterator<Item = v1::ContainerStats> + use<> {
    let views = select(cri, filter);
    let stats = cri.engine.stats_of(views.iter().map(|view| view.id.clone()).collect()).await;
    let mut stats: HashMap<_, _> = stats.into_iter().collect();
    views.into_iter().filter_map(move |view| stats.remove(&view.id).map(|stats| stats_view::container(&view, &stats)))
}
