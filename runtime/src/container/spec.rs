//! What a caller asks for when it wants a container: plain data, kept in the container's record, returned in its view.
//! Built by a face in any task; checked by `container::check` before anything is touched.
//! Owns no resource. Must never hold a word of an outer protocol; image-supplied values never enter it.

use std::{collections::BTreeMap, path::PathBuf};

use keelson_api::ContainerId;
use serde::{Deserialize, Serialize};

use crate::{resources::Resources, user_namespace::UserNamespace};

/// By what a caller recognises its container within the sandbox. A repeated create with the same key joins the first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct ContainerKey {
    /// Name, unique in the sandbox together with the attempt.
    pub name: String,
    /// How many containers of this name were there before.
    pub attempt: u32,
}

/// An environment variable; the value is bytes as the kernel sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name: not empty, no `=`.
    pub name: String,
    /// Value: no NUL.
    pub value: Vec<u8>,
}

/// How mounts made on one side are seen on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// The host's appear in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// How far a read-only mount is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Access {
    /// Writable.
    #[default]
    ReadWrite,
    /// The mount itself is read-only, mounts below it keep their mode.
    ReadOnly,
    /// All of the tree is read-only.
    RecursiveReadOnly,
}

/// One range of a user namespace mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// Something of the host (or of an image) to appear in the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path in the container.
    pub container_path: PathBuf,
    /// Absolute path on the host; empty when `image` is given.
    pub host_path: PathBuf,
    /// Writable or not.
    pub access: Access,
    /// Of mounts below it.
    pub propagation: Propagation,
    /// Relabel for the mandatory access control of the host.
    pub relabel: bool,
    /// Ids as the container sees them, user ids.
    pub uid_mappings: Vec<IdMapping>,
    /// Ids as the container sees them, group ids.
    pub gid_mappings: Vec<IdMapping>,
    /// An image whose tree is the source.
    pub image: Option<String>,
    /// Folder below the image's root; empty: all of it.
    pub image_sub_path: String,
    /// Id of the image once it is found, `sha256:..`; empty in a request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// What the volume must not be good for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<MountOption>,
}

/// Something that a volume is barred from, with all that is mounted below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountOption {
    /// Programs on it cannot be run.
    NoExec,
    /// Device nodes on it mean nothing.
    NoDev,
    /// Set-user-id bits and file capabilities on it mean nothing.
    NoSuid,
}

impl MountOption {
    /// As mount(8) has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoExec => "noexec",
            Self::NoDev => "nodev",
            Self::NoSuid => "nosuid",
        }
    }

    /// The same for a whole tree of mounts, as the OCI runtime specification has it.
    #[must_use]
    pub fn recursive_name(self) -> &'static str {
        match self {
            Self::NoExec => "rnoexec",
            Self::NoDev => "rnodev",
            Self::NoSuid => "rnosuid",
        }
    }
}

/// What a container may do with its own cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CgroupMount {
    /// Look at it; the privileged: anything with any cgroup.
    #[default]
    Unspecified,
    /// Look at it.
    ReadOnly,
    /// Divide it among cgroups of its own; its own limits stay out of reach.
    Writable,
}

impl CgroupMount {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A host device (or a directory of them) for the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container; empty: as on the host.
    pub container_path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// Standard input of the container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Stdin {
    /// At its end from the beginning.
    #[default]
    Closed,
    /// Open for attach sessions, for the life of the container.
    Open,
    /// Open until the first attach session ends.
    OpenOnce,
}

/// Which PID namespace a container joins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ContainerPid {
    /// As its sandbox says.
    #[default]
    Sandbox,
    /// Its own, whatever the sandbox says.
    Own,
    /// The host's.
    Host,
    /// That of another container of the sandbox.
    Target(ContainerId),
}

/// Which user namespace a container expects to be in: the sandbox decides, the request must agree with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ContainerUsers {
    /// The sandbox's, whichever that is.
    #[default]
    Sandbox,
    /// The host's.
    Host,
    /// The sandbox's, with exactly these ids.
    Mapped(UserNamespace),
}

/// Which seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Seccomp {
    /// None.
    #[default]
    Unconfined,
    /// The built-in profile.
    RuntimeDefault,
    /// A profile file of the host, absolute path.
    Localhost(PathBuf),
}

/// Which mandatory access control profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AppArmor {
    /// Not said: the default profile where the host has AppArmor.
    #[default]
    Unspecified,
    /// The default profile where the host has AppArmor.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile loaded on the host.
    Localhost(String),
}

/// How supplementary groups come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// Those asked for and those of the image's group file.
    #[default]
    Merge,
    /// Only those asked for.
    Strict,
}

/// Capabilities beside the default set; names with or without `CAP_`, `ALL` for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// More.
    pub add: Vec<String>,
    /// Less.
    pub drop: Vec<String>,
    /// Kept over exec for users that are not root; each is added as well.
    pub ambient: Vec<String>,
}

/// SELinux label parts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SelinuxLabel {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level.
    pub level: String,
}

impl SelinuxLabel {
    /// Whether its parts can be parts of a label; what they mean is the loaded policy's to know.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let word =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        let level = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b',' | b'.' | b'-');
        let lengths = [&self.user, &self.role, &self.kind, &self.level].iter().all(|part| part.len() <= 255);
        if lengths && word(&self.user) && word(&self.role) && word(&self.kind) && self.level.bytes().all(level) {
            return Ok(());
        }
        Err("not parts of a label: want words, and a level as `s0:c1,c2`")
    }
}

/// Who runs the process: the request's word against the image's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RunAs {
    /// As the image says, else root.
    #[default]
    Image,
    /// This user id, as the caller sent it; negative or above 2^31-1 is refused.
    Uid(i64),
    /// This user name of the image's passwd file.
    Name(String),
}

/// Identity and confinement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Security {
    /// All devices, all capabilities, no filter, writable /sys and cgroup.
    pub privileged: bool,
    /// User.
    pub run_as: RunAs,
    /// Primary group; needs a user in the request.
    pub run_as_group: Option<i64>,
    /// Further groups.
    pub supplementary_groups: Vec<i64>,
    /// What they are added to.
    pub groups_policy: GroupsPolicy,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Root filesystem not writable.
    pub readonly_rootfs: bool,
    /// The process can never gain privileges by exec.
    pub no_new_privileges: bool,
    /// Paths to hide; `None`: the default list, empty: none.
    pub masked_paths: Option<Vec<String>>,
    /// Paths to make read-only; `None`: the default list, empty: none.
    pub readonly_paths: Option<Vec<String>>,
    /// System call filter.
    pub seccomp: Seccomp,
    /// AppArmor.
    pub apparmor: AppArmor,
    /// SELinux; `None`: not asked for.
    pub selinux: Option<SelinuxLabel>,
    /// Its own cgroup.
    #[serde(default, skip_serializing_if = "CgroupMount::is_default")]
    pub cgroup: CgroupMount,
    /// PID namespace.
    pub pid: ContainerPid,
    /// User namespace.
    #[serde(default)]
    pub user_namespace: ContainerUsers,
}

/// A container as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name.
    pub key: ContainerKey,
    /// Image: id, unique id prefix, tag or `repository@digest`; must be on the node.
    pub image: String,
    /// The image as the person wrote it; told, not used.
    pub image_as_written: String,
    /// Replaces the image's entrypoint (and drops its command) when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Empty: the image's, else `/`.
    pub working_dir: PathBuf,
    /// Over the image's.
    pub env: Vec<EnvVar>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Fully qualified CDI device names.
    pub cdi_devices: Vec<String>,
    /// The caller's labels, kept verbatim.
    pub labels: BTreeMap<String, String>,
    /// The caller's annotations, kept verbatim, never interpreted.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the sandbox's log directory; empty: output is discarded.
    pub log_path: PathBuf,
    /// Standard input.
    pub stdin: Stdin,
    /// A terminal.
    pub terminal: bool,
    /// Limits.
    pub resources: Resources,
    /// Identity and confinement.
    pub security: Security,
    /// Linux signal number to stop it with; `None`: the image's, else TERM.
    pub stop_signal: Option<i32>,
    /// Folder of the unpacked checkpoint that `image` names instead of an image: set by the engine, never by a caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}
