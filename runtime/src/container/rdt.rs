//! A container's share of cache and memory bandwidth: a group of the kernel's resctrl file system (OCI `linux.intelRdt`).
//! Blocks for some writes to it; on the blocking pool, while a container that asks for one is created or removed.
//! Owns a group only when it made it under the container's own id. Must never change a group that somebody else set up.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use keelson_shim::mountinfo;

use crate::oci::cdi::IntelRdt;

/// Why a container does not get its share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RdtError {
    /// The host has none.
    #[error(
        "no resctrl file system is mounted: mount -t resctrl resctrl /sys/fs/resctrl, on a processor with such control"
    )]
    NotMounted,
    /// A group that is to be there already.
    #[error(
        "resctrl group `{group}` does not exist: make it, or say what it shall be (l3CacheSchema, memBwSchema, schemata)"
    )]
    Missing {
        /// Its name.
        group: String,
    },
    /// A group that is otherwise.
    #[error("resctrl group `{group}` does not have `{line}`: change one of the two")]
    Differs {
        /// Its name.
        group: String,
        /// What is asked for.
        line: String,
    },
    /// The kernel refused.
    #[error("{act} `{path}`: {reason}")]
    Failed {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: String,
        /// Why, with the kernel's own words if it has any.
        reason: String,
    },
}

/// Where the first resctrl is mounted, from the text of mountinfo.
pub(crate) fn root(table: &str) -> Option<PathBuf> {
    mountinfo::parse(table).find(|mount| mount.fstype == "resctrl").map(|mount| PathBuf::from(mount.point.as_ref()))
}

/// The group of a container, and whether it is the container's own; nothing is touched.
pub(crate) fn group(root: &Path, rdt: &IntelRdt, id: &str) -> (PathBuf, bool) {
    let own = rdt.clos_id.is_empty();
    (root.join(if own { id } else { &rdt.clos_id }), own)
}

/// What is to be removed with the container, inner first: folders that are the kernel's to empty.
pub(crate) fn folders(root: &Path, rdt: &IntelRdt, id: &str) -> Vec<PathBuf> {
    let (group, own) = group(root, rdt, id);
    let monitor = rdt.monitors().then(|| group.join("mon_groups").join(id));
    monitor.into_iter().chain(own.then_some(group)).collect()
}

/// Puts a process, and all that it will start, into the container's group, which is made when it is not there.
pub(crate) fn join(root: &Path, rdt: &IntelRdt, id: &str, pid: i32) -> Result<(), RdtError> {
    let (path, _) = group(root, rdt, id);
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (lines, exists) = (rdt.lines(), path.is_dir());
    if !exists && lines.is_empty() && !rdt.clos_id.is_empty() {
        return Err(RdtError::Missing { group: name() });
    }
    if !exists {
        let made = fs::create_dir(&path);
        made.map_err(|error| failed(root, "make resctrl group", &path, &error))?;
    }
    let schemata = path.join("schemata");
    if exists && !lines.is_empty() {
        let failed = |error| failed(root, "read", &schemata, &error);
        let found = fs::read_to_string(&schemata).map_err(failed)?;
        if let Some(line) = lines.iter().find(|line| !has(&found, line)) {
            return Err(RdtError::Differs { group: name(), line: (*line).to_owned() });
        }
    } else if !lines.is_empty() {
        write(root, &schemata, &(lines.join("\n") + "\n"))?;
    }
    write(root, &path.join("tasks"), &pid.to_string())?;
    if rdt.monitors() {
        let monitor = path.join("mon_groups").join(id);
        match fs::create_dir(&monitor) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(root, "make monitoring group", &monitor, &error));
            }
            Ok(()) | Err(_) => write(root, &monitor.join("tasks"), &pid.to_string())?,
        }
    }
    Ok(())
}

/// Removes folders; those that are gone are done.
pub(crate) fn remove(folders: &[PathBuf]) -> io::Result<()> {
    folders.iter().try_for_each(|path| match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    })
}

/// Whether a group's schemata say this line, which may be about fewer domains: `L3:0=f` is in `L3:0=f;1=ff`.
fn has(schemata: &str, line: &str) -> bool {
    let parts = |line: &str| -> Option<(String, Vec<(String, String)>)> {
        let (resource, domains) = line.split_once(':')?;
        let number = |text: &str| text.trim().trim_start_matches('0').to_ascii_lowercase();
        let domains = domains.split(';').filter_map(|domain| domain.split_once('='));
        Some((resource.trim().to_owned(), domains.map(|(id, value)| (number(id), number(value))).collect()))
    };
    let Some((resource, wanted)) = parts(line) else { return false };
    let found = schemata.lines().filter_map(parts).find(|(name, _)| *name == resource);
    found.is_some_and(|(_, found)| wanted.iter().all(|domain| found.contains(domain)))
}

fn write(root: &Path, path: &Path, text: &str) -> Result<(), RdtError> {
    let written = fs::OpenOptions::new().write(true).open(path);
    let written = written.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|error| failed(root, "write", path, &error))
}

fn failed(root: &Path, act: &'static str, path: &Path, error: &io::Error) -> RdtError {
    // resctrl says why in words, elsewhere.
    let words = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
    let words = words.trim();
    let reason = if words.is_empty() || words == "ok" { error.to_string() } else { format!("{error}: {words}") };
    RdtError::Failed { act, path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a resctrl with these groups.
    fn resctrl(groups: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, schemata) in groups {
            let path = root.path().join(name);
            fs::create_dir_all(path.join("mon_groups/c1")).unwrap();
            for (file, text) in [("schemata", *schemata), ("tasks", ""), ("mon_groups/c1/tasks", "")] {
                crate::store::write_new(&path.join(file), text.as_bytes(), 0o600).unwrap();
            }
        }
        root
    }

    fn rdt(clos_id: &str, l3: &str) -> IntelRdt {
        IntelRdt { clos_id: clos_id.into(), l3_cache_schema: l3.into(), ..IntelRdt::default() }
    }

    #[test]
    fn a_group_that_is_there_is_joined_when_it_is_as_wanted() {
        let root = resctrl(&[("gold", "    L3:0=0ff;1=fff\n    MB:0=100;1=100\n")]);
        let read = |file: &str| fs::read_to_string(root.path().join("gold").join(file)).unwrap();
        for wanted in ["", "L3:0=ff", "L3:1=fff;0=ff", "MB:0=100"] {
            join(root.path(), &rdt("gold", wanted), "c1", 42).unwrap();
        }
        assert_eq!((read("tasks").as_str(), read("schemata").lines().count()), ("42", 2), "and is not written to");
        let error = join(root.path(), &rdt("gold", "L3:0=f"), "c1", 42).unwrap_err();
        assert_eq!(error, RdtError::Differs { group: "gold".into(), line: "L3:0=f".into() });
        let error = join(root.path(), &rdt("silver", ""), "c1", 42).unwrap_err();
        assert_eq!(error, RdtError::Missing { group: "silver".into() });
        let monitored = IntelRdt { enable_monitoring: true, ..rdt("gold", "") };
        join(root.path(), &monitored, "c1", 43).unwrap();
        assert_eq!(read("mon_groups/c1/tasks"), "43");
        assert_eq!(folders(root.path(), &monitored, "c1"), [root.path().join("gold/mon_groups/c1")]);
    }

    #[test]
    fn a_group_of_the_containers_own_is_made_and_goes_with_it() {
        let root = resctrl(&[]);
        let own = rdt("", "L3:0=f");
        // No kernel fills it here: the writes after the making are what fails.
        let error = join(root.path(), &own, "c1", 42).unwrap_err();
        assert!(
            matches!(&error, RdtError::Failed { act: "write", path, .. } if path.ends_with("c1/schemata")),
            "{error}"
        );
        let left = folders(root.path(), &own, "c1");
        assert_eq!(left, [root.path().join("c1")]);
        remove(&left).unwrap();
        remove(&left).unwrap();
        assert!(!root.path().join("c1").exists());
    }

    #[test]
    fn resctrl_is_found_where_it_is_mounted() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n40 23 0:33 / /sys/fs/resctrl rw - resctrl resctrl rw\n";
        assert_eq!(root(table), Some("/sys/fs/resctrl".into()));
        assert_eq!(root(""), None);
    }
}
