//! The CRI v1 protocol as Rust types: messages, the two services, their clients.
//! Runs in the daemon and in tests. Owns nothing. Only `runtime/src/cri/` may name these types in the daemon.

/// Generated from `proto/runtime_v1.proto`, package `runtime.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");

    impl std::fmt::Debug for AuthConfig {
        /// Names what is present and never shows a secret (upstream marks these fields `debug_redact`).
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("AuthConfig")
                .field("username", &self.username)
                .field("server_address", &self.server_address)
                .finish_non_exhaustive()
        }
    }
}

/// The largest gRPC message either side accepts, bytes: what kubelet and crictl are built with.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
