//! Version: who serves, and which CRI. kubelet's and crictl's first call.
//! Answers from constants, in the task of the RPC. Owns nothing.
//! Must never answer another `version` than the one kubelet compares with, whatever our own is.

use keelson_cri::v1;

use super::{Cri, rpc::Call, status::Failure};

/// The version of the runtime interface's handshake, not ours; kubelet insists on it.
const HANDSHAKE: &str = "0.1.0";

pub(super) async fn handle(_: &Cri, _: Call<v1::VersionRequest>) -> Result<v1::VersionResponse, Failure> {
    Ok(v1::VersionResponse {
        version: HANDSHAKE.to_owned(),
        runtime_name: "keelson".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}
