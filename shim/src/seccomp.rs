//! The seccomp filter compiler: an OCI profile in, a classic BPF program out, and the profile that `RuntimeDefault` means.
//! Pure functions, run by the daemon on its blocking pool and by the OCI command line before the container is cloned.
//! Owns the table of system call numbers and a small cache of default programs; equal profiles give equal bytes.
//! Must never load a filter (that is `sys`), do I/O, or let a name it does not know widen what is allowed.

mod action;
mod arch;
mod assembler;
mod default;
mod numbers;
mod policy;
mod tree;

use thiserror::Error;

pub use arch::Arch;
pub use default::{default_profile, default_program};

use crate::spec::Seccomp;

/// The kernel's BPF_MAXINSNS.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Why a profile is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SeccompError {
    #[error("compile seccomp profile: unknown action `{action}`")]
    UnknownAction { action: String },
    #[error("compile seccomp profile: unknown architecture `{architecture}`")]
    UnknownArchitecture { architecture: String },
    #[error("compile seccomp profile: unknown operator `{operator}` for argument {index} of `{syscall}`")]
    UnknownOperator { operator: String, index: u32, syscall: String },
    #[error("compile seccomp profile: argument index {index} of `{syscall}` is not 0 to 5")]
    ArgumentIndex { index: u32, syscall: String },
    #[error("compile seccomp profile: errno {errno} is above 4095")]
    Errno { errno: u32 },
    #[error("compile seccomp profile: action `{action}` takes no errno, {errno} is given")]
    NeedlessErrno { action: String, errno: u32 },
    #[error("compile seccomp profile: a rule for `{action}` names no system call")]
    NoNames { action: String },
    #[error("compile seccomp profile: SCMP_ACT_NOTIFY needs a listenerPath to hand the notifications to")]
    NoListener,
    #[error(
        "compile seccomp profile: SCMP_ACT_NOTIFY cannot be the default action nor apply to `write`, which hands over the listener"
    )]
    NotifyDeadlock,
    #[error(
        "compile seccomp profile: {instructions} instructions, the kernel takes {MAX_INSTRUCTIONS}: use fewer argument conditions or architectures"
    )]
    TooLong { instructions: usize },
}

/// A filter, ready for `seccomp(SECCOMP_SET_MODE_FILTER)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    bytes: Vec<u8>,
    notifies: bool,
}

impl Program {
    /// An array of `struct sock_filter`, 8 bytes each, in the machine's byte order.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, owned.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Number of instructions.
    pub fn instructions(&self) -> usize {
        self.bytes.len() / 8
    }

    /// True when a notification listener must be asked for at load time.
    pub fn notifies(&self) -> bool {
        self.notifies
    }
}

/// Equal for profiles that compile to the same program; compared whole, so that no profile can pass for another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(Box<[u8]>);

/// What a cache of compiled programs should be keyed by.
pub fn cache_key(profile: &Seccomp) -> CacheKey {
    // Only strings, numbers and lists: serialising cannot fail; were it to, the key would match nothing but itself.
    CacheKey(serde_json::to_vec(profile).unwrap_or_else(|e| e.to_string().into_bytes()).into_boxed_slice())
}

/// Compiles a profile for the machine this runs on.
pub fn compile(profile: &Seccomp) -> Result<Program, SeccompError> {
    match Arch::native() {
        Some(native) => compile_for(profile, native),
        None => Err(SeccompError::UnknownArchitecture { architecture: std::env::consts::ARCH.to_owned() }),
    }
}

/// Compiles a profile for a machine whose own architecture is `native`; foreign architectures of the profile are left out.
pub fn compile_for(profile: &Seccomp, native: Arch) -> Result<Program, SeccompError> {
    let policy = policy::Policy::new(profile, native)?;
    let instructions = tree::assemble(&policy);
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong { instructions: instructions.len() });
    }
    Ok(Program { bytes: instructions.iter().flat_map(|i| i.to_bytes()).collect(), notifies: policy.notifies })
}

#[cfg(test)]
mod tests;
