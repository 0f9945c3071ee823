//! ListContainers and StreamContainers: the containers a filter means, oldest first. kubelet asks every second.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never wait for a container that is being made or unmade.

use keelson_cri::v1;
use tonic::codegen::BoxStream;

use super::{
    Cri, batch, bound,
    container_view::{self, Filter},
    rpc::Call,
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ListContainersRequest>,
) -> Result<v1::ListContainersResponse, Failure> {
    let mut containers: Vec<_> = items(cri, call.message.filter)?.collect();
    bound::shrink(&mut containers, |it| {
        (it.state() == v1::ContainerState::ContainerExited).then_some(&mut it.annotations)
    });
    Ok(v1::ListContainersResponse { containers })
}

pub(super) async fn stream(
    cri: &Cri,
    call: Call<v1::StreamContainersRequest>,
) -> Result<BoxStream<v1::StreamContainersResponse>, Failure> {
    let items = items(cri, call.message.filter)?;
    Ok(batch::stream(items, |containers| v1::StreamContainersResponse { containers }))
}

/// Those of one moment, each encoded when it is asked for.
fn items(
    cri: &Cri,
    filter: Option<v1::ContainerFilter>,
) -> Result<impl Iterator<Item = v1::Container> + use<>, Failure> {
    let filter = Filter::decode(filter)?;
    let all = cri.engine.containers();
    Ok(all.into_iter().filter(move |view| filter.matches(view)).map(|view| container_view::item(&view)))
}
