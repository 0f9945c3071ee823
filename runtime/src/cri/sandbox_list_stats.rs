//! ListPodSandboxStats and StreamPodSandboxStats: what each of the ready sandboxes a filter means uses now, with its running containers.
//! Filters in the task of the RPC; the engine reads the cgroups on the blocking pool.
//! Owns nothing. Must never fail for one sandbox that ended meanwhile: kubelet takes one error for the end of all statistics.

use std::sync::Arc;

use keelson_cri::v1;
use tonic::codegen::BoxStream;

use super::{Cri, batch, rpc::Call, sandbox_view::labels_match, stats_view, status::Failure};
use crate::sandbox::{SandboxPhase, SandboxView};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListPodSandboxStatsRequest>,
) -> Result<v1::ListPodSandboxStatsResponse, Failure> {
    Ok(v1::ListPodSandboxStatsResponse { stats: items(cri, call.message.filter).await.collect() })
}

pub(super) async fn stream(
    cri: &Cri,
    call: Call<v1::StreamPodSandboxStatsRequest>,
) -> Result<BoxStream<v1::StreamPodSandboxStatsResponse>, Failure> {
    let items = items(cri, call.message.filter).await;
    Ok(batch::stream(items, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

/// The ready sandboxes that the filter means, oldest first; from memory.
fn select(cri: &Cri, filter: Option<v1::PodSandboxStatsFilter>) -> Vec<Arc<SandboxView>> {
    let filter = filter.unwrap_or_default();
    let mut views = cri.engine.sandboxes();
    views.retain(|view| {
        view.phase == SandboxPhase::Ready
            && view.id.as_str().starts_with(&filter.id)
            && labels_match(&filter.label_selector, &view.spec.labels)
    });
    views
}

/// What these use now, each made a message when it is asked for; those that are gone meanwhile are left out.
async fn items(
    cri: &Cri,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> impl Iterator<Item = v1::PodSandboxStats> + use<> {
    let views = select(cri, filter);
    let stats = cri.engine.sandbox_stats_of(views.iter().map(|view| view.id.clone()).collect()).await;
    stats.into_iter().map(|stats| stats_view::sandbox(&stats))
}
