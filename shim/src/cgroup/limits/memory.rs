//! Memory and swap.
//! Blocking for microseconds, longer when the kernel reclaims to get below a lowered limit; launcher and live update.
//! Owns nothing.
//! Must never lower a limit so far that the kernel would have to kill to reach it.

use rustix::io::Errno;

use super::{Group, Place, When, limits};
use crate::cgroup::dir::Dir;
use crate::cgroup::error::CgroupError;
use crate::cgroup::hierarchy::Controller;
use crate::spec::Memory;

pub(super) fn apply(group: Group<'_>, memory: &Memory, when: When) -> Result<(), CgroupError> {
    let bounded = limits(memory.limit) || limits(memory.swap) || limits(memory.reservation);
    let place = match bounded {
        true => group.need(Controller::Memory, "memory limits")?,
        false => group.place(Controller::Memory),
    };
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (memory.limit, memory.swap)
        && swap < limit
    {
        return Err(CgroupError::BadValue {
            setting: "the limit of memory and swap together".to_owned(),
            value: swap.to_string(),
            reason: "it is below the memory limit",
        });
    }
    match place {
        Place::V1(dir) => v1(&dir, memory, when),
        Place::V2(dir) => v2(&dir, memory, when),
        Place::Absent => Ok(()),
    }
}

const LIMIT_V1: &str = "memory.limit_in_bytes";
const SWAP_V1: &str = "memory.memsw.limit_in_bytes";

fn v1(dir: &Dir, memory: &Memory, when: When) -> Result<(), CgroupError> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    let swap = match memory.swap.filter(|swap| *swap != 0) {
        // Memory without limit and swap with one cannot be; who lifts the first means both.
        None if limit.is_some_and(|limit| limit < 0) && when == When::Live && dir.exists(SWAP_V1) => Some(-1),
        swap => swap,
    };
    if swap.is_some() && !dir.exists(SWAP_V1) {
        // Equal limits allow no swap: where the machine has none, that is so already.
        let none = swap == limit && !machine_has_swap();
        if swap.is_some_and(|swap| swap > 0) && !none {
            return Err(CgroupError::NoFile {
                setting: "the limit of memory and swap together".to_owned(),
                file: SWAP_V1.to_owned(),
                hint: ": boot with swapaccount=1, or leave the swap limit out",
            });
        }
        return v1_limits(dir, limit, None, when).and_then(|()| v1_others(dir, memory));
    }
    v1_limits(dir, limit, swap, when)?;
    v1_others(dir, memory)
}

fn v1_limits(dir: &Dir, limit: Option<i64>, swap: Option<i64>, when: When) -> Result<(), CgroupError> {
    let mut swap = swap;
    let mut swap_first = false;
    if when == When::Live && limit.is_some() && dir.exists(SWAP_V1) {
        let old_swap = unlimited_is_none(dir.read_limit(SWAP_V1)?);
        let old_limit = unlimited_is_none(dir.read_limit(LIMIT_V1)?);
        let new = limit.and_then(|limit| u64::try_from(limit).ok());
        // The kernel keeps memory <= memory + swap at every moment.
        swap_first = match (new, old_swap) {
            (Some(new), Some(old)) => new > old,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let (None, Some(old_swap), Some(old_limit), Some(new)) = (swap, old_swap, old_limit, new) {
            // Only the memory limit is given: the allowance for swap stays what it was.
            swap = i64::try_from(new.saturating_add(old_swap.saturating_sub(old_limit))).ok();
        }
    }
    let write_limit = || match limit {
        Some(limit) => dir.try_write(LIMIT_V1, &limit.max(-1).to_string()).map_err(|source| match (source, limit) {
            (Errno::BUSY, 0..) => shrink(limit, dir.read_limit("memory.usage_in_bytes").ok().flatten()),
            _ => dir.write_error(LIMIT_V1, &limit.to_string(), source),
        }),
        None => Ok(()),
    };
    let write_swap = || swap.map_or(Ok(()), |swap| dir.write(SWAP_V1, &swap.max(-1).to_string()));
    if swap_first {
        write_swap()?;
        write_limit()
    } else {
        write_limit()?;
        write_swap()
    }
}

fn v1_others(dir: &Dir, memory: &Memory) -> Result<(), CgroupError> {
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        dir.write("memory.soft_limit_in_bytes", &reservation.max(-1).to_string())?;
    }
    if let Some(swappiness) = memory.swappiness {
        dir.write("memory.swappiness", &swappiness.to_string())?;
    }
    if let Some(disabled) = memory.disable_oom_killer {
        dir.write("memory.oom_control", if disabled { "1" } else { "0" })?;
    }
    Ok(())
}

/// The first line is a heading.
fn machine_has_swap() -> bool {
    Dir::new("/proc", "").try_read_list("swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// v1 shows "no limit" as the largest multiple of a page.
fn unlimited_is_none(limit: Option<u64>) -> Option<u64> {
    limit.filter(|limit| *limit < (1 << 63) - (1 << 20))
}

fn v2(dir: &Dir, memory: &Memory, when: When) -> Result<(), CgroupError> {
    if memory.disable_oom_killer == Some(true) {
        return Err(CgroupError::Unsupported {
            setting: "disableOOMKiller".to_owned(),
            reason: "cgroup v2 cannot disable the OOM killer",
        });
    }
    let swap = swap_beyond_memory(memory)?;
    if let (Some(limit), When::Live) =
        (memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|l| *l > 0), when)
    {
        refuse_to_kill(dir, limit, memory.check_before_update)?;
    }
    if let Some(swap) = swap {
        let value = text(swap);
        match dir.try_write("memory.swap.max", &value) {
            Ok(()) => {}
            // Without swap support there is nothing to forbid, and nothing to allow.
            Err(Errno::NOENT) if swap <= 0 => {}
            Err(Errno::NOENT) => {
                return Err(CgroupError::NoFile {
                    setting: "the swap limit".to_owned(),
                    file: "memory.swap.max".to_owned(),
                    hint: ": boot with swapaccount=1, or leave the swap limit out",
                });
            }
            Err(source) => return Err(dir.write_error("memory.swap.max", &value, source)),
        }
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        dir.write("memory.max", &text(limit))?;
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        dir.write("memory.low", &text(reservation))?;
    }
    Ok(())
}

fn text(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// v2 counts swap alone, the specification memory and swap together. None: leave it as it is; -1: no limit.
pub(in crate::cgroup) fn swap_beyond_memory(memory: &Memory) -> Result<Option<i64>, CgroupError> {
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    let bad = |reason| {
        let setting = "the limit of memory and swap together".to_owned();
        Err(CgroupError::BadValue { setting, value: swap.to_string(), reason })
    };
    match (limit, swap) {
        (..0, 0) | (_, ..0) => Ok(Some(-1)),
        (_, 0) => Ok(None),
        (..=0, _) => bad("it needs a memory limit beside it"),
        (limit, swap) if swap < limit => bad("it is below the memory limit"),
        (limit, swap) => Ok(Some(swap - limit)),
    }
}

/// v2 takes any limit and kills until it fits. What cannot be given up by dropping page cache would be lost.
fn refuse_to_kill(dir: &Dir, limit: u64, strictly: bool) -> Result<(), CgroupError> {
    let Some(usage) = dir.read_limit("memory.current")? else { return Ok(()) };
    if limit >= usage {
        return Ok(());
    }
    let cache = if strictly { 0 } else { page_cache(&dir.read("memory.stat")?) };
    let kept = usage.saturating_sub(cache);
    if limit < kept { Err(CgroupError::Shrink { limit, usage: kept }) } else { Ok(()) }
}

fn page_cache(stat: &str) -> u64 {
    let lines = stat.lines().filter_map(|line| line.split_once(' '));
    let files = lines.filter(|(key, _)| ["inactive_file", "active_file"].contains(key));
    files.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

fn shrink(limit: i64, usage: Option<u64>) -> CgroupError {
    CgroupError::Shrink { limit: u64::try_from(limit).unwrap_or(0), usage: usage.unwrap_or(0) }
}
