//! Whether the kernel killed for want of memory; also when systemd was quicker than we and has taken the emptied cgroup away.
//! In the shim's loop: one file read when the container is made, one when it has ended.
//! Owns nothing.
//! Must never take a kill elsewhere in the pod for one of the container's own while the container's own count can be read.

use rustix::io::Errno;

use super::dir::Dir;
use super::{Controller, Handle, limits};

impl Handle {
    /// How many processes the kernel has killed here for want of memory; 0 when it does not say.
    pub fn oom_kills(&self) -> u64 {
        self.counted().unwrap_or(0)
    }

    /// What the cgroup above has counted, all below it and what is gone included; None where nobody but us takes cgroups away.
    /// systemd removes a scope as soon as its last process has gone, and with it the scope's count.
    pub fn oom_kills_above(&self) -> Option<u64> {
        self.scope.as_ref()?;
        let (above, _) = self.path.rsplit_once('/')?;
        let dir = Dir::new(self.hierarchies.unified()?, above);
        kills(&dir.try_read("memory.events").ok()?)
    }

    /// Whether there was such a kill, once the init has ended: `above` was counted when the container was made, `killed` is
    /// whether the init died of SIGKILL.
    pub fn had_oom_kill(&self, above: Option<u64>, killed: bool) -> bool {
        match self.counted() {
            Some(kills) => kills > 0,
            None => killed && above.is_some_and(|before| self.oom_kills_above().is_some_and(|now| now > before)),
        }
    }

    /// None: the cgroup is gone.
    fn counted(&self) -> Option<u64> {
        let (dir, file) = match self.group().place(Controller::Memory) {
            limits::Place::V1(dir) => (dir, "memory.oom_control"),
            limits::Place::V2(dir) => (dir, "memory.events"),
            limits::Place::Absent => return Some(0),
        };
        match dir.try_read(file) {
            Err(Errno::NOENT | Errno::NODEV) => None,
            text => Some(kills(&text.unwrap_or_default()).unwrap_or(0)),
        }
    }
}

fn kills(text: &str) -> Option<u64> {
    let counts = text.lines().filter_map(|line| line.split_once(' '));
    // With memory.oom.group the whole cgroup counts once in the second.
    let kills = counts.filter(|(key, _)| ["oom_kill", "oom_group_kill"].contains(key));
    kills.filter_map(|(_, count)| count.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::kills;

    #[test]
    fn kills_are_counted_in_both_versions_files() {
        assert_eq!(kills("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n"), Some(3));
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!((kills("oom_kill 0\n"), kills("")), (Some(0), None));
    }
}
