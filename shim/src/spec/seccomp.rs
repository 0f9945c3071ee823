//! `linux.seccomp` of the runtime specification: which system calls a process may make.
//! Plain data; any process, any thread.
//! Owns strings and numbers only: names are resolved by the compiler, which knows the machine.
//! Must never decide what an unknown name means.

use serde::{Deserialize, Serialize};

use super::null_is_empty;

/// A filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// `SCMP_ACT_ERRNO`.
    pub default_action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_X86_64`; empty: the machine's own.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_LOG`.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub listener_path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub listener_metadata: String,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<SeccompRule>,
}

/// An action for some system calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompRule {
    #[serde(default)]
    pub names: Vec<String>,
    /// `SCMP_ACT_ALLOW`.
    pub action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// All must hold, except that several on one argument are alternatives.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<SeccompArg>,
}

/// A condition on one argument.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompArg {
    /// 0 to 5.
    #[serde(default)]
    pub index: u32,
    #[serde(default)]
    pub value: u64,
    /// The compared value of `SCMP_CMP_MASKED_EQ`, whose mask is `value`.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_EQ`.
    #[serde(default)]
    pub op: String,
}
