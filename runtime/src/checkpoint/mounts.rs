//! The mounts of restored processes: those of the init that waits, written as CRIU's image of mounts. Of the archive's image only the
//! numbers are taken by which its other images call a mount point.
//! Reads /proc; on the blocking pool of the daemon.
//! Owns the names of mounts that CRIU is given. Must never take a filesystem, an option, a flag, a source or a parent from an archive.

use std::{collections::HashMap, fs};

use keelson_api::shim::ExternalMount;
use keelson_shim::mountinfo;

use super::{
    CheckpointError,
    wire::{Fields, image, put_number, put_text, write_image},
};

const MAGIC: u32 = 0x5556_3928;
const FSTYPE_UNSUPPORTED: u64 = 0;
const FSTYPE_PROC: u64 = 1;
/// Device numbers of no filesystem, of the major number that stands for none: CRIU must not find that two mounts are the same.
const DEVICE: u64 = 0x000f_0000;

/// A mount as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u64,
    parent: u64,
    root: String,
    mountpoint: String,
    flags: u64,
    shared: bool,
    proc: bool,
}

/// The mounts of a process.
///
/// # Errors
/// It has ended, or two mounts lie on one mount point.
pub(crate) fn of_process(pid: i32) -> Result<Vec<Mount>, CheckpointError> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = fs::read_to_string(&path).map_err(CheckpointError::io("read", path.as_ref()))?;
    let mounts: Vec<Mount> = mountinfo::parse(&text).map(Mount::from).collect();
    let mut places: Vec<&str> = mounts.iter().map(|mount| mount.mountpoint.as_str()).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(twice) => Err(CheckpointError::mount(twice.first().unwrap_or(&""), "two mounts are there")),
        None => Ok(mounts),
    }
}

/// What CRIU is given from outside: everything but procfs, which belongs to the new processes.
pub(crate) fn external(mounts: &[Mount]) -> Vec<ExternalMount> {
    let given = mounts.iter().filter(|mount| !mount.proc);
    given
        .map(|mount| ExternalMount { mountpoint: mount.mountpoint.clone(), key: key(mount), mount_id: mount.id })
        .collect()
}

fn key(mount: &Mount) -> String {
    format!("k{}", mount.id)
}

/// CRIU's image of `ours`, with the numbers that `archived` gives to the same mount points.
///
/// # Errors
/// The archive has a mount that the request has not, or ours cannot be given to restored processes.
pub(crate) fn rewrite(archived: &[u8], ours: &[Mount]) -> Result<Vec<u8>, CheckpointError> {
    let refused = |reason| CheckpointError::image("mountpoints", reason);
    let (_, messages) = image(archived).map_err(refused)?;
    let mut numbers: HashMap<String, u64> = HashMap::new();
    let mut highest = 0;
    for message in messages {
        let entry = Fields::read(message).map_err(refused)?;
        let number = entry.small(2).map_err(refused)?.ok_or("a mount without a number").map_err(refused)?;
        let place = entry.bytes(7).map_err(refused)?.unwrap_or_default();
        let place = std::str::from_utf8(place).map_err(|_| refused("a mount point that is not text"))?;
        let plain = if place.is_empty() { "/" } else { place };
        if !ours.iter().any(|mount| mount.mountpoint == plain) {
            let shown: String = plain.chars().take(200).flat_map(char::escape_debug).collect();
            return Err(CheckpointError::mount(&shown, "the checkpoint has a mount there and the request has not"));
        }
        if numbers.values().any(|known| *known == u64::from(number))
            || numbers.insert(plain.to_owned(), number.into()).is_some()
        {
            return Err(refused("two mounts of one number or place"));
        }
        highest = highest.max(u64::from(number));
    }
    // What the request has and the processes did not know yet.
    for mount in ours {
        numbers.entry(mount.mountpoint.clone()).or_insert_with(|| {
            highest += 1;
            highest
        });
    }
    if highest >= u64::from(u32::MAX / 2) {
        return Err(refused("a mount with an impossible number"));
    }
    let by_id: HashMap<u64, &Mount> = ours.iter().map(|mount| (mount.id, mount)).collect();
    let number = |mount: &Mount| numbers.get(&mount.mountpoint).copied().unwrap_or(0);
    let messages = ours.iter().zip(1..).map(|(mount, place)| {
        if mount.shared {
            return Err(CheckpointError::mount(
                &mount.mountpoint,
                "a mount with propagation cannot be given to restored processes: request it with private propagation",
            ));
        }
        // The root's own parent is outside: any number that is not in use.
        let parent = by_id.get(&mount.parent).map_or(highest + 1, |parent| number(parent));
        Ok(entry(mount, DEVICE + place, number(mount), parent))
    });
    Ok(write_image(MAGIC, &messages.collect::<Result<Vec<_>, _>>()?))
}

fn entry(mount: &Mount, device: u64, number: u64, parent: u64) -> Vec<u8> {
    let mut message = Vec::new();
    let text = |message: &mut Vec<u8>, field, text: &str| put_text(message, field, text);
    put_number(&mut message, 1, if mount.proc { FSTYPE_PROC } else { FSTYPE_UNSUPPORTED });
    put_number(&mut message, 2, number);
    put_number(&mut message, 3, if mount.proc { DEVICE } else { device });
    put_number(&mut message, 4, parent);
    put_number(&mut message, 5, mount.flags);
    text(&mut message, 6, if mount.proc { &mount.root } else { "/" });
    text(&mut message, 7, &mount.mountpoint);
    text(&mut message, 8, if mount.proc { "proc" } else { "none" });
    text(&mut message, 9, "");
    put_number(&mut message, 10, 0);
    put_number(&mut message, 11, 0);
    put_number(&mut message, 17, 0);
    if !mount.proc && mount.mountpoint != "/" {
        text(&mut message, 18, &key(mount));
    }
    message
}

impl From<mountinfo::Mount<'_>> for Mount {
    fn from(mount: mountinfo::Mount<'_>) -> Self {
        const FLAGS: [(&str, u64); 7] = [
            ("ro", 1),
            ("nosuid", 2),
            ("nodev", 4),
            ("noexec", 8),
            ("noatime", 1 << 10),
            ("nodiratime", 1 << 11),
            ("relatime", 1 << 21),
        ];
        const STRICTATIME: u64 = 1 << 24;
        let mut flags = mount
            .options
            .split(',')
            .filter_map(|word| FLAGS.iter().find(|(name, _)| *name == word))
            .fold(0, |flags, (_, flag)| flags | flag);
        if flags & (1 << 10 | 1 << 21) == 0 {
            flags |= STRICTATIME;
        }
        Self {
            id: mount.id,
            parent: mount.parent,
            flags,
            shared: mount.is_tagged("shared:") || mount.is_tagged("master:"),
            proc: mount.fstype == "proc",
            root: mount.root.into_owned(),
            mountpoint: mount.point.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "100 50 0:50 / / rw,relatime - overlay overlay rw\n\
        101 100 0:51 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n\
        102 101 0:51 /sys /proc/sys ro,relatime - proc proc rw\n\
        103 101 0:6 /null /proc/kcore rw,relatime - devtmpfs devtmpfs rw\n\
        104 100 8:1 /vol /data ro,nosuid,relatime - ext4 /dev/sda1 rw\n";

    fn archived(entries: &[(u64, u64, &str, u64)]) -> Vec<u8> {
        let messages = entries.iter().map(|(number, parent, place, flags)| {
            let mut message = Vec::new();
            put_number(&mut message, 1, 3);
            put_number(&mut message, 2, *number);
            put_number(&mut message, 4, *parent);
            put_number(&mut message, 5, *flags);
            put_text(&mut message, 6, "/../../etc");
            put_text(&mut message, 7, place);
            put_text(&mut message, 8, "/dev/vda");
            put_text(&mut message, 9, "lowerdir=/");
            put_text(&mut message, 18, "/etc");
            message
        });
        write_image(MAGIC, &messages.collect::<Vec<_>>())
    }

    fn read(bytes: &[u8]) -> Vec<(u64, u64, u64, u64, String, String)> {
        let (kind, messages) = image(bytes).unwrap();
        assert_eq!(kind, MAGIC);
        let read = |message| {
            let entry = Fields::read(message).unwrap();
            let number = |field| entry.number(field).unwrap().unwrap();
            let text = |field| String::from_utf8(entry.bytes(field).unwrap().unwrap_or_default().to_vec()).unwrap();
            assert_eq!((text(9), number(10), number(11)), (String::new(), 0, 0));
            (number(1), number(2), number(4), number(5), text(7), text(18))
        };
        messages.into_iter().map(read).collect()
    }

    #[test]
    fn everything_but_the_numbers_is_ours() {
        let ours: Vec<Mount> = mountinfo::parse(OURS).map(Mount::from).collect();
        // Parents that would hide the mask under procfs, writable flags, filesystems of the host: nothing of it arrives.
        let hostile = archived(&[(7, 1, "/", 0), (9, 7, "/proc", 0), (3, 7, "/proc/kcore", 0), (5, 7, "/data", 0)]);
        let rewritten = read(&rewrite(&hostile, &ours).unwrap());
        let relatime = 1 << 21;
        let entry = |kind, number, parent, flags, place: &str, key: &str| {
            (kind, number, parent, flags, place.to_owned(), key.to_owned())
        };
        assert_eq!(
            rewritten,
            [
                entry(0, 7, 11, relatime, "/", ""),
                entry(1, 9, 7, relatime | 14, "/proc", ""),
                entry(1, 10, 9, relatime | 1, "/proc/sys", ""),
                entry(0, 3, 9, relatime, "/proc/kcore", "k103"),
                entry(0, 5, 7, relatime | 3, "/data", "k104"),
            ]
        );
        let given: Vec<_> = external(&ours).into_iter().map(|mount| (mount.mountpoint, mount.mount_id)).collect();
        assert_eq!(given, [("/".into(), 100), ("/proc/kcore".into(), 103), ("/data".into(), 104)]);
    }

    #[test]
    fn mounts_that_nobody_requested_are_refused() {
        let ours: Vec<Mount> = mountinfo::parse(OURS).map(Mount::from).collect();
        for place in ["/host", "/data/../host", "/proc/sys/kernel", "data"] {
            let hostile = archived(&[(7, 1, "/", 0), (8, 7, place, 0)]);
            let error = rewrite(&hostile, &ours).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
        let twice = archived(&[(7, 1, "/", 0), (7, 7, "/data", 0)]);
        assert!(rewrite(&twice, &ours).is_err());
    }

    #[test]
    fn a_mount_with_propagation_is_refused() {
        let root = OURS.lines().next().unwrap();
        let text = format!("{root}\n104 100 8:1 /vol /data rw,relatime master:7 - ext4 /dev/sda1 rw\n");
        let ours: Vec<Mount> = mountinfo::parse(&text).map(Mount::from).collect();
        let error = rewrite(&archived(&[(7, 1, "/", 0)]), &ours).unwrap_err().to_string();
        assert!(error.contains("/data") && error.contains("propagation"), "{error}");
    }
}
