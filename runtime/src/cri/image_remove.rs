//! RemoveImage: removes an image with all its names.
//! Decodes in the task of the RPC; the image service works on the blocking pool.
//! Owns nothing. Must never fail for an image that is gone: "this call is idempotent, and must not return an error if the
//! image has already been removed" (CRI).

use std::sync::Arc;

use keelson_cri::v1;

use super::{
    Cri,
    rpc::{Call, about_image},
    status::Failure,
};

pub(super) async fn handle(cri: &Cri, call: Call<v1::RemoveImageRequest>) -> Result<v1::RemoveImageResponse, Failure> {
    let name = super::image_name(call.message.image)?;
    about_image(&name);
    let images = Arc::clone(&cri.images);
    let removed = super::blocking("remove image", move || images.remove(&name)).await??;
    if let Some(id) = removed.id {
        tracing::info!(%id, freed = removed.freed.used_bytes, "image is removed");
    }
    Ok(v1::RemoveImageResponse {})
}
