//! Traffic counters from `/proc/net/dev`, of the host and of pods: one file read, no netlink, so never behind the kernel's
//! network lock, which others may hold for long.
//! Runs on the caller's thread for some microseconds. Owns nothing but the open file of `HostCounters`.
//! Must never tell another namespace's numbers: whose file it was is looked at before it is read.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::netlink::link::Traffic;

/// Bytes asked for in one read; the file is longer on a host with many interfaces, and then is read on.
const CHUNK: usize = 16 * 1024;

/// The counters of one network namespace, whichever thread asks.
#[derive(Debug)]
pub(crate) struct HostCounters(File);

impl HostCounters {
    /// Of the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        File::open("/proc/thread-self/net/dev").map(Self)
    }

    /// Every interface by name, as the host counts.
    pub(crate) fn read(&self) -> io::Result<HashMap<String, Traffic>> {
        Ok(parse(&whole(&self.0)?).into_iter().collect())
    }
}

/// What a pod's interface has done, told by its other end on the host: what one sends the other receives.
#[must_use]
pub fn other_end(host: &Traffic) -> Traffic {
    Traffic {
        rx_bytes: host.tx_bytes,
        rx_packets: host.tx_packets,
        rx_errors: host.tx_errors,
        rx_dropped: host.tx_dropped,
        tx_bytes: host.rx_bytes,
        tx_packets: host.rx_packets,
        tx_errors: host.rx_errors,
        tx_dropped: host.rx_dropped,
    }
}

/// Every interface but loopback of the network namespace that is pinned at `netns`, seen through a process that is in it. No
/// thread enters it.
///
/// # Errors
/// `NotFound` when the process has ended or is in another namespace, which is how a number that was given out again shows.
pub fn of_process(pid: i32, netns: &Path) -> io::Result<Vec<(String, Traffic)>> {
    let pinned = std::fs::metadata(netns)?.ino();
    // Everything after this is about the same process, or fails.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
    let of = rustix::fs::statat(&process, "ns/net", AtFlags::empty())?.st_ino;
    if of != pinned {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file: OwnedFd = rustix::fs::openat(&process, "net/dev", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut interfaces = parse(&whole(&file)?);
    interfaces.retain(|(name, _)| name != "lo");
    Ok(interfaces)
}

fn whole(file: impl std::os::fd::AsFd) -> io::Result<String> {
    let mut bytes = vec![0; CHUNK];
    let mut end = 0;
    loop {
        let offset = u64::try_from(end).unwrap_or(u64::MAX);
        let room = bytes.get_mut(end..).unwrap_or_default();
        match rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut *room, offset))? {
            0 => {
                bytes.truncate(end);
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            read => end += read,
        }
        if end == bytes.len() {
            bytes.resize(end + CHUNK, 0);
        }
    }
}

/// Two lines of heading, then `name: rx bytes packets errs drop fifo frame compressed multicast, tx the same`.
fn parse(text: &str) -> Vec<(String, Traffic)> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_ascii_whitespace().map_while(|number| number.parse::<u64>().ok());
        let mut next = || numbers.next();
        let (rx_bytes, rx_packets, rx_errors, rx_dropped) = (next()?, next()?, next()?, next()?);
        let _fifo_frame_compressed_multicast = (next()?, next()?, next()?, next()?);
        let (tx_bytes, tx_packets, tx_errors, tx_dropped) = (next()?, next()?, next()?, next()?);
        let traffic =
            Traffic { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped };
        Some((name.trim().to_owned(), traffic))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 2856573715  163150    0    0    0     0          0         0 2856573715  163150    0    0    0     0       0          0
kl8dc00bd49954f:     220       2    1    5    0     0          0         0      660       6    3    4    0     0       0          0
";

    #[test]
    fn the_kernels_table_is_read() {
        let read = parse(TEXT);
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].0, "kl8dc00bd49954f");
        let traffic = read[1].1;
        assert_eq!((traffic.rx_bytes, traffic.rx_packets, traffic.rx_errors, traffic.rx_dropped), (220, 2, 1, 5));
        assert_eq!((traffic.tx_bytes, traffic.tx_packets, traffic.tx_errors, traffic.tx_dropped), (660, 6, 3, 4));
    }

    #[test]
    fn the_other_end_received_what_this_one_sent() {
        let host = parse(TEXT).remove(1).1;
        let pod = other_end(&host);
        assert_eq!((pod.rx_bytes, pod.tx_bytes, pod.rx_errors, pod.tx_dropped), (660, 220, 3, 5));
        assert_eq!(other_end(&pod), host);
    }

    #[test]
    fn a_process_elsewhere_is_not_taken_for_one_of_the_pod() {
        let own = i32::try_from(std::process::id()).unwrap();
        let here = of_process(own, Path::new("/proc/self/ns/net")).unwrap();
        assert!(here.iter().all(|(name, _)| name != "lo"));
        // Any other file stands for another namespace.
        let refused = of_process(own, Path::new("/proc/self/status")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_same_file_is_read_again_and_again() {
        let counters = HostCounters::open().unwrap();
        assert!(counters.read().unwrap().contains_key("lo"));
        assert!(counters.read().unwrap().contains_key("lo"));
    }
}
