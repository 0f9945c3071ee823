//! ImageFsInfo: what images occupy, and on which filesystem. kubelet decides from it when to collect images.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never name a folder whose filesystem is not the one that fills up.

use keelson_cri::v1;

use super::{Cri, rpc::Call, status::Failure, time};

pub(super) async fn handle(cri: &Cri, _: Call<v1::ImageFsInfoRequest>) -> Result<v1::ImageFsInfoResponse, Failure> {
    let used = cri.images.usage();
    let usage = v1::FilesystemUsage {
        timestamp: time::now(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: used.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(v1::UInt64Value { value: used.used_bytes }),
        inodes_used: Some(v1::UInt64Value { value: used.inodes_used }),
    };
    // Writable layers live on the same filesystem.
    Ok(v1::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
