//! What the kernel says of this process: memory, descriptors, CPU time, as Prometheus' process metrics have them.
//! Reads a few files of /proc on the thread of a scrape. Owns nothing. Must never fail a scrape: what cannot be read is left out.

use std::fs;

/// This process now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) cpu_seconds: f64,
    /// Since the epoch.
    pub(super) start_seconds: f64,
    pub(super) threads: u64,
    pub(super) open_fds: u64,
    /// `None`: no limit.
    pub(super) max_fds: Option<u64>,
}

impl Process {
    pub(super) fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok())?;
        let fds = fs::read_dir("/proc/self/fd").ok()?.count();
        let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        // One is the directory being read.
        let open_fds = u64::try_from(fds.saturating_sub(1)).ok()?;
        parse(&stat, boot, page, rustix::param::clock_ticks_per_second()).map(|process| Self {
            open_fds,
            max_fds: nofile.current,
            ..process
        })
    }
}

/// `/proc/self/stat`, proc_pid_stat(5): the fields after the program's name, which may hold anything.
fn parse(stat: &str, boot: u64, page: u64, ticks: u64) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Field 3, the state, is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    #[expect(clippy::cast_precision_loss, reason = "seconds to the hundredth, for centuries")]
    let seconds = |count: u64| count as f64 / ticks.max(1) as f64;
    #[expect(clippy::cast_precision_loss, reason = "seconds since the epoch fit")]
    Some(Process {
        cpu_seconds: seconds(field(14)? + field(15)?),
        threads: field(20)?,
        start_seconds: boot as f64 + seconds(field(22)?),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page,
        open_fds: 0,
        max_fds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_process_with_a_nasty_name_is_read() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 150 50 0 0 20 0 9 0 300 4096000 25 18446744073709551615 0";
        let want = Process {
            resident_bytes: 25 * 4096,
            virtual_bytes: 4_096_000,
            cpu_seconds: 2.0,
            start_seconds: 1003.0,
            threads: 9,
            open_fds: 0,
            max_fds: None,
        };
        assert_eq!(parse(line, 1000, 4096, 100), Some(want));
    }

    #[test]
    fn this_process_has_what_every_process_has() {
        let now = Process::read().unwrap();
        assert!(now.resident_bytes > 1 << 20 && now.open_fds >= 3 && now.threads >= 1, "{now:?}");
    }
}
