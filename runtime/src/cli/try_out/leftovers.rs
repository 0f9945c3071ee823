//! What a daemon that is gone may have left: the bridge is taken away, and the kernel is looked at for everything else.
//! Blocking, on the main thread, after the daemon has ended. Owns nothing but the daemon's network folder, for a moment.
//! Must never remove what it finds: something left is a fault to be reported, not to be hidden.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keelson_network::Network;

use super::{
    super::{CliError, rooms},
    broken,
};
use crate::config::Config;

/// The kernel ends processes and empties cgroups in its own time.
const SETTLE: Duration = Duration::from_secs(5);
/// Cgroups of a pod are at most this far below a hierarchy's root.
const CGROUP_DEPTH: usize = 4;

/// Takes the bridge away and returns an error with everything that is still there. `made` are the ids of what was made.
pub(super) fn clean_and_look(config: &Config, scratch: &Path, made: &[String]) -> Result<(), CliError> {
    const STEP: &str = "look for anything left";
    if config.network.enabled {
        let network =
            Network::open(rooms::network(config)).map_err(|error| broken(STEP, keelson_api::chain(&error)))?;
        network.close().map_err(|error| broken(STEP, keelson_api::chain(&error)))?;
    }
    let deadline = Instant::now() + SETTLE;
    loop {
        let left = look(config, scratch, made);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(broken(STEP, format_args!("still there: {}", left.join("; "))));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn look(config: &Config, scratch: &Path, made: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(mounts(scratch).into_iter().map(|path| format!("mount {path}")));
    left.extend(processes(scratch, made).into_iter().map(|pid| format!("process {pid}")));
    let mut cgroups = Vec::new();
    cgroups_named(Path::new("/sys/fs/cgroup"), made, CGROUP_DEPTH + 1, &mut cgroups);
    left.extend(cgroups.into_iter().map(|path| format!("cgroup {}", path.display())));
    if Path::new("/sys/class/net").join(&config.network.bridge).exists() {
        left.push(format!("network interface {}", config.network.bridge));
    }
    for folder in ["containers", "sandboxes"] {
        left.extend(children(&config.state.join(folder)).iter().map(|path| format!("folder {}", path.display())));
    }
    left
}

/// Mount points at or below the folder, in this mount namespace.
fn mounts(folder: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}

/// Processes that work in the folder, or that are in a cgroup of something that was made.
fn processes(folder: &Path, made: &[String]) -> Vec<String> {
    let own = std::process::id().to_string();
    let numbers = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    let pids = children(Path::new("/proc")).into_iter().filter_map(numbers);
    pids.filter(|pid| *pid != own && pid.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| {
            let process = Path::new("/proc").join(pid);
            let works_in = std::fs::read_link(process.join("cwd")).is_ok_and(|path| path.starts_with(folder));
            let cgroup = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            works_in || made.iter().any(|id| cgroup.contains(id.as_str()))
        })
        .collect()
}

fn cgroups_named(folder: &Path, made: &[String], depth: usize, found: &mut Vec<PathBuf>) {
    for path in children(folder) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if made.iter().any(|id| name.contains(id.as_str())) {
            found.push(path);
        } else if depth > 0 && path.is_dir() {
            cgroups_named(&path, made, depth - 1, found);
        }
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
