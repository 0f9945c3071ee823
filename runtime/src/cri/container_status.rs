//! ContainerStatus: one container as it is, and its inner details when asked.
//! Answers from memory in the task of the RPC; details also read the bundle's file, on the blocking pool.
//! Owns nothing. Must never fail for lack of a detail: a status is worth more than its footnotes.

use std::collections::HashMap;

use keelson_cri::v1;

use super::{
    Cri, container_view, id, info,
    rpc::{Call, about_container},
    status::Failure,
};

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::ContainerStatusRequest>,
) -> Result<v1::ContainerStatusResponse, Failure> {
    about_container(&call.message.container_id);
    let view = id::container(&cri.engine, &call.message.container_id)?;
    Ok(v1::ContainerStatusResponse {
        status: Some(container_view::status(&view, |name| cri.image_id(name))),
        info: if call.message.verbose { info::of_container(&view).await } else { HashMap::new() },
    })
}
