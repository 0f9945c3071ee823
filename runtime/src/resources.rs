//! Limits of a container in the words of the kernel's interfaces, as callers ask for them and as they are applied.
//! Plain data and its conversion to the OCI form, in any task of the daemon.
//! Owns nothing. Must never guess: an absent value means "as it is", in a create as in an update.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};
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

impl Resources {
    /// Refuses what no kernel takes; the field and the reason.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(("resources.oom_score_adj", "want -1000 to 1000".into()));
        }
        let limits =
            [("resources.memory_limit", self.memory_limit), ("resources.memory_swap_limit", self.memory_swap_limit)];
        for (field, limit) in limits.into_iter().chain([("resources.cpu_quota", self.cpu_quota)]) {
            if limit.is_some_and(|limit| limit < -1) {
                return Err((field, "want -1 (unlimited) or more".into()));
            }
        }
        if let (Some(memory @ 1..), Some(swap @ 1..)) = (self.memory_limit, self.memory_swap_limit)
            && swap < memory
        {
            return Err((
                "resources.memory_swap_limit",
                format!("{swap} is memory and swap together, less than memory alone ({memory})"),
            ));
        }
        for (field, list) in
            [("resources.cpuset_cpus", &self.cpuset_cpus), ("resources.cpuset_mems", &self.cpuset_mems)]
        {
            if list.len() > 4096 || !list.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte)) {
                return Err((field, "want a list as `0-3,7`".into()));
            }
        }
        for limit in &self.hugepage_limits {
            let digits = limit.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
            if digits.is_empty()
                || digits.len() == limit.page_size.len()
                || !digits.bytes().all(|byte| byte.is_ascii_digit())
            {
                return Err(("resources.hugepage_limits", "want page sizes as `2MB`".into()));
            }
        }
        for (file, value) in &self.unified {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_');
            // `cgroup.procs` and its kin are not limits; a slash or a leading dot would leave the cgroup.
            let limit = file.bytes().all(allowed)
                && file.split_once('.').is_some_and(|(controller, _)| !matches!(controller, "" | "cgroup"));
            if !limit || file.contains("..") || value.contains('\0') || value.len() > 4096 {
                return Err((
                    "resources.unified",
                    format!("`{}`: want files of a controller as `memory.high`", file.escape_default()),
                ));
            }
        }
        Ok(())
    }

    /// These limits with those that `change` names.
    #[must_use]
    pub(crate) fn merged(&self, change: &Self) -> Self {
        let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
        let mut hugepage_limits = self.hugepage_limits.clone();
        hugepage_limits.retain(|old| change.hugepage_limits.iter().all(|new| new.page_size != old.page_size));
        hugepage_limits.extend_from_slice(&change.hugepage_limits);
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Self {
            cpu_period: change.cpu_period.or(self.cpu_period),
            cpu_quota: change.cpu_quota.or(self.cpu_quota),
            cpu_shares: change.cpu_shares.or(self.cpu_shares),
            cpuset_cpus: text(&change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&change.cpuset_mems, &self.cpuset_mems),
            memory_limit: change.memory_limit.or(self.memory_limit),
            memory_swap_limit: change.memory_swap_limit.or(self.memory_swap_limit),
            oom_score_adj: change.oom_score_adj.or(self.oom_score_adj),
            pids_limit: change.pids_limit.or(self.pids_limit),
            hugepage_limits,
            unified,
        }
    }

    /// What an update of a container with these limits comes to. The limit of swap counts memory too, so one of the two is never
    /// changed without the other: who changes memory alone keeps the allowance of swap above it.
    #[must_use]
    pub(crate) fn completed(&self, mut change: Self) -> Self {
        match (change.memory_limit, change.memory_swap_limit) {
            (None, Some(_)) => change.memory_limit = self.memory_limit,
            (Some(-1), None) => change.memory_swap_limit = self.memory_swap_limit.map(|_| -1),
            (Some(new), None) => {
                if let (Some(memory @ 1..), Some(both @ 1..)) = (self.memory_limit, self.memory_swap_limit) {
                    change.memory_swap_limit = Some(new.saturating_add(both.saturating_sub(memory)));
                }
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        change
    }

    /// What takes an update back that was made of these limits: the old value of everything that `change` names, and where there
    /// was none the kernel's own.
    #[must_use]
    pub(crate) fn undoing(&self, change: &Self) -> Self {
        fn old<T>(change: Option<T>, old: Option<T>, kernel: T) -> Option<T> {
            change.map(|_| old.unwrap_or(kernel))
        }
        let text = |new: &String, old: &String| if new.is_empty() { String::new() } else { old.clone() };
        Self {
            cpu_period: old(change.cpu_period, self.cpu_period, 100_000),
            cpu_quota: old(change.cpu_quota, self.cpu_quota, -1),
            cpu_shares: old(change.cpu_shares, self.cpu_shares, 1024),
            cpuset_cpus: text(&change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&change.cpuset_mems, &self.cpuset_mems),
            memory_limit: old(change.memory_limit, self.memory_limit, -1),
            memory_swap_limit: old(change.memory_swap_limit, self.memory_swap_limit, -1),
            oom_score_adj: None,
            pids_limit: old(change.pids_limit, self.pids_limit, -1),
            hugepage_limits: self
                .hugepage_limits
                .iter()
                .filter(|old| change.hugepage_limits.iter().any(|new| new.page_size == old.page_size))
                .cloned()
                .collect(),
            unified: self
                .unified
                .iter()
                .filter(|(file, _)| change.unified.contains_key(*file))
                .map(|(file, value)| (file.clone(), value.clone()))
                .collect(),
        }
    }

    /// As the OCI runtime spec writes them, devices left out.
    #[must_use]
    pub(crate) fn to_oci(&self) -> LinuxResources {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(self.cpu_shares)
            .set_quota(self.cpu_quota)
            .set_period(self.cpu_period)
            .set_cpus(text(&self.cpuset_cpus))
            .set_mems(text(&self.cpuset_mems));
        let mut memory = LinuxMemory::default();
        memory.set_limit(self.memory_limit).set_swap(self.memory_swap_limit);
        let pids = self.pids_limit.map(|limit| {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            pids
        });
        let hugepages = self.hugepage_limits.iter().map(|limit| {
            let mut entry = LinuxHugepageLimit::default();
            entry.set_page_size(limit.page_size.clone()).set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
            entry
        });
        let unified = self.unified.clone().into_iter().collect();
        let mut resources = LinuxResources::default();
        resources
            .set_devices(None)
            .set_cpu(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
            .set_memory(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
            .set_pids(pids)
            .set_hugepage_limits(Some(hugepages.collect()).filter(|list: &Vec<_>| !list.is_empty()))
            .set_unified(Some(unified).filter(|map: &std::collections::HashMap<_, _>| !map.is_empty()));
        resources
    }

    /// As the launcher and the cgroup room read them.
    pub(crate) fn to_shim(&self) -> Result<keelson_shim::spec::Resources, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(self.to_oci())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_mean_nothing_are_refused() {
        let unified =
            |file: &str| Resources { unified: [(file.to_owned(), "1".to_owned())].into(), ..Default::default() };
        assert!(unified("memory.high").check().is_ok());
        for bad in ["cgroup.procs", "../memory.max", "memory", "memory/x.y", ".x", "memory..max", "Memory.max", "x.\n"]
        {
            assert!(unified(bad).check().is_err(), "{bad}");
        }
        for bad in [
            Resources { memory_limit: Some(-2), ..Default::default() },
            Resources { memory_limit: Some(100), memory_swap_limit: Some(50), ..Default::default() },
            Resources { cpuset_cpus: "0;1".into(), ..Default::default() },
            Resources {
                hugepage_limits: vec![HugepageLimit { page_size: "../x".into(), limit: 0 }],
                ..Default::default()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn memory_and_swap_change_together() {
        let of =
            |memory_limit, memory_swap_limit| Resources { memory_limit, memory_swap_limit, ..Resources::default() };
        for (had, change, want) in [
            // No swap above memory stays none; 50 stay 50.
            (of(Some(100), Some(100)), of(Some(300), None), of(Some(300), Some(300))),
            (of(Some(100), Some(150)), of(Some(80), None), of(Some(80), Some(130))),
            (of(Some(100), Some(-1)), of(Some(80), None), of(Some(80), None)),
            (of(Some(100), None), of(Some(80), None), of(Some(80), None)),
            // No limit of memory, none of both.
            (of(Some(100), Some(100)), of(Some(-1), None), of(Some(-1), Some(-1))),
            // v2 counts swap alone: it needs to know memory.
            (of(Some(100), Some(100)), of(None, Some(120)), of(Some(100), Some(120))),
            (of(Some(100), None), of(Some(80), Some(90)), of(Some(80), Some(90))),
            (of(Some(100), Some(100)), of(None, None), of(None, None)),
        ] {
            assert_eq!(had.completed(change.clone()), want, "{had:?} {change:?}");
            assert!(had.merged(&want).check().is_ok(), "{had:?} {change:?}");
        }
    }

    #[test]
    fn an_update_is_taken_back_by_what_was_or_what_the_kernel_has() {
        let had = Resources {
            cpu_shares: Some(2),
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        let change = Resources {
            cpu_shares: Some(9),
            cpu_quota: Some(1000),
            memory_limit: Some(7),
            unified: [("memory.high", "6"), ("memory.low", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Default::default()
        };
        let undo = had.undoing(&change);
        assert_eq!(
            (undo.cpu_shares, undo.cpu_quota, undo.memory_limit, undo.cpu_period),
            (Some(2), Some(-1), Some(-1), None)
        );
        assert_eq!(undo.unified, had.unified);
    }

    #[test]
    fn an_update_changes_what_it_names_alone() {
        let had =
            Resources { cpu_shares: Some(2), memory_limit: Some(7), cpuset_cpus: "0".into(), ..Default::default() };
        let change = Resources { cpu_shares: Some(9), ..Default::default() };
        assert_eq!(had.merged(&change), Resources { cpu_shares: Some(9), ..had.clone() });
        assert_eq!(had.merged(&Resources::default()), had);
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        assert_eq!(serde_json::to_value(Resources::default().to_oci()).unwrap(), serde_json::json!({}));
        let limits = Resources { memory_limit: Some(1 << 20), pids_limit: Some(5), ..Default::default() };
        let shim = limits.to_shim().unwrap();
        assert_eq!(shim.memory.unwrap().limit, Some(1 << 20));
        assert_eq!(shim.pids.unwrap().limit, Some(5));
    }
}
