//! Device rules for cgroup v1, which keeps one default and exceptions to it.
//! Blocking for microseconds; launcher and live update.
//! Owns nothing.
//! Must never write a rule that the kernel would take and not follow: v1 takes back exactly what was given, or nothing.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::{Kind, Rule};
use crate::cgroup::dir::Dir;
use crate::cgroup::error::CgroupError;
use crate::cgroup::limits::When;

type Device = (Kind, Option<u32>, Option<u32>);

/// What the kernel holds for one cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) allows: bool,
    pub(super) exceptions: BTreeMap<Device, u8>,
}

impl State {
    pub(super) fn new(rules: &[Rule]) -> Result<State, CgroupError> {
        let mut state = State { allows: false, exceptions: BTreeMap::new() };
        for rule in rules {
            if rule.is_everything() {
                state = State { allows: rule.allow, exceptions: BTreeMap::new() };
                continue;
            }
            for kind in [Kind::Block, Kind::Char].into_iter().filter(|kind| rule.kind.is_none_or(|k| k == *kind)) {
                state.add(rule, (kind, rule.major, rule.minor))?;
            }
        }
        Ok(state)
    }

    fn add(&mut self, rule: &Rule, device: Device) -> Result<(), CgroupError> {
        if rule.allow != self.allows {
            *self.exceptions.entry(device).or_default() |= rule.access;
            return Ok(());
        }
        if let Some(access) = self.exceptions.get_mut(&device) {
            *access &= !rule.access;
        }
        self.exceptions.retain(|_, access| *access != 0);
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        let overlaps = |(other, access): (&Device, &u8)| {
            other.0 == device.0 && meets(other.1, device.1) && meets(other.2, device.2) && access & rule.access != 0
        };
        if self.exceptions.iter().any(overlaps) {
            let verb = if rule.allow { "allow" } else { "deny" };
            let reason = "cgroup v1 cannot take back part of a wider rule; list the devices one by one";
            return Err(CgroupError::BadDevice { rule: format!("{verb} {rule}"), reason });
        }
        Ok(())
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.exceptions.iter().map(|((kind, major, minor), access)| line(*kind, *major, *minor, *access))
    }
}

fn line(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> String {
    Rule { allow: true, kind: Some(kind), major, minor, access }.to_string()
}

const ALLOW: &str = "devices.allow";
const DENY: &str = "devices.deny";

pub(super) fn apply(dir: &Dir, rules: &[Rule], when: When) -> Result<(), CgroupError> {
    let wanted = State::new(rules)?;
    let lines: Vec<String> = wanted.lines().collect();
    if wanted.allows {
        match dir.try_write(ALLOW, "a") {
            // The parent allows less: a new cgroup already has all of that.
            Ok(()) | Err(Errno::PERM) => {}
            Err(source) => return Err(dir.write_error(ALLOW, "a", source)),
        }
        return dir.write_each(DENY, &lines);
    }
    let held = match when {
        When::Fresh => "a *:* rwm".to_owned(),
        When::Live => dir.read("devices.list")?,
    };
    if held.lines().any(|line| line.starts_with('a')) {
        dir.write(DENY, "a")?;
        return dir.write_each(ALLOW, &lines);
    }
    // Never everything away and back again: a running program may be opening its /dev/null just now.
    let missing: Vec<String> = lines.iter().filter(|line| held.lines().all(|h| h != *line)).cloned().collect();
    dir.write_each(ALLOW, &missing)?;
    let surplus: Vec<String> = held
        .lines()
        .filter(|line| !lines.iter().any(|l| l == line))
        .flat_map(|line| match lines.iter().find(|wanted| same_device(wanted, line)) {
            // Denying `rwm` where `r` is wanted would take the `r` too.
            Some(wanted) => without(line, wanted),
            None => Some(line.to_owned()),
        })
        .collect();
    dir.write_each(DENY, &surplus)
}

fn same_device(one: &str, other: &str) -> bool {
    one.rsplit_once(' ').map(|(device, _)| device) == other.rsplit_once(' ').map(|(device, _)| device)
}

/// `line` with the accesses of `wanted` left out; None when nothing is left.
fn without(line: &str, wanted: &str) -> Option<String> {
    let (device, access) = line.rsplit_once(' ')?;
    let (_, keep) = wanted.rsplit_once(' ')?;
    let rest: String = access.chars().filter(|letter| !keep.contains(*letter)).collect();
    (!rest.is_empty()).then(|| format!("{device} {rest}"))
}
