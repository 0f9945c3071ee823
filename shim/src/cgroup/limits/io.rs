//! Block I/O weights and throttles.
//! Blocking for microseconds; launcher and live update.
//! Owns nothing.
//! Must never pick a scheduler: it uses the weight file that the machine's has, and says when there is none.

use rustix::io::Errno;

use super::{Group, Place};
use crate::cgroup::dir::Dir;
use crate::cgroup::error::CgroupError;
use crate::cgroup::hierarchy::Controller;
use crate::spec::{BlockIo, ThrottleDevice};

const NO_WEIGHTS: &str = ": the machine's block devices use no scheduler with weights (bfq, or iocost)";

pub(super) fn apply(group: Group<'_>, io: &BlockIo) -> Result<(), CgroupError> {
    match group.need(Controller::Io, "block i/o limits")? {
        Place::V1(dir) => v1(&dir, io),
        Place::V2(dir) => v2(&dir, io),
        Place::Absent => Ok(()),
    }
}

fn v1(dir: &Dir, io: &BlockIo) -> Result<(), CgroupError> {
    let mut weights = Vec::new();
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        weights.push((["blkio.weight", "blkio.bfq.weight"], weight.to_string()));
    }
    if let Some(weight) = io.leaf_weight.filter(|weight| *weight != 0) {
        weights.push((["blkio.leaf_weight", "blkio.leaf_weight"], weight.to_string()));
    }
    for device in &io.weight_device {
        let (major, minor) = (device.major, device.minor);
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            weights.push((["blkio.weight_device", "blkio.bfq.weight_device"], format!("{major}:{minor} {weight}")));
        }
        if let Some(weight) = device.leaf_weight.filter(|weight| *weight != 0) {
            weights
                .push((["blkio.leaf_weight_device", "blkio.leaf_weight_device"], format!("{major}:{minor} {weight}")));
        }
    }
    for (files, value) in weights {
        first_of(dir, &files, &value)?;
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", &io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &io.throttle_write_iops_device),
    ] {
        let lines: Vec<String> = devices.iter().map(|d| format!("{}:{} {}", d.major, d.minor, d.rate)).collect();
        dir.write_each(file, &lines)?;
    }
    Ok(())
}

fn v2(dir: &Dir, io: &BlockIo) -> Result<(), CgroupError> {
    // bfq takes the specification's own range, io.weight has 1 to 10000.
    let by_file = |weight: u16| [("io.bfq.weight", u64::from(weight)), ("io.weight", weight_of(weight))];
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        weigh(dir, &by_file(weight).map(|(file, weight)| (file, format!("default {weight}"))))?;
    }
    for device in &io.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let line = |weight: u64| format!("{}:{} {weight}", device.major, device.minor);
            weigh(dir, &by_file(weight).map(|(file, weight)| (file, line(weight))))?;
        }
    }
    let line = |key: &str, device: &ThrottleDevice| match device.rate {
        0 => format!("{}:{} {key}=max", device.major, device.minor),
        rate => format!("{}:{} {key}={rate}", device.major, device.minor),
    };
    let lines: Vec<String> = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ]
    .into_iter()
    .flat_map(|(key, devices)| devices.iter().map(move |device| line(key, device)))
    .collect();
    dir.write_each("io.max", &lines)
}

/// 10..=1000 to 1..=10000, straight.
fn weight_of(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn weigh(dir: &Dir, choices: &[(&str, String); 2]) -> Result<(), CgroupError> {
    for (file, value) in choices {
        match dir.try_write(file, value) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(source) => return Err(dir.write_error(file, value, source)),
        }
    }
    Err(CgroupError::NoFile {
        setting: "the block i/o weight".to_owned(),
        file: "io.weight".to_owned(),
        hint: NO_WEIGHTS,
    })
}

fn first_of(dir: &Dir, files: &[&str; 2], value: &str) -> Result<(), CgroupError> {
    for file in files {
        match dir.try_write(file, value) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(source) => return Err(dir.write_error(file, value, source)),
        }
    }
    let [file, _] = files;
    Err(CgroupError::NoFile { setting: "the block i/o weight".to_owned(), file: (*file).to_owned(), hint: NO_WEIGHTS })
}
