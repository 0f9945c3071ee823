//! Sandboxes: the namespaces, network attachment and files that the containers of one pod share.
//! Plain types here; the machine that makes and unmakes them runs as one task per sandbox in the daemon.
//! Owns the words of a sandbox: what is asked (`spec`), what is seen (`view`), what can go wrong (`error`).
//! Must never know who asks: no word of any outer protocol.

pub(crate) mod check;
pub(crate) mod create;
pub mod error;
pub(crate) mod files;
pub(crate) mod handler;
pub(crate) mod holder;
pub(crate) mod interfaces;
pub(crate) mod namespaces;
pub(crate) mod parent;
pub(crate) mod release;
pub mod spec;
pub(crate) mod state;
pub(crate) mod sysctl;
pub(crate) mod task;
pub mod view;

pub use error::SandboxError;
pub use spec::SandboxSpec;
pub use view::{SandboxPhase, SandboxView};
