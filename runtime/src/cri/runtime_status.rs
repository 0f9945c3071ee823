//! Status: whether pods can be run, what each runtime handler can do, and, when asked, the daemon's settings as JSON.
//! Answers from memory in the task of the RPC; kubelet asks every five seconds.
//! Owns no state. Must never claim a feature of this version or of the kernel that was not found to be there.

use std::collections::HashMap;

use keelson_cri::v1;

use super::{Cri, info, rpc::Call, sandbox_spec::HANDLER, status::Failure};

pub(super) async fn handle(cri: &Cri, call: Call<v1::StatusRequest>) -> Result<v1::StatusResponse, Failure> {
    let status = cri.engine.status().await;
    let network = status.network_down.clone();
    let condition = |kind: &str, down: Option<String>, reason: &str| v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status: down.is_none(),
        reason: down.as_ref().map_or_else(String::new, |_| reason.to_owned()),
        message: down.unwrap_or_default(),
    };
    let features = v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: status.features.recursive_read_only,
        user_namespaces: status.features.user_namespaces,
    };
    let others = status.handlers.iter().map(|(name, features)| {
        let features = v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_read_only,
            user_namespaces: features.user_namespaces,
        };
        (name.as_str(), features)
    });
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", None, ""),
                condition("NetworkReady", network, "NetworkNotReady"),
            ],
        }),
        info: if call.message.verbose { info::of_status(&cri.about, &status) } else { HashMap::new() },
        runtime_handlers: ["", HANDLER]
            .into_iter()
            .map(|name| (name, features))
            .chain(others)
            .map(|(name, features)| v1::RuntimeHandler { name: name.to_owned(), features: Some(features) })
            .collect(),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: status.features.user_namespaces_host_network,
            mount_options: status.features.mount_options,
            cgroup_mount_mode: status.features.writable_cgroup,
        }),
    })
}
