//! Which devices a container may open or make: the rules of the specification as v1 control lines or a v2 program.
//! Blocking for microseconds; launcher and live update.
//! Owns nothing: the kernel keeps the program as long as the cgroup.
//! Must never let through more than the rules say: what v1 cannot express is refused.

mod lines;
mod program;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use keelson_sys::bpf;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::CgroupError;
use super::hierarchy::Controller;
use super::limits::{Group, When};
use crate::spec::DeviceRule;

/// The kernel's numbers, in `bpf_cgroup_dev_ctx`.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Block,
    Char,
}

/// One checked rule; None is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    fn new(rule: &DeviceRule) -> Result<Rule, CgroupError> {
        let bad = |reason| CgroupError::BadDevice { rule: text(rule), reason };
        let kind = match rule.kind.as_str() {
            "" | "a" => None,
            "b" => Some(Kind::Block),
            "c" | "u" => Some(Kind::Char),
            _ => return Err(bad("its type is not a, b or c")),
        };
        let number = |number: Option<i64>, limit: u32| match number {
            None | Some(-1) => Ok(None),
            Some(number) => match u32::try_from(number) {
                Ok(number) if number < limit => Ok(Some(number)),
                _ => Err(bad("a number is out of range")),
            },
        };
        let mut access = 0;
        for letter in rule.access.bytes() {
            access |= match letter {
                b'r' => READ,
                b'w' => WRITE,
                b'm' => MKNOD,
                _ => return Err(bad("its access is not made of r, w and m")),
            };
        }
        if rule.access.is_empty() {
            access = ALL;
        }
        // Linux numbers devices by 12 and 20 bits.
        Ok(Rule {
            allow: rule.allow,
            kind,
            major: number(rule.major, 1 << 12)?,
            minor: number(rule.minor, 1 << 20)?,
            access,
        })
    }

    fn is_everything(&self) -> bool {
        self.covers_every_device() && self.access == ALL
    }

    fn covers_every_device(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none()
    }
}

fn text(rule: &DeviceRule) -> String {
    let number = |number: Option<i64>| number.filter(|n| *n != -1).map_or("*".to_owned(), |n| n.to_string());
    let kind = if rule.kind.is_empty() { "a" } else { &rule.kind };
    let verb = if rule.allow { "allow" } else { "deny" };
    format!("{verb} {kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access)
}

/// The rules from the last one that speaks of every device on: nothing before it counts.
fn effective(rules: &[DeviceRule]) -> Result<Vec<Rule>, CgroupError> {
    let mut rules = rules.iter().map(Rule::new).collect::<Result<Vec<_>, _>>()?;
    if let Some(last) = rules.iter().rposition(Rule::is_everything) {
        rules.drain(..last);
    }
    Ok(rules)
}

/// Applies the rules; none at all leave the cgroup as it is.
pub(super) fn apply(group: Group<'_>, rules: &[DeviceRule], when: When) -> Result<(), CgroupError> {
    let rules = effective(rules)?;
    if rules.is_empty() {
        return Ok(());
    }
    if let Some(mount) = group.hierarchies.v1(Controller::Devices) {
        return lines::apply(&Dir::new(mount, group.path), &rules, when);
    }
    let Some(dir) = group.unified() else {
        return Err(CgroupError::NoController { controller: "devices", setting: "device rules".to_owned() });
    };
    attach(&dir, &rules, when)
}

fn attach(dir: &Dir, rules: &[Rule], when: When) -> Result<(), CgroupError> {
    let everything = matches!(rules, [only] if only.allow && only.is_everything());
    if everything && when == When::Fresh {
        return Ok(());
    }
    let failed = |act| move |source: Errno| CgroupError::DeviceProgram { act, path: dir.path().to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir.path(), flags, Mode::empty())
        .map_err(|source| CgroupError::Open { path: dir.path().to_owned(), source })?;
    let program = bpf::load_device_program(&program::assemble(rules)).map_err(failed("load"))?;
    let old: Vec<OwnedFd> = match when {
        When::Fresh => Vec::new(),
        When::Live => bpf::device_programs(cgroup.as_fd()).map_err(failed("list"))?,
    };
    match old.as_slice() {
        [one] => {
            bpf::attach_device_program(cgroup.as_fd(), program.as_fd(), Some(one.as_fd())).map_err(failed("replace"))
        }
        others => {
            // All attached programs have to agree: the new one first, so that nothing is open in between.
            bpf::attach_device_program(cgroup.as_fd(), program.as_fd(), None).map_err(failed("attach"))?;
            others.iter().try_for_each(|other| {
                bpf::detach_device_program(cgroup.as_fd(), other.as_fd()).map_err(failed("detach"))
            })
        }
    }
}

/// As a v1 control line.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => 'a',
            Some(Kind::Block) => 'b',
            Some(Kind::Char) => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        letters.iter().filter(|(bit, _)| self.access & bit != 0).try_for_each(|(_, letter)| write!(f, "{letter}"))
    }
}

#[cfg(test)]
mod tests;
