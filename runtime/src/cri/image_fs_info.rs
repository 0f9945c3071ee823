//! ImageFsInfo: what images and writable layers occupy, and on which filesystem. kubelet decides from it what to collect and evict.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never name a folder whose filesystem is not the one that fills up.

use keelson_cri::v1;

use super::{Cri, rpc::Call, stats_view, status::Failure};

pub(super) async fn handle(cri: &Cri, _: Call<v1::ImageFsInfoRequest>) -> Result<v1::ImageFsInfoResponse, Failure> {
    // Both are folders of one root, and nothing can be moved between them if they are not on one filesystem.
    let (images, containers) = cri.engine.filesystems();
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![stats_view::filesystem(&images)],
        container_filesystems: vec![stats_view::filesystem(&containers)],
    })
}
