//! PullImage: brings an image to this node, or joins the pull of it that is under way.
//! Decodes in the task of the RPC; the image service's own task does the work and finishes it whoever still waits.
//! Owns nothing. Must never log a credential, and never show one to another registry than it names.

use keelson_cri::v1;
use keelson_imageservice::{PullRequest, Reference, registry::Credentials};

use super::{
    Cri,
    rpc::{Call, about_image},
    status::{Failure, invalid},
};

pub(super) async fn handle(cri: &Cri, call: Call<v1::PullImageRequest>) -> Result<v1::PullImageResponse, Failure> {
    let name = super::image_name(call.message.image)?;
    about_image(&name);
    let reference: Reference = name.parse().map_err(|error| invalid("image.image", keelson_api::chain(&error)))?;
    let request = PullRequest { reference, credentials: credentials(call.message.auth) };
    let image = cri.images.pull(request).await?;
    tracing::info!(id = %image.id, size = image.size, "image is here");
    Ok(v1::PullImageResponse { image_ref: image.id.to_string() })
}

/// As the caller gave them: what they mean, and for whom, is the registry client's to judge.
fn credentials(auth: Option<v1::AuthConfig>) -> Option<Credentials> {
    auth.map(|auth| Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    })
}
