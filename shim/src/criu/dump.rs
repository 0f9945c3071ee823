//! What CRIU is told to write a container's processes to files.
//! In the process that becomes CRIU; the names of streams also in the supervisor.
//! Owns nothing.
//! Must never let CRIU copy the content of a mount: every one but the container's procfs, which only its type tells, is ours to
//! make again.

use std::fmt::Write as _;

use keelson_shim::mountinfo;
use rustix::fs::FileType;

use super::{CriuError, DUMP_LOG, Job, common, enter, system};

/// Takes CRIU's place; gives its arguments.
pub(super) fn prepare(job: &Job) -> Result<Vec<String>, CriuError> {
    let path = format!("/proc/{}/mountinfo", job.init);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        system("read", &path)(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
    })?;
    let mut words = common(job, "dump", DUMP_LOG);
    words.extend(["--tree".to_owned(), job.init.to_string()]);
    // Mounts made outside that would show inside: the volumes' propagation is the host's business.
    words.push("--enable-external-masters".to_owned());
    // Either way nothing runs between the dump and the copy of its files.
    match &job.freezer {
        Some(freezer) => words.extend(["--leave-running", "--freeze-cgroup", freezer].map(str::to_owned)),
        None => words.push("--leave-stopped".to_owned()),
    }
    for mount in mountinfo::parse(&text).filter(|mount| mount.point != "/" && mount.fstype != "proc") {
        words.extend(["--external".to_owned(), format!("mnt[{}]:m{}", mount.point, mount.id)]);
    }
    for name in stream_names(job.init).into_iter().filter(|name| !name.is_empty() && !name.starts_with("pipe:")) {
        words.extend(["--external".to_owned(), name]);
    }
    enter(job.init)?;
    Ok(words)
}

/// By what names CRIU knows the standard streams of the init that come from outside: pipes, and files that lie on no mount of the
/// container (the host's /dev/null). Empty for a stream that is its own.
pub(crate) fn stream_names(init: i32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap_or_default();
    let own: Vec<u64> = mountinfo::parse(&text).map(|mount| mount.id).collect();
    (0..3).map(|number| stream_name(init, number, &own).unwrap_or_default()).collect()
}

fn stream_name(init: i32, number: u8, own: &[u64]) -> Option<String> {
    let path = format!("/proc/{init}/fd/{number}");
    let stat = rustix::fs::stat(&path).ok()?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        let link = std::fs::read_link(&path).ok()?;
        return link.to_str().filter(|link| link.starts_with("pipe:[")).map(str::to_owned);
    }
    let info = std::fs::read_to_string(format!("/proc/{init}/fdinfo/{number}")).ok()?;
    let mount: u64 = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
    let mut name = String::new();
    if !own.contains(&mount) {
        write!(name, "file[{mount:x}:{:x}]", stat.st_ino).ok()?;
    }
    Some(name)
}
