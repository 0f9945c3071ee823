//! Scheduling policy and I/O priority of a process.
//! Pure; in the shim, before the clone.
//! Owns nothing.
//! Must never guess: an unknown word is refused.

use keelson_sys::child::Op;

use super::LaunchError;
use crate::spec::{IoPriority, Scheduler};

/// As `struct sched_attr`: size and policy, flags, nice and priority, runtime, deadline, period.
pub(super) fn scheduler(wanted: &Scheduler) -> Result<Op, LaunchError> {
    const STEP: &str = "set scheduler";
    let policy: u64 = match wanted.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(LaunchError::invalid(STEP, other, "no such policy")),
    };
    let mut flags = 0;
    for flag in &wanted.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(LaunchError::invalid(STEP, other, "no such flag")),
        };
    }
    const SIZE: u64 = 48;
    let nice = u64::from(wanted.nice.unwrap_or(0).cast_unsigned());
    let priority = u64::from(wanted.priority.unwrap_or(0));
    // Two 32-bit fields share a word; which half is first is the machine's byte order.
    let pair =
        |first: u64, second: u64| if cfg!(target_endian = "big") { first << 32 | second } else { second << 32 | first };
    Ok(Op::Scheduler([
        pair(SIZE, policy),
        flags,
        pair(nice, priority),
        wanted.runtime.unwrap_or(0),
        wanted.deadline.unwrap_or(0),
        wanted.period.unwrap_or(0),
    ]))
}

pub(super) fn io_priority(wanted: &IoPriority) -> Result<Op, LaunchError> {
    const STEP: &str = "set I/O priority";
    let class = match wanted.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(LaunchError::invalid(STEP, other, "no such class")),
    };
    if !(0..8).contains(&wanted.priority) {
        return Err(LaunchError::invalid(STEP, wanted.priority.to_string(), "not 0 to 7"));
    }
    Ok(Op::IoPriority(class << 13 | wanted.priority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_packed_as_the_kernel_reads_them() {
        let op =
            scheduler(&Scheduler { policy: "SCHED_FIFO".into(), priority: Some(7), ..Scheduler::default() }).unwrap();
        let Op::Scheduler(words) = op else { panic!("{op:?}") };
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes[..8], [48_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat());
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes());
    }

    #[test]
    fn unknown_words_are_refused() {
        assert!(scheduler(&Scheduler { policy: "SCHED_MAGIC".into(), ..Scheduler::default() }).is_err());
        assert!(io_priority(&IoPriority { class: "IOPRIO_CLASS_BE".into(), priority: 8 }).is_err());
        assert!(matches!(
            io_priority(&IoPriority { class: "IOPRIO_CLASS_BE".into(), priority: 3 }),
            Ok(Op::IoPriority(0x4003))
        ));
    }
}
