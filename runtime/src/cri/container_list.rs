//! ListContainers: the containers a filter means, oldest first. kubelet asks every second.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never wait for a container that is being made or unmade.

use keelson_cri::v1;

use super::{
    Cri, bound,
    container_view::{self, Filter},
    rpc::Call,
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListContainersRequest>,
) -> Result<v1::ListContainersResponse, Failure> {
    let filter = Filter::decode(call.message.filter)?;
    let all = cri.engine.containers();
    let mut containers: Vec<_> =
        all.iter().filter(|view| filter.matches(view)).map(|view| container_view::item(view)).collect();
    bound::shrink(&mut containers, |it| {
        (it.state() == v1::ContainerState::ContainerExited).then_some(&mut it.annotations)
    });
    Ok(v1::ListContainersResponse { containers })
}
