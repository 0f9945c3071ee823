//! The texts of a sandbox's `resolv.conf`, `hosts` and `hostname`.
//! Pure functions (but for `read_host` and its like), any thread. Owns nothing.
//! Must never let a string through that could begin a line or a field of its own (CVE-2022-4318 and its bypass, CVE-2026-15809):
//! every string is checked byte by byte against what its place may hold, before any text is built.

use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

/// Longest host name: the kernel's limit is 64 bytes, a DNS label's is 63.
const HOSTNAME: usize = 63;
/// Longest name of DNS.
const DOMAIN: usize = 253;
/// Longest search line, as the kubelet allows it.
const SEARCH_LINE: usize = 2048;

/// What a sandbox asks of name resolution; all empty: as the host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// A string that may not stand where it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} {text:?}: {why}")]
pub struct InvalidText {
    /// Where it should stand.
    pub place: &'static str,
    /// The string, cut to 100 characters, quoted by the message.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A resolver file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// Its text.
    pub text: String,
    /// Resolvers in it that a pod with a network of its own cannot reach: they are on the host's loopback.
    pub loopback: Vec<IpAddr>,
}

/// The resolver file of a sandbox; `host` is the host's own, used when the sandbox asks for nothing.
///
/// # Errors
/// For the first string that is not what its line may hold.
pub fn resolv_conf(dns: &Dns, host: &str) -> Result<ResolvConf, InvalidText> {
    let Dns { servers, searches, options } = dns;
    if servers.is_empty() && searches.is_empty() && options.is_empty() {
        return Ok(ResolvConf { text: host.to_owned(), loopback: loopback(host) });
    }
    servers.iter().try_for_each(|server| check_server(server))?;
    searches.iter().try_for_each(|search| check_domain("DNS search domain", search))?;
    options.iter().try_for_each(|option| check_option(option))?;
    let mut text = String::new();
    if !searches.is_empty() {
        let line = format!("search {}\n", searches.join(" "));
        if line.len() > SEARCH_LINE {
            return Err(bad("DNS search line", &line, "longer than 2048 characters"));
        }
        text.push_str(&line);
    }
    for server in servers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    let loopback = loopback(&text);
    Ok(ResolvConf { text, loopback })
}

/// The hosts file of a sandbox: loopback, its own name, and `extra` lines of address and names.
///
/// # Errors
/// For the first name that is not a host name.
pub fn hosts(hostname: &str, addresses: &[IpAddr], extra: &[(IpAddr, Vec<String>)]) -> Result<String, InvalidText> {
    check_hostname(hostname)?;
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    for (address, names) in extra {
        names.iter().try_for_each(|name| check_domain("name in hosts file", name))?;
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    Ok(text)
}

/// The hostname file of a sandbox.
///
/// # Errors
/// When it is not a host name.
pub fn hostname(hostname: &str) -> Result<String, InvalidText> {
    check_hostname(hostname)?;
    Ok(format!("{hostname}\n"))
}

/// Whether a text may be a host name: 1 to 63 letters, digits, `-` and `.`, beginning and ending with a letter or digit.
///
/// # Errors
/// When it may not.
pub fn check_hostname(text: &str) -> Result<(), InvalidText> {
    let place = "host name";
    if text.is_empty() || text.len() > HOSTNAME {
        return Err(bad(place, text, "want 1 to 63 characters"));
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if !text.bytes().all(inner) {
        return Err(bad(place, text, "want letters, digits, `-` and `.`"));
    }
    let ends = [text.bytes().next(), text.bytes().last()];
    if !ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric()) || text.contains("..") {
        return Err(bad(place, text, "want a letter or digit first, last and around each `.`"));
    }
    Ok(())
}

/// The host's resolver file, as a pod with a network of its own can use it: when every resolver in it is on loopback, and the
/// local stub's own list is there, that list.
///
/// # Errors
/// Of reading; a host without the file has an empty one.
pub fn read_host() -> io::Result<String> {
    read_host_below(Path::new("/"))
}

/// The host's resolver file as it is: for a pod with the host's network.
///
/// # Errors
/// Of reading; a host without the file has an empty one.
pub fn read_host_unchanged() -> io::Result<String> {
    read(Path::new("/"), "etc/resolv.conf")
}

fn read_host_below(root: &Path) -> io::Result<String> {
    let text = read(root, "etc/resolv.conf")?;
    let all = servers(&text).count();
    if all != 0 && loopback(&text).len() == all {
        let behind = read(root, "run/systemd/resolve/resolv.conf")?;
        if servers(&behind).count() > loopback(&behind).len() {
            return Ok(behind);
        }
    }
    Ok(text)
}

fn read(root: &Path, path: &str) -> io::Result<String> {
    match fs::read_to_string(root.join(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

fn servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let server = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        server.split('%').next()?.parse().ok()
    })
}

fn loopback(text: &str) -> Vec<IpAddr> {
    let on_loopback = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_unspecified(),
        IpAddr::V6(address) => {
            *address == Ipv6Addr::LOCALHOST || address.to_ipv4_mapped().is_some_and(|mapped| mapped.is_loopback())
        }
    };
    servers(text).filter(on_loopback).collect()
}

fn check_server(text: &str) -> Result<(), InvalidText> {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    let parsed = address.parse::<IpAddr>();
    let zone_fits = zone.is_none_or(|zone| {
        (1..=15).contains(&zone.len())
            && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    });
    match parsed {
        Ok(IpAddr::V4(_)) if zone.is_none() => Ok(()),
        Ok(IpAddr::V6(_)) if zone_fits => Ok(()),
        Ok(_) | Err(_) => Err(bad("DNS server", text, "want an IP address")),
    }
}

fn check_domain(place: &'static str, text: &str) -> Result<(), InvalidText> {
    if text == "." {
        return Ok(());
    }
    if text.is_empty() || text.len() > DOMAIN + 1 {
        return Err(bad(place, text, "want 1 to 253 characters"));
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !text.bytes().all(fits) {
        return Err(bad(place, text, "want letters, digits, `-`, `_` and `.`"));
    }
    let labels = text.strip_suffix('.').unwrap_or(text);
    if labels.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(bad(place, text, "want 1 to 63 characters between dots"));
    }
    Ok(())
}

fn check_option(text: &str) -> Result<(), InvalidText> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':' | b'.' | b'/' | b',');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(fits) {
        return Err(bad("DNS option", text, "want 1 to 128 of letters, digits and - _ : . / ,"));
    }
    Ok(())
}

fn bad(place: &'static str, text: &str, why: &'static str) -> InvalidText {
    InvalidText { place, text: text.chars().take(100).collect(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Dns {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Dns { servers: owned(servers), searches: owned(searches), options: owned(options) }
    }

    #[test]
    fn a_resolver_file_is_written_in_order() {
        let dns =
            dns(&["10.96.0.10", "fd00::a", "fe80::1%eth0"], &["a.svc.cluster.local", "b."], &["ndots:5", "edns0"]);
        let made = resolv_conf(&dns, "nameserver 127.0.0.53\n").unwrap();
        let want = "search a.svc.cluster.local b.\nnameserver 10.96.0.10\nnameserver fd00::a\nnameserver fe80::1%eth0\n\
                    options ndots:5 edns0\n";
        assert_eq!((made.text.as_str(), made.loopback.len()), (want, 0));
    }

    #[test]
    fn asking_for_nothing_copies_the_host_and_notes_its_loopback_resolvers() {
        let host = "# stub\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\noptions edns0\n";
        let made = resolv_conf(&Dns::default(), host).unwrap();
        assert_eq!(made.text, host);
        assert_eq!(made.loopback, ["127.0.0.53".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    }

    #[test]
    fn strings_that_would_begin_a_line_or_a_field_are_refused() {
        for bad in [
            "1.1.1.1\nnameserver 6.6.6.6",
            "1.1.1.1 ",
            "1.1.1.1\r",
            "1.1.1.1\0",
            "",
            "dns.example",
            "1.1.1.1%eth0",
            "::1%",
            "::1%a\nb",
        ] {
            assert!(resolv_conf(&dns(&[bad], &[], &[]), "").is_err(), "{bad:?}");
        }
        for bad in ["a\nb", "a b", "a\tb", "a\r", "a\0", "", "a..b", ".a", "a;b", "a#b", "\u{e4}", &"a".repeat(64)] {
            assert!(resolv_conf(&dns(&[], &[bad], &[]), "").is_err(), "{bad:?}");
        }
        for bad in ["ndots:5\noptions", "a b", "a\r", "a\0", "", "a#"] {
            assert!(resolv_conf(&dns(&[], &[], &[bad]), "").is_err(), "{bad:?}");
        }
        for bad in
            ["", "a\n", "a\r", "a\0b", "a b", "a\t", "-a", "a-", ".a", "a.", "a..b", "a_b", "a:b", &"a".repeat(64)]
        {
            assert!(hostname(bad).is_err() && hosts(bad, &[], &[]).is_err(), "{bad:?}");
        }
        assert!(hosts("a", &[], &[([1, 1, 1, 1].into(), vec!["x\n6.6.6.6 y".into()])]).is_err());
    }

    #[test]
    fn hosts_and_hostname_say_what_the_pod_is_called() {
        let text = hosts("web-0.web", &["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()], &[]).unwrap();
        assert!(
            text.ends_with("10.88.0.2\tweb-0.web\nfd00::2\tweb-0.web\n") && text.starts_with("127.0.0.1\tlocalhost\n")
        );
        assert_eq!(hostname(&"a".repeat(63)).unwrap().len(), 64);
    }

    #[test]
    fn a_stub_on_loopback_is_looked_behind() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read_host_below(root.path()).unwrap(), "");
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("run/systemd/resolve")).unwrap();
        fs::write(root.path().join("etc/resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(read_host_below(root.path()).unwrap(), "nameserver 127.0.0.53\n");
        fs::write(root.path().join("run/systemd/resolve/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(read_host_below(root.path()).unwrap(), "nameserver 192.0.2.1\n");
    }

    proptest::proptest! {
        #[test]
        fn no_string_adds_a_line(server in "\\PC{0,20}|[\\x00-\\x7f]{0,20}", search in "[\\x00-\\x7f]{0,20}", name in "[\\x00-\\x7f]{0,20}") {
            let asked = dns(&[&server], &[&search], &[]);
            if let Ok(made) = resolv_conf(&asked, "") {
                proptest::prop_assert_eq!(made.text.split(['\n', '\r', '\0']).count(), 3);
            }
            if let Ok(text) = hosts(&name, &[[10, 0, 0, 2].into()], &[]) {
                proptest::prop_assert_eq!(text.lines().count(), 5);
                proptest::prop_assert!(!text.contains(['\r', '\0']));
            }
        }
    }
}
