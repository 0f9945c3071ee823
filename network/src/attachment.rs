//! What one pod's attachment consists of, as told to callers and as recorded in `attachments/<sandbox>.json` before it is made.
//! Plain data and its file. Any thread. Owns nothing but the layout.
//! Must stay readable by older and newer daemons.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use keelson_api::SandboxId;
use serde::{Deserialize, Serialize};

use crate::{
    address::Mac,
    file::{self, FileError},
    port::PortMapping,
};

/// Name of the interface in every pod.
pub const INTERFACE: &str = "eth0";

/// A pod's place in the network. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Layout version of the record: 1.
    pub version: u32,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// The interface in the pod.
    pub interface: String,
    /// Its other end on the host.
    pub host_interface: String,
    /// Hardware address of the interface in the pod.
    pub mac: Mac,
    /// Largest packet.
    pub mtu: u32,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Prefix lengths of the addresses' networks, in the same order.
    pub prefixes: Vec<u8>,
    /// The routers of the pod's default routes, in the same order.
    pub gateways: Vec<IpAddr>,
    /// What is published on the host.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

impl Attachment {
    /// The layout version this crate writes.
    pub const VERSION: u32 = 1;

    /// The interface names a pod's host end may have: parts of its sandbox's id, so that they need no record to be found.
    pub(crate) fn host_names(sandbox: &SandboxId) -> impl Iterator<Item = String> + use<> {
        let id = sandbox.as_str().to_owned();
        (0..4).filter_map(move |part| Some(format!("kl{}", id.get(part * 13..(part + 1) * 13)?)))
    }

    /// Whether an interface's name is one that [`Attachment::host_names`] makes.
    pub(crate) fn is_host_name(name: &str) -> bool {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        name.strip_prefix("kl").is_some_and(|rest| rest.len() == 13 && rest.bytes().all(hex))
    }
}

/// The folder of attachment records.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the folder and reads every record; one that cannot be understood is removed: a power failure cut it short, and
    /// with it went the interface.
    pub(crate) fn load(dir: PathBuf) -> Result<(Self, Vec<Attachment>), FileError> {
        std::fs::create_dir_all(&dir).map_err(file::failed("create", &dir))?;
        let mut all = Vec::new();
        for name in file::names(&dir)? {
            let path = dir.join(&name);
            match file::get::<Attachment>(&path) {
                Ok(Some(found)) if name == file_name(&found.sandbox) => {
                    all.push(found);
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => {
                    tracing::warn!(path = %path.display(), "removing an attachment record that cannot be understood");
                    file::remove(&path)?;
                }
            }
        }
        Ok((Self { dir }, all))
    }

    pub(crate) fn put(&self, attachment: &Attachment) -> Result<(), FileError> {
        file::announce(&self.path(&attachment.sandbox), attachment)
    }

    pub(crate) fn remove(&self, sandbox: &SandboxId) -> Result<(), FileError> {
        file::remove(&self.path(sandbox))
    }

    fn path(&self, sandbox: &SandboxId) -> PathBuf {
        Path::new(&self.dir).join(file_name(sandbox))
    }
}

fn file_name(sandbox: &SandboxId) -> String {
    format!("{sandbox}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        let address = "10.88.0.2".parse().unwrap();
        Attachment {
            version: 1,
            sandbox: SandboxId::from_random([0xab; 32]),
            interface: INTERFACE.into(),
            host_interface: "klababababababa".into(),
            mac: Mac::for_address(address),
            mtu: 1500,
            addresses: vec![address, "fd00::2".parse().unwrap()],
            prefixes: vec![16, 64],
            gateways: vec!["10.88.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ports: Vec::new(),
        }
    }

    #[test]
    fn host_names_are_four_different_parts_of_the_id() {
        let bytes: [u8; 32] = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let names: Vec<String> = Attachment::host_names(&SandboxId::from_random(bytes)).collect();
        assert_eq!(names, ["kl0001020304050", "kl60708090a0b0c", "kl0d0e0f1011121", "kl3141516171819"]);
        assert!(names.iter().all(|name| name.len() == 15 && Attachment::is_host_name(name)));
        assert!(!Attachment::is_host_name("kl-deadbeef") && !Attachment::is_host_name("kl00010203040g0"));
    }

    #[test]
    fn the_record_on_disk_is_what_version_1_says() {
        let text = serde_json::to_string(&attachment()).unwrap();
        let id = "ab".repeat(32);
        let want = format!(
            r#"{{"version":1,"sandbox":"{id}","interface":"eth0","host_interface":"klababababababa","mac":"4a:4b:0a:58:00:02","mtu":1500,"addresses":["10.88.0.2","fd00::2"],"prefixes":[16,64],"gateways":["10.88.0.1","fd00::1"],"ports":[]}}"#
        );
        assert_eq!(text, want);
    }

    #[test]
    fn torn_and_foreign_files_are_removed_and_records_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (records, none) = Records::load(dir.path().to_owned()).unwrap();
        assert!(none.is_empty());
        records.put(&attachment()).unwrap();
        std::fs::write(dir.path().join(format!("{}.json", "cd".repeat(32))), "").unwrap();
        std::fs::write(dir.path().join("x.tmp"), "half").unwrap();
        let (_, found) = Records::load(dir.path().to_owned()).unwrap();
        assert_eq!(found, [attachment()]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
