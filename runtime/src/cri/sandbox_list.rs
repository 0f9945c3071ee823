//! ListPodSandbox and StreamPodSandboxes: the sandboxes a filter means, oldest first. kubelet asks every second.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never wait for a sandbox that is being made or unmade.

use keelson_cri::v1;
use tonic::codegen::BoxStream;

use super::{
    Cri, batch, bound,
    rpc::Call,
    sandbox_view::{self, Filter},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListPodSandboxRequest>,
) -> Result<v1::ListPodSandboxResponse, Failure> {
    let mut items: Vec<_> = items(cri, call.message.filter)?.collect();
    bound::shrink(&mut items, |it| (it.state() == v1::PodSandboxState::SandboxNotready).then_some(&mut it.annotations));
    Ok(v1::ListPodSandboxResponse { items })
}

pub(super) async fn stream(
    cri: &Cri,
    call: Call<v1::StreamPodSandboxesRequest>,
) -> Result<BoxStream<v1::StreamPodSandboxesResponse>, Failure> {
    let items = items(cri, call.message.filter)?;
    Ok(batch::stream(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
}

/// Those of one moment, each encoded when it is asked for.
fn items(
    cri: &Cri,
    filter: Option<v1::PodSandboxFilter>,
) -> Result<impl Iterator<Item = v1::PodSandbox> + use<>, Failure> {
    let filter = Filter::decode(filter)?;
    let all = cri.engine.sandboxes();
    Ok(all.into_iter().filter(move |view| filter.matches(view)).map(|view| sandbox_view::item(&view)))
}
