//! `keelson-shim hello`: the program of the image that is built into keelson, for a first pod without a registry.
//! Runs inside a container, as its only process and with nothing but itself in the root filesystem.
//! Owns nothing.
//! Must never need a library, a shell, a name service or a writable file.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use keelson_sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

/// Says who and where this process is. With `once` it tells its identity and ends; without, it stays until it is told to end.
pub(crate) fn run(once: bool) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let name = rustix::system::uname();
    let host = name.nodename().to_string_lossy();
    if once {
        let mut root: Vec<_> =
            std::fs::read_dir("/")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        root.sort();
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        writeln!(
            out,
            "uid={uid} gid={gid} hostname={host} root={}",
            root.join(","),
            uid = uid.as_raw(),
            gid = gid.as_raw()
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let signals = SignalFd::block(&[Signal::TERM.as_raw(), Signal::INT.as_raw()])?;
    writeln!(out, "Hello from keelson: this is process {} of pod {host}.", std::process::id())?;
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    for address in ipv4(&read("/proc/net/fib_trie")) {
        writeln!(out, "address {address}")?;
    }
    for address in ipv6(&read("/proc/net/if_inet6")) {
        writeln!(out, "address {address}")?;
    }
    out.flush()?;
    while signals.read()?.is_none() {
        let _ = rustix::event::poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
    }
    writeln!(out, "Goodbye.")?;
    Ok(ExitCode::SUCCESS)
}

/// The addresses of this network namespace's own interfaces but the loopback, from the kernel's forwarding table.
fn ipv4(table: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["|--", address] => last = address.parse::<Ipv4Addr>().ok(),
            ["/32", "host", "LOCAL"] => {
                found.extend(last.filter(|address| !address.is_loopback() && !found.contains(address)))
            }
            _ => {}
        }
    }
    found
}

/// The same for IPv6: global addresses alone.
fn ipv6(table: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let bits = u128::from_str_radix(words.next()?, 16).ok()?;
        let scope = words.nth(2)?;
        (scope == "00").then_some(Ipv6Addr::from_bits(bits))
    };
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_found_and_loopback_is_left_out() {
        let table = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.88.0.0
        /24 link UNICAST
Local:
     +-- 10.88.0.0/24 2 0 2
        |-- 10.88.0.7
           /32 host LOCAL
        |-- 10.88.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.88.0.7
        /32 host LOCAL
";
        assert_eq!(ipv4(table), ["10.88.0.7".parse::<Ipv4Addr>().unwrap()]);
        let table = "\
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000007 02 40 00 82     eth0
fe800000000000000000000000000001 02 40 20 80     eth0
";
        assert_eq!(ipv6(table), ["fd00::7".parse::<Ipv6Addr>().unwrap()]);
    }
}
