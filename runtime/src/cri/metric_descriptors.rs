//! ListMetricDescriptors: the names, meanings and labels of all metrics there are values of on this host.
//! Answers from memory in the task of the RPC; kubelet asks once, when it starts. Owns nothing.
//! Must never change while the daemon runs.

use keelson_cri::v1;

use super::{Cri, metrics, rpc::Call, status::Failure};

pub(super) async fn handle(
    cri: &Cri,
    _: Call<v1::ListMetricDescriptorsRequest>,
) -> Result<v1::ListMetricDescriptorsResponse, Failure> {
    Ok(v1::ListMetricDescriptorsResponse { descriptors: metrics::declared(cri.engine.counted()) })
}
