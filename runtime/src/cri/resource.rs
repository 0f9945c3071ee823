//! Limits both ways: CRI's message, where 0 and empty mean "not said", against the engine's words, where absent does.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never let a number through that another reading would take for something else.

use keelson_cri::v1;

use super::status::{Failure, invalid};
use crate::resources::{HugepageLimit, Resources};

/// Limits as a new container has them. Here 0 is a badness like any other, so it is always said.
pub(super) fn for_create(message: Option<v1::LinuxContainerResources>) -> Result<Resources, Failure> {
    let Some(message) = message else { return Ok(Resources::default()) };
    let badness = message.oom_score_adj;
    let oom_score_adj = i32::try_from(badness).ok().filter(|badness| (-1000..=1000).contains(badness));
    let oom_score_adj =
        oom_score_adj.ok_or_else(|| invalid("resources.oom_score_adj", format!("{badness}: want -1000 to 1000")))?;
    Ok(Resources { oom_score_adj: Some(oom_score_adj), ..for_update(message)? })
}

/// Limits to change. A process's badness is not a limit and stays.
pub(super) fn for_update(message: v1::LinuxContainerResources) -> Result<Resources, Failure> {
    Ok(Resources {
        cpu_period: positive("resources.cpu_period", message.cpu_period)?,
        cpu_quota: or_unlimited("resources.cpu_quota", message.cpu_quota)?,
        cpu_shares: positive("resources.cpu_shares", message.cpu_shares)?,
        cpuset_cpus: message.cpuset_cpus,
        cpuset_mems: message.cpuset_mems,
        memory_limit: or_unlimited("resources.memory_limit_in_bytes", message.memory_limit_in_bytes)?,
        memory_swap_limit: or_unlimited("resources.memory_swap_limit_in_bytes", message.memory_swap_limit_in_bytes)?,
        oom_score_adj: None,
        pids_limit: None,
        hugepage_limits: message
            .hugepage_limits
            .into_iter()
            .map(|limit| HugepageLimit { page_size: limit.page_size, limit: limit.limit })
            .collect(),
        unified: message.unified.into_iter().collect(),
    })
}

fn positive(field: &str, value: i64) -> Result<Option<u64>, Failure> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(invalid(field, format!("{value}: want a number above 0, or 0 for the default"))),
    }
}

fn or_unlimited(field: &str, value: i64) -> Result<Option<i64>, Failure> {
    match value {
        0 => Ok(None),
        -1.. => Ok(Some(value)),
        _ => Err(invalid(field, format!("{value}: want a number above 0, -1 for no limit, or 0 for the default"))),
    }
}

/// What is applied, as kubelet compares it.
pub(super) fn encode(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period.map_or(0, clamp),
        cpu_quota: resources.cpu_quota.unwrap_or(0),
        cpu_shares: resources.cpu_shares.map_or(0, clamp),
        memory_limit_in_bytes: resources.memory_limit.unwrap_or(0),
        oom_score_adj: resources.oom_score_adj.map_or(0, i64::from),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|limit| v1::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or(0),
    }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: -999,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            memory_swap_limit_in_bytes: 64 << 20,
        }
    }

    #[test]
    fn limits_survive_the_way_in_and_out() {
        assert_eq!(encode(&for_create(Some(full())).unwrap()), full());
    }

    #[test]
    fn zero_and_empty_mean_not_said_but_badness_is_always_said_in_a_create() {
        let resources = for_create(Some(v1::LinuxContainerResources::default())).unwrap();
        assert_eq!(resources, Resources { oom_score_adj: Some(0), ..Resources::default() });
        assert_eq!(for_create(None).unwrap(), Resources::default());
        assert_eq!(for_update(full()).unwrap().oom_score_adj, None);
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        type Set = fn(&mut v1::LinuxContainerResources);
        let cases: [(&str, Set); 6] = [
            ("resources.cpu_period: -1", |r| r.cpu_period = -1),
            ("resources.cpu_shares: -2", |r| r.cpu_shares = -2),
            ("resources.cpu_quota: -2", |r| r.cpu_quota = -2),
            ("resources.memory_limit_in_bytes: -9", |r| r.memory_limit_in_bytes = -9),
            ("resources.oom_score_adj: 1001", |r| r.oom_score_adj = 1001),
            ("resources.oom_score_adj: 4294967296", |r| r.oom_score_adj = 1 << 32),
        ];
        for (want, set) in cases {
            let mut message = full();
            set(&mut message);
            let said = for_create(Some(message)).unwrap_err().to_string();
            assert!(said.starts_with(want), "{said}");
        }
    }
}
