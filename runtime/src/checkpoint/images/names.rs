//! Which images a container's checkpoint has, by their names.
//! Pure.
//! Owns the list. Must never take a name for that of an image it only begins with.

/// Images that are left behind: CRIU's notes on its own work, and cgroups, which are ours.
const DROPPED: [&str; 7] =
    ["cgroup.img", "stats-dump", "stats-restore", "dump.log", "restore.log", "descriptors.json", "irmap-cache"];
/// Images whose names are followed by a number, and single ones.
const NUMBERED: [&str; 11] = [
    "core-",
    "fdinfo-",
    "fs-",
    "ghost-file-",
    "ids-",
    "mm-",
    "mountpoints-",
    "pagemap-",
    "pagemap-shmem-",
    "pages-",
    "timens-",
];
const SINGLE: [&str; 11] = [
    "inventory",
    "pstree",
    "files",
    "seccomp",
    "sk-queues",
    "pipes-data",
    "fifo-data",
    "filelocks",
    "memfd",
    "remap-fpath",
    "eventpoll-tfd",
];

/// What an image is by its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Dropped,
    Numbered(&'static str),
    Single(&'a str),
}

/// What the name stands for; `None`: for nothing that a container's checkpoint has.
pub(super) fn kind(name: &str) -> Option<Kind<'_>> {
    if DROPPED.contains(&name) {
        return Some(Kind::Dropped);
    }
    let stem = name.strip_suffix(".img")?;
    if let Some(single) = SINGLE.iter().find(|single| **single == stem) {
        return Some(Kind::Single(single));
    }
    let numbered = NUMBERED.iter().find(|prefix| {
        let number = stem.strip_prefix(**prefix).unwrap_or_default();
        !number.is_empty() && number.len() <= 20 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    numbered.map(|prefix| Kind::Numbered(prefix))
}
