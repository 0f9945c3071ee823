//! What the processes of a container hold: descriptors, sockets, limits; counted in /proc when metrics are asked for.
//! Runs on the blocking pool; bounded for each container, because a container may have as many descriptors as it likes.
//! Owns nothing. Must never open what a descriptor stands for.

use keelson_shim::cgroup::Handle;
use rustix::fs::{Dir, Mode, OFlags};

/// Descriptors looked at in one container; beyond, the figures are lower bounds.
const MOST: u64 = 16_384;

/// See the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Processes {
    /// Processes.
    pub count: u64,
    /// Their open descriptors, at most about 16,384.
    pub files: u64,
    /// Those that are sockets.
    pub sockets: u64,
    /// Soft limit of open descriptors of the first process; none when it cannot be told, `u64::MAX` without limit.
    pub files_limit: Option<u64>,
}

/// Of the container in this cgroup whose first process is `init`.
pub(super) fn of(handle: &Handle, init: Option<i32>) -> Processes {
    let pids = handle.pids().unwrap_or_default();
    let mut processes = Processes {
        count: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        files_limit: init.and_then(files_limit),
        ..Processes::default()
    };
    for pid in pids {
        // One that ended meanwhile holds nothing.
        let _ = descriptors(pid, &mut processes);
        if processes.files >= MOST {
            break;
        }
    }
    processes
}

fn descriptors(pid: i32, processes: &mut Processes) -> Result<(), rustix::io::Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    let mut target = Vec::with_capacity(64);
    for entry in Dir::read_from(&dir)?.flatten() {
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        processes.files += 1;
        target = match rustix::fs::readlinkat(&dir, name, target) {
            Ok(link) => {
                processes.sockets += u64::from(link.to_bytes().starts_with(b"socket:"));
                link.into_bytes()
            }
            Err(_) => Vec::new(),
        };
        target.clear();
        if processes.files >= MOST {
            break;
        }
    }
    Ok(())
}

fn files_limit(pid: i32) -> Option<u64> {
    parse_limit(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// `Max open files            1024                 524288               files`.
fn parse_limit(text: &str) -> Option<u64> {
    let soft = text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_sockets_of_a_process_are_told_apart() {
        let own = i32::try_from(std::process::id()).unwrap();
        let count = || {
            let mut processes = Processes::default();
            descriptors(own, &mut processes).unwrap();
            processes
        };
        let before = count();
        let sockets: Vec<_> = (0..40).map(|_| std::os::unix::net::UnixDatagram::unbound().unwrap()).collect();
        let after = count();
        // Other tests of this process open and close theirs meanwhile.
        assert!(after.sockets >= before.sockets + 20 && after.files >= after.sockets, "{before:?} {after:?}");
        drop(sockets);
    }

    #[test]
    fn the_soft_limit_is_read() {
        let head = "Limit                     Soft Limit           Hard Limit           Units     \n";
        let line = |soft: &str| {
            format!("{head}Max open files            {soft}                 524288               files     \n")
        };
        assert_eq!(parse_limit(&line("1024")), Some(1024));
        assert_eq!(parse_limit(&line("unlimited")), Some(u64::MAX));
        assert_eq!(parse_limit(head), None);
    }
}
