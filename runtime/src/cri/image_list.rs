//! ListImages: the images of this node, or the one a filter names.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never show an image that is not wholly here.

use keelson_cri::v1;

use super::{Cri, image_view, rpc::Call, status::Failure};

pub(super) async fn handle(cri: &Cri, call: Call<v1::ListImagesRequest>) -> Result<v1::ListImagesResponse, Failure> {
    let name = call.message.filter.and_then(|filter| filter.image).map(|image| image.image);
    let images = match name.filter(|name| !name.is_empty()) {
        None => cri.images.list(),
        Some(name) => cri.images.find(&name).into_iter().collect(),
    };
    Ok(v1::ListImagesResponse { images: images.iter().map(|image| image_view::encode(image)).collect() })
}
