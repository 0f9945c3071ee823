//! ListPodSandboxStats: what each of the ready sandboxes a filter means uses now, with its running containers.
//! Filters in the task of the RPC; the engine reads the cgroups on the blocking pool.
//! Owns nothing. Must never fail for one sandbox that ended meanwhile: kubelet takes one error for the end of all statistics.

use std::sync::Arc;

use keelson_cri::v1;

use super::{Cri, rpc::Call, sandbox_view::labels_match, stats_view, status::Failure};
use crate::sandbox::{SandboxPhase, SandboxView};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListPodSandboxStatsRequest>,
) -> Result<v1::ListPodSandboxStatsResponse, Failure> {
    let views = select(cri, call.message.filter);
    Ok(v1::ListPodSandboxStatsResponse { stats: read(cri, &views).await })
}

/// The ready sandboxes that the filter means, oldest first; from memory. A stream takes them in pieces.
pub(super) fn select(cri: &Cri, filter: Option<v1::PodSandboxStatsFilter>) -> Vec<Arc<SandboxView>> {
    let filter = filter.unwrap_or_default();
    let mut views = cri.engine.sandboxes();
    views.retain(|view| {
        view.phase == SandboxPhase::Ready
            && view.id.as_str().starts_with(&filter.id)
            && labels_match(&filter.label_selector, &view.spec.labels)
    });
    views
}

/// What these use now; those that are gone meanwhile are left out.
pub(super) async fn read(cri: &Cri, views: &[Arc<SandboxView>]) -> Vec<v1::PodSandboxStats> {
    let stats = cri.engine.sandbox_stats_of(views.iter().map(|view| view.id.clone()).collect()).await;
    stats.iter().map(stats_view::sandbox).collect()
}
