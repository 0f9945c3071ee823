//! Containers: one process tree each, launched and kept by its own shim, inside a sandbox.
//! Plain types here; the machine runs in the task of the container's sandbox.
//! Owns the words of a container: what is asked (`spec`), what is seen (`view`), what can go wrong (`error`).
//! Must never know who asks: no word of any outer protocol.

pub(crate) mod aftermath;
pub(crate) mod check;
pub(crate) mod create;
pub mod error;
pub(crate) mod foreign;
pub(crate) mod images;
pub(crate) mod rdt;
pub(crate) mod release;
pub(crate) mod signal;
pub mod spec;
pub(crate) mod state;
pub(crate) mod update;
pub mod view;

pub use error::ContainerError;
pub use spec::ContainerSpec;
pub use view::{ContainerState, ContainerView};
