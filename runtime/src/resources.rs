//! Limits of a container in the words of the kernel's interfaces, as callers ask for them and as they are applied.
//! Plain data and its conversion to the OCI form, in any task of the daemon.
//! Owns nothing. Must never guess: an absent value means "as it is", in a create as in an update.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A limit of one huge page size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`, ..
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Limits; `None` and empty: not asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Length of a CPU period, microseconds.
    pub cpu_period: Option<u64>,
    /// CPU time per period, microseconds; -1: unlimited.
    pub cpu_quota: Option<i64>,
    /// CPU weight against neighbours (2-262144).
    pub cpu_shares: Option<u64>,
    /// CPUs, in list format.
    pub cpuset_cpus: String,
    /// Memory nodes, in list format.
    pub cpuset_mems: String,
    /// Memory, bytes; -1: unlimited.
    pub memory_limit: Option<i64>,
    /// Memory and swap together, bytes; -1: unlimited.
    pub memory_swap_limit: Option<i64>,
    /// Who the OOM killer takes first (-1000 to 1000).
    pub oom_score_adj: Option<i32>,
    /// Tasks.
    pub pids_limit: Option<i64>,
    /// Huge pages.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Cgroup v2 files and what to write to them.
    pub unified: BTreeMap<String, String>,
}
