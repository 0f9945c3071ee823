//! ListPodSandboxMetrics and StreamPodSandboxMetrics: a value for every declared metric of every ready sandbox and of every running
//! container in it. The engine reads cgroups and /proc on the blocking pool.
//! Owns nothing. Must never fail for one container that ended meanwhile: it is left out.

use keelson_cri::v1;
use tonic::codegen::BoxStream;

use super::{Cri, batch, metrics, rpc::Call, status::Failure};
use crate::sandbox::SandboxPhase;

pub(super) async fn handle(
    cri: &Cri,
    _: Call<v1::ListPodSandboxMetricsRequest>,
) -> Result<v1::ListPodSandboxMetricsResponse, Failure> {
    Ok(v1::ListPodSandboxMetricsResponse { pod_metrics: items(cri).await.collect() })
}

pub(super) async fn stream(
    cri: &Cri,
    _: Call<v1::StreamPodSandboxMetricsRequest>,
) -> Result<BoxStream<v1::StreamPodSandboxMetricsResponse>, Failure> {
    let items = items(cri).await;
    Ok(batch::stream(items, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}

/// The metrics of all ready sandboxes now, oldest first, each made a message when it is asked for.
async fn items(cri: &Cri) -> impl Iterator<Item = v1::PodSandboxMetrics> + use<> {
    let counted = cri.engine.counted();
    let views = cri.engine.sandboxes();
    let ready = views.iter().filter(|view| view.phase == SandboxPhase::Ready).map(|view| view.id.clone());
    let details = cri.engine.details_of(ready.collect()).await;
    details.into_iter().map(move |detail| metrics::encode(&detail, counted))
}
