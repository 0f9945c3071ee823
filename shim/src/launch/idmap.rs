//! Mappings of a user namespace, and namespaces that exist only to carry mappings for id-mapped mounts.
//! In the shim, before the clone.
//! Owns the helper child that a namespace is born with, and reaps it.
//! Must never leave a mapping half-written.

use std::os::fd::OwnedFd;

use keelson_sys::child::{self, Channel, CloneOptions, Message, Op};
use keelson_sys::namespace::NamespaceKinds;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::LaunchError;
use crate::spec::IdMapping;

const STEP: &str = "map user namespace";

/// As the kernel reads it: inside, outside, size; one line each.
pub(super) fn text(mappings: &[IdMapping]) -> String {
    use std::fmt::Write;
    mappings.iter().fold(String::new(), |mut text, mapping| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} {} {}", mapping.container_id, mapping.host_id, mapping.size);
        text
    })
}

/// What an id inside is outside; the same number where nothing is mapped.
pub(super) fn outside(mappings: &[IdMapping], id: u32) -> u32 {
    let found = mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|offset| *offset < mapping.size)?;
        mapping.host_id.checked_add(offset)
    });
    found.unwrap_or(id)
}

/// Writes both maps of a process that is alone in its new user namespace.
pub fn write_maps(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), LaunchError> {
    for (file, mappings) in [("gid_map", gids), ("uid_map", uids)] {
        if mappings.is_empty() {
            return Err(LaunchError::invalid(STEP, file, "a new user namespace needs mappings of users and groups"));
        }
        super::write_file(&format!("/proc/{pid}/{file}"), text(mappings).as_bytes()).map_err(|errno| {
            let error =
                LaunchError::system(STEP, format!("{file}: {}", text(mappings).trim_end().replace('\n', ", ")), errno);
            if errno == Errno::INVAL { error.with_hint("ranges overlap or are empty") } else { error }
        })?;
    }
    Ok(())
}

/// A user namespace with these mappings and no process in it.
pub(super) fn namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system("create user namespace", "", errno);
    let (channel, theirs) = Channel::pair().map_err(failed)?;
    let options = CloneOptions { namespaces: NamespaceKinds::USER, ..CloneOptions::default() };
    let helper = child::fork(&[Op::Sync], (&channel, theirs), options).map_err(failed)?;
    let result = match channel.receive() {
        Ok(Message::Sync) => write_maps(helper.pid, uids, gids).and_then(|()| {
            let path = format!("/proc/{}/ns/user", helper.pid);
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
        }),
        Ok(_) => Err(failed(Errno::CHILD)),
        Err(errno) => Err(failed(errno)),
    };
    helper.end();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_written_as_the_kernel_reads_them() {
        let mapping = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        let mappings = [mapping(0, 1000, 1), mapping(1, 5000, 9)];
        assert_eq!(text(&mappings), "0 1000 1\n1 5000 9\n");
        assert_eq!([0, 1, 9, 10].map(|id| outside(&mappings, id)), [1000, 5000, 5008, 10]);
    }

    #[test]
    fn privileged_a_namespace_without_processes_carries_its_mappings() {
        let mapping = [IdMapping { container_id: 0, host_id: 70_000, size: 100 }];
        let fd = namespace(&mapping, &mapping).unwrap();
        assert!(rustix::fs::fstat(&fd).is_ok());
        assert!(namespace(&mapping, &[]).is_err());
    }

    #[test]
    fn privileged_threads_that_make_namespaces_do_not_wait_for_each_other() {
        let mapping = [IdMapping { container_id: 0, host_id: 70_000, size: 100 }];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| drop(namespace(&mapping, &mapping).unwrap())));
            }
        });
    }
}
