//! ListImages and StreamImages: the images of this node, or the one a filter names.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never show an image that is not wholly here.

use keelson_cri::v1;
use tonic::codegen::BoxStream;

use super::{Cri, batch, image_view, rpc::Call, status::Failure};

pub(super) async fn handle(cri: &Cri, call: Call<v1::ListImagesRequest>) -> Result<v1::ListImagesResponse, Failure> {
    Ok(v1::ListImagesResponse { images: items(cri, call.message.filter).collect() })
}

pub(super) async fn stream(
    cri: &Cri,
    call: Call<v1::StreamImagesRequest>,
) -> Result<BoxStream<v1::StreamImagesResponse>, Failure> {
    Ok(batch::stream(items(cri, call.message.filter), |images| v1::StreamImagesResponse { images }))
}

/// Those of one moment, each encoded when it is asked for.
fn items(cri: &Cri, filter: Option<v1::ImageFilter>) -> impl Iterator<Item = v1::Image> + use<> {
    let name = filter.and_then(|filter| filter.image).map(|image| image.image);
    let images = match name.filter(|name| !name.is_empty()) {
        None => cri.images.list(),
        Some(name) => cri.images.find(&name).into_iter().collect(),
    };
    images.into_iter().map(|image| image_view::encode(&image))
}
