//! The files of a sandbox that containers find in /etc: resolver, hosts, host name.
//! Blocks for a few small writes; on the blocking pool while a sandbox is made.
//! Owns the three files in the sandbox's directory. Every text that enters them was checked (`check`), or is a file of the host.
//! Must never write an unchecked text.

use std::{io, net::IpAddr, path::Path};

use keelson_network::dns as network;

use super::spec::{Dns, NetworkMode, SandboxSpec};
use crate::{
    dirs::SandboxDir,
    selinux,
    store::{read_bounded, write_new},
};

/// Longest file of the host that is copied, bytes.
const COPY_MAX: u64 = 256 * 1024;
/// Containers that are not root read them.
const MODE: u32 = 0o644;

/// Resolver and host name.
pub(crate) fn write(spec: &SandboxSpec, hostname: &str, dir: &SandboxDir) -> io::Result<()> {
    let asked = spec.dns.as_ref().map(dns).unwrap_or_default();
    let host = match spec.namespaces.network {
        NetworkMode::Sandbox => network::read_host()?,
        NetworkMode::Host => String::from_utf8_lossy(&copy(Path::new("/etc/resolv.conf"))?).into_owned(),
    };
    let resolver = network::resolv_conf(&asked, &host).map_err(invalid)?;
    if !resolver.loopback.is_empty() && spec.namespaces.network == NetworkMode::Sandbox {
        tracing::warn!(sandbox = spec.key.name, servers = ?resolver.loopback,
            "the sandbox's resolvers are on the host's loopback, which it cannot reach: give it a DNS configuration");
    }
    write_new(&dir.resolv_conf(), resolver.text.as_bytes(), MODE)?;
    // The host's own name was not checked by us, and may be longer.
    write_new(&dir.hostname(), format!("{hostname}\n").as_bytes(), MODE)
}

/// Hosts: last, when the addresses are known.
pub(crate) fn write_hosts(
    spec: &SandboxSpec,
    hostname: &str,
    addresses: &[IpAddr],
    dir: &SandboxDir,
) -> io::Result<()> {
    let text = match spec.namespaces.network {
        NetworkMode::Host => copy(Path::new("/etc/hosts"))?,
        NetworkMode::Sandbox => network::hosts(hostname, addresses, &[]).map_err(invalid)?.into_bytes(),
    };
    write_new(&dir.hosts(), &text, MODE)
}

/// With a user namespace the three files are its root's, as they would be the host's root's without.
pub(crate) fn hand_over(spec: &SandboxSpec, dir: &SandboxDir) -> io::Result<()> {
    let Some(namespace) = &spec.user_namespace else { return Ok(()) };
    let (uid, gid) = namespace.root();
    [dir.resolv_conf(), dir.hostname(), dir.hosts()]
        .iter()
        .try_for_each(|path| std::os::unix::fs::lchown(path, Some(uid), Some(gid)))
}

/// With SELinux the three files are what the sandbox's containers may read and write.
pub(crate) fn label(dir: &SandboxDir, label: &str) -> io::Result<()> {
    [dir.resolv_conf(), dir.hostname(), dir.hosts()].iter().try_for_each(|path| selinux::label(path, label))
}

/// In the network room's words.
pub(crate) fn dns(asked: &Dns) -> network::Dns {
    network::Dns { servers: asked.servers.clone(), searches: asked.searches.clone(), options: asked.options.clone() }
}

/// The sandbox's host name: as asked, the host's with the host's network, else the sandbox's own name made valid.
pub(crate) fn hostname(spec: &SandboxSpec) -> String {
    if spec.namespaces.network == NetworkMode::Host {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    if !spec.hostname.is_empty() {
        return spec.hostname.clone();
    }
    let valid = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let name: String = spec.key.name.chars().map(valid).take(63).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "sandbox".to_owned() } else { name.to_owned() }
}

fn invalid(error: network::InvalidText) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// The file's bytes; an absent one is empty.
fn copy(path: &Path) -> io::Result<Vec<u8>> {
    match read_bounded(path, COPY_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dirs::StateDir, sandbox::spec::SandboxKey};

    #[test]
    fn the_files_say_what_was_asked() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDir::new(scratch.path().join("run"));
        state.make().unwrap();
        let dir = state.sandbox(&keelson_api::SandboxId::from_random([1; 32]));
        dir.make().unwrap();
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let dns = Dns {
            servers: words(&["10.0.0.10", "fd00::1"]),
            searches: words(&["a.b", "b"]),
            options: words(&["ndots:5"]),
        };
        let spec = SandboxSpec { dns: Some(dns), ..Default::default() };
        write(&spec, "web-0", &dir).unwrap();
        write_hosts(&spec, "web-0", &["10.4.0.2".parse().unwrap(), "fd00::2".parse().unwrap()], &dir).unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!(
            read(dir.resolv_conf()),
            "search a.b b\nnameserver 10.0.0.10\nnameserver fd00::1\noptions ndots:5\n"
        );
        assert_eq!(read(dir.hostname()), "web-0\n");
        assert!(read(dir.hosts()).ends_with("10.4.0.2\tweb-0\nfd00::2\tweb-0\n"));
    }

    #[test]
    fn a_name_becomes_a_valid_host_name() {
        for (name, want) in [("Web_0", "web-0"), ("-x-", "x"), ("___", "sandbox"), (&"a".repeat(100), &"a".repeat(63))]
        {
            let spec =
                SandboxSpec { key: SandboxKey { name: name.into(), ..Default::default() }, ..Default::default() };
            assert_eq!(hostname(&spec), want);
        }
        let spec = SandboxSpec { hostname: "given".into(), ..Default::default() };
        assert_eq!(hostname(&spec), "given");
    }
}
