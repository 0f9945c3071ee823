//! RuntimeConfig: which cgroup driver kubelet is to use. From Kubernetes 1.38 kubelet does not start without the answer.
//! Answers from memory in the task of the RPC. Owns nothing.
//! Must never answer anything but what the engine found at start: the two sides must agree.

use keelson_cri::v1;

use super::{Cri, rpc::Call, status::Failure};
use crate::engine::CgroupDriver;

pub(super) async fn handle(cri: &Cri, _: Call<v1::RuntimeConfigRequest>) -> Result<v1::RuntimeConfigResponse, Failure> {
    let driver = match cri.engine.cgroup_driver() {
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        CgroupDriver::Cgroupfs | CgroupDriver::Auto => v1::CgroupDriver::Cgroupfs,
    };
    let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: i32::from(driver) };
    Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
}
