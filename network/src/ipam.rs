//! Addresses of pods: a lease is the file `ipam/<address>` that holds its sandbox's id, made exclusively. What is free is known
//! in memory, round robin, so that an address rests before it is used again.
//! Reserving and releasing touch memory (and the cursor, one short write) and may be done under a lock; a lease is made and
//! removed outside it, on the caller's thread. Must never hand out an address that any lease file names.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use keelson_api::SandboxId;

use crate::{
    address::IpNet,
    file::{self, FileError, failed},
};

const CURSOR4: &str = "cursor4";
const CURSOR6: &str = "cursor6";

/// No address is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "allocate address in {range}: all {in_use} addresses are in use; remove sandboxes, or configure a larger {family} \
     network (it takes effect when no pod is attached)"
)]
pub struct Exhausted {
    /// The network.
    pub range: String,
    /// How many addresses sandboxes hold.
    pub in_use: usize,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
}

/// Who has which address.
#[derive(Debug)]
pub(crate) struct Ipam {
    dir: PathBuf,
    taken: HashMap<IpAddr, SandboxId>,
    cursor4: Cursor,
    cursor6: Cursor,
}

/// The host after which the search goes on, and the file that remembers it.
#[derive(Debug)]
struct Cursor {
    last: u128,
    file: fs::File,
}

impl Cursor {
    fn open(path: &Path) -> Result<Self, FileError> {
        let open = || {
            let mut file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let mut text = String::new();
            // Of no use when it cannot be read: the search then begins at the first host.
            let _ = file.read_to_string(&mut text);
            Ok(Self { last: text.trim().parse().unwrap_or(0), file })
        };
        open().map_err(failed("open", path))
    }

    /// Losing it is harmless (an address is used again sooner), so it is not synced, and a failure is only told.
    fn remember(&self) {
        if let Err(error) = self.file.write_all_at(format!("{:039}\n", self.last).as_bytes(), 0) {
            tracing::debug!(%error, "address cursor not kept");
        }
    }
}

impl Ipam {
    /// Reads the leases; what is not a lease (a file cut short by a power failure) is removed.
    pub(crate) fn load(dir: PathBuf) -> Result<Self, FileError> {
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let mut taken = HashMap::new();
        for name in file::names(&dir)? {
            let path = dir.join(&name);
            if [CURSOR4, CURSOR6].contains(&name.as_str()) {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            match (name.parse::<IpAddr>(), text.parse::<SandboxId>()) {
                (Ok(address), Ok(owner)) => {
                    taken.insert(address, owner);
                }
                (_, _) => {
                    tracing::warn!(path = %path.display(), "removing an address lease that names no sandbox");
                    file::remove(&path)?;
                }
            }
        }
        let cursor4 = Cursor::open(&dir.join(CURSOR4))?;
        let cursor6 = Cursor::open(&dir.join(CURSOR6))?;
        Ok(Self { dir, taken, cursor4, cursor6 })
    }

    /// Reserves the next free address of `net` in memory; `gateway` is never given away.
    pub(crate) fn reserve(&mut self, net: IpNet, gateway: IpAddr, owner: &SandboxId) -> Result<IpAddr, Exhausted> {
        let cursor = match net {
            IpNet::V4(_) => &mut self.cursor4,
            IpNet::V6(_) => &mut self.cursor6,
        };
        // As many are looked at as could be taken, and one more.
        let tries = net.hosts().min(self.taken.len() as u128 + 2);
        for _ in 0..tries {
            cursor.last = if cursor.last >= net.hosts() { 1 } else { cursor.last + 1 };
            let Some(address) = net.host(cursor.last).filter(|address| *address != gateway) else { continue };
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.taken.entry(address) {
                vacant.insert(owner.clone());
                cursor.remember();
                return Ok(address);
            }
        }
        let in_use = self.taken.keys().filter(|address| net.contains(**address)).count();
        let family = if matches!(net, IpNet::V4(_)) { "IPv4" } else { "IPv6" };
        Err(Exhausted { range: net.to_string(), in_use, family })
    }

    /// Forgets a reservation.
    pub(crate) fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    /// The addresses of one sandbox.
    pub(crate) fn of(&self, owner: &SandboxId) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> =
            self.taken.iter().filter(|(_, by)| *by == owner).map(|(address, _)| *address).collect();
        addresses.sort();
        addresses
    }

    /// Everybody who holds an address.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &SandboxId> {
        self.taken.values()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Writes the lease of a reserved address; `false` when a file names it already (then somebody else has it).
pub(crate) fn write(dir: &Path, address: IpAddr, owner: &SandboxId) -> Result<bool, FileError> {
    let path = dir.join(address.to_string());
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    match made.and_then(|mut file| file.write_all(owner.as_str().as_bytes())) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => {
            // What is there now names nobody; left alone it would be removed at the next start.
            let _ = fs::remove_file(&path);
            Err(failed("write", &path)(error))
        }
    }
}

/// Removes the lease of an address.
pub(crate) fn remove(dir: &Path, address: IpAddr) -> Result<(), FileError> {
    file::remove(&dir.join(address.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use super::*;

    fn id(n: u8) -> SandboxId {
        SandboxId::from_random([n; 32])
    }

    fn net(text: &str) -> IpNet {
        let (address, prefix) = text.split_once('/').unwrap();
        IpNet::containing(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
    }

    fn take(ipam: &mut Ipam, net: IpNet, owner: &SandboxId) -> Result<IpAddr, Exhausted> {
        let address = ipam.reserve(net, net.host(1).unwrap(), owner)?;
        assert!(write(ipam.dir(), address, owner).unwrap(), "{address} was leased");
        Ok(address)
    }

    #[test]
    fn a_released_address_rests_until_all_others_were_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::load(dir.path().join("ipam")).unwrap();
        let net = net("10.0.0.0/29");
        let first = take(&mut ipam, net, &id(1)).unwrap();
        assert_eq!(first, "10.0.0.2".parse::<IpAddr>().unwrap());
        ipam.release(first);
        remove(ipam.dir(), first).unwrap();
        let rest: Vec<IpAddr> = (0..4).map(|n| take(&mut ipam, net, &id(n)).unwrap()).collect();
        assert!(!rest.contains(&first));
        assert_eq!(take(&mut ipam, net, &id(9)).unwrap(), first);
    }

    #[test]
    fn exhaustion_says_range_use_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::load(dir.path().join("ipam")).unwrap();
        let net = net("10.0.0.0/30");
        take(&mut ipam, net, &id(1)).unwrap();
        let text = take(&mut ipam, net, &id(2)).unwrap_err().to_string();
        assert!(text.contains("10.0.0.0/30: all 1 addresses are in use") && text.contains("larger IPv4"), "{text}");
    }

    #[test]
    fn leases_and_the_cursor_survive_and_torn_ones_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam");
        let mut ipam = Ipam::load(path.clone()).unwrap();
        let net = net("10.0.0.0/24");
        let kept = take(&mut ipam, net, &id(1)).unwrap();
        let gone = take(&mut ipam, net, &id(2)).unwrap();
        remove(&path, gone).unwrap();
        fs::write(path.join("10.0.0.77"), "").unwrap();
        fs::write(path.join("lost+found"), "").unwrap();
        let mut ipam = Ipam::load(path.clone()).unwrap();
        assert_eq!(ipam.of(&id(1)), [kept]);
        assert_eq!(take(&mut ipam, net, &id(3)).unwrap(), "10.0.0.4".parse::<IpAddr>().unwrap());
        assert!(!path.join("10.0.0.77").exists() && !path.join("lost+found").exists());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, ..Default::default() })]

        /// Against the simplest model: a queue of free addresses. Owners are numbers; a step takes, gives back or restarts.
        #[test]
        fn leases_behave_as_a_queue_of_free_addresses(steps in proptest::collection::vec(0u8..24, 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ipam");
            let net = net("10.0.0.0/28");
            let mut ipam = Ipam::load(path.clone()).unwrap();
            let mut free: VecDeque<IpAddr> = (2..=14).map(|n| net.host(n).unwrap()).collect();
            let mut held: BTreeMap<u8, IpAddr> = BTreeMap::new();
            for step in steps {
                match held.get(&step).copied() {
                    _ if step == 0 => ipam = Ipam::load(path.clone()).unwrap(),
                    Some(address) => {
                        ipam.release(address);
                        remove(&path, address).unwrap();
                        held.remove(&step);
                        free.push_back(address);
                    }
                    None => match take(&mut ipam, net, &id(step)) {
                        Ok(address) => {
                            proptest::prop_assert!(free.contains(&address), "{address} is not free");
                            free.retain(|other| *other != address);
                            held.insert(step, address);
                        }
                        Err(_) => proptest::prop_assert!(free.is_empty()),
                    },
                }
                for (owner, address) in &held {
                    proptest::prop_assert_eq!(ipam.of(&id(*owner)), vec![*address]);
                }
                proptest::prop_assert_eq!(ipam.owners().count(), held.len());
            }
        }
    }
}
