//! ListPodSandbox: the sandboxes a filter means, oldest first. kubelet asks every second.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never wait for a sandbox that is being made or unmade.

use keelson_cri::v1;

use super::{
    Cri, bound,
    rpc::Call,
    sandbox_view::{self, Filter},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListPodSandboxRequest>,
) -> Result<v1::ListPodSandboxResponse, Failure> {
    let filter = Filter::decode(call.message.filter)?;
    let all = cri.engine.sandboxes();
    let mut items: Vec<_> =
        all.iter().filter(|view| filter.matches(view)).map(|view| sandbox_view::item(view)).collect();
    bound::shrink(&mut items, |it| (it.state() == v1::PodSandboxState::SandboxNotready).then_some(&mut it.annotations));
    Ok(v1::ListPodSandboxResponse { items })
}
