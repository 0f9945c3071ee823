//! ImageStatus: one image by any of its names; nothing, and no error, when it is not here.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never ask a registry: that is PullImage.

use std::collections::HashMap;

use keelson_cri::v1;

use super::{
    Cri, image_view, info,
    rpc::{Call, about_image},
    status::Failure,
};

pub(super) async fn handle(cri: &Cri, call: Call<v1::ImageStatusRequest>) -> Result<v1::ImageStatusResponse, Failure> {
    let name = super::image_name(call.message.image)?;
    about_image(&name);
    let Some(image) = cri.images.find(&name) else { return Ok(v1::ImageStatusResponse::default()) };
    Ok(v1::ImageStatusResponse {
        image: Some(image_view::encode(&image)),
        info: if call.message.verbose { info::of_image(&image) } else { HashMap::new() },
    })
}
