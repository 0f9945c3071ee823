//! CPU time and placement.
//! Blocking for microseconds; launcher and live update.
//! Owns nothing.
//! Must never reset what an update leaves out: a period alone keeps the quota.

use super::{Group, Place};
use crate::cgroup::dir::Dir;
use crate::cgroup::error::CgroupError;
use crate::cgroup::hierarchy::Controller;
use crate::spec::Cpu;

pub(super) fn apply(group: Group<'_>, cpu: &Cpu) -> Result<(), CgroupError> {
    if touches_time(cpu) {
        let place = match bounds_time(cpu) {
            true => group.need(Controller::Cpu, "cpu limits")?,
            false => group.place(Controller::Cpu),
        };
        match place {
            Place::V1(dir) => time_v1(&dir, cpu)?,
            Place::V2(dir) => time_v2(&dir, cpu)?,
            Place::Absent => {}
        }
    }
    if !cpu.cpus.is_empty() || !cpu.mems.is_empty() {
        let (Place::V1(dir) | Place::V2(dir)) = group.need(Controller::Cpuset, "the cpuset")? else { return Ok(()) };
        for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            if !value.is_empty() {
                dir.write(file, value)?;
            }
        }
    }
    Ok(())
}

fn shares(cpu: &Cpu) -> Option<u64> {
    // The kernel refuses a weight for an idle group, and 0 is "not set" to the writers of specs.
    cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1))
}

fn touches_time(cpu: &Cpu) -> bool {
    bounds_time(cpu) || cpu.quota.is_some_and(|quota| quota < 0) || cpu.idle.is_some()
}

fn bounds_time(cpu: &Cpu) -> bool {
    let realtime = cpu.realtime_runtime.is_some_and(|v| v != 0) || cpu.realtime_period.is_some_and(|v| v != 0);
    shares(cpu).is_some()
        || cpu.quota.is_some_and(|quota| quota > 0)
        || cpu.period.is_some_and(|period| period != 0)
        || cpu.burst.is_some()
        || cpu.idle == Some(1)
        || realtime
}

/// Whether the kernel can take these at all.
pub(super) fn check(cpu: &Cpu) -> Result<(), CgroupError> {
    let bad = |setting: &str, value: String, reason| {
        Err(CgroupError::BadValue { setting: setting.to_owned(), value, reason })
    };
    match (cpu.quota, cpu.period, cpu.idle) {
        (Some(quota @ 1..1000), ..) => bad("the cpu quota", quota.to_string(), "the least is 1000 microseconds"),
        (_, Some(period @ 1..1000), _) | (_, Some(period @ 1_000_001..), _) => {
            bad("the cpu period", period.to_string(), "it has to be 1000 to 1000000 microseconds")
        }
        (.., Some(idle)) if !(0..=1).contains(&idle) => bad("cpu idle", idle.to_string(), "it is 0 or 1"),
        _ => Ok(()),
    }
}

fn time_v1(dir: &Dir, cpu: &Cpu) -> Result<(), CgroupError> {
    if let Some(idle) = cpu.idle {
        dir.write("cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = shares(cpu) {
        dir.write("cpu.shares", &shares.to_string())?;
    }
    let mut realtime = Vec::new();
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        realtime.push(("cpu.rt_period_us", period.to_string()));
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
        realtime.push(("cpu.rt_runtime_us", runtime.to_string()));
    }
    dir.write_settling(&realtime)?;
    let mut values = Vec::new();
    if let Some(burst) = cpu.burst {
        values.push(("cpu.cfs_burst_us", burst.to_string()));
    }
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        values.push(("cpu.cfs_period_us", period.to_string()));
    }
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        values.push(("cpu.cfs_quota_us", quota.max(-1).to_string()));
    }
    dir.write_settling(&values)
}

fn time_v2(dir: &Dir, cpu: &Cpu) -> Result<(), CgroupError> {
    if cpu.realtime_runtime.is_some_and(|v| v != 0) || cpu.realtime_period.is_some_and(|v| v != 0) {
        return Err(CgroupError::Unsupported {
            setting: "realtime cpu bandwidth".to_owned(),
            reason: "cgroup v2 has no realtime bandwidth",
        });
    }
    if let Some(idle) = cpu.idle {
        dir.write("cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = shares(cpu) {
        dir.write("cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    let mut values = Vec::new();
    if let Some(burst) = cpu.burst {
        values.push(("cpu.max.burst", burst.to_string()));
    }
    let (quota, period) = (cpu.quota.filter(|quota| *quota != 0), cpu.period.filter(|period| *period != 0));
    let quota = match (quota, period) {
        (None, None) => None,
        (Some(quota), _) if quota > 0 => Some(quota.to_string()),
        (Some(_), _) => Some("max".to_owned()),
        // The file takes a quota alone, but no period alone.
        (None, Some(_)) => Some(dir.read("cpu.max")?.split(' ').next().unwrap_or("max").to_owned()),
    };
    if let Some(quota) = quota {
        values.push(("cpu.max", period.map_or(quota.clone(), |period| format!("{quota} {period}"))));
    }
    dir.write_settling(&values)
}

/// v1's shares (2 to 262144, usually 1024) as v2's weight (1 to 10000, usually 100), by the curve through those three points
/// that the kubelet, runc 1.3.2 and crun 1.23 agreed on (kubernetes/kubernetes#131216): with `l = log2(shares)`,
/// `weight = 10 ^ ((l*l + 125*l) / 612 - 7/34)`, rounded up.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "both ends are clamped to small positive numbers"
)]
pub(in crate::cgroup) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}
