//! The operations of a plan: plain data that owns what it names, and words for each.
//! Built in the parent; read by the child, by the parent for its error texts.
//! Owns descriptors and strings.
//! Must never hold anything that the child would have to compute.

use std::ffi::{CString, c_char};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::namespace::NamespaceKinds;

/// A descriptor that several operations use.
pub type Shared = Rc<OwnedFd>;

/// One operation.
#[derive(Debug)]
#[expect(missing_docs, reason = "fields are named after the arguments of the calls")]
pub enum Op {
    /// Nobody without CAP_SYS_PTRACE outside may attach.
    Undumpable,
    /// Joins a cgroup v1 by its open `tasks` file.
    JoinTasks(Shared),
    /// setns(2).
    SetNamespaces { fd: Shared, kinds: NamespaceKinds, what: &'static str },
    /// unshare(2).
    Unshare(NamespaceKinds),
    /// Tells the parent and waits until it has done its part.
    Sync,
    /// Becomes user and group 0 of the user namespace.
    BecomeRoot,
    /// setsid(2).
    Session,
    /// Of every mount of the namespace, at once.
    Propagation(Propagation),
    /// Puts a detached tree over a folder (`/` needs none to exist) and makes it the root of all later paths.
    AttachRoot { tree: OwnedFd, over: CString },
    /// mount(2) of the root on `target`, for kernels whose fsconfig cannot take it.
    LegacyRoot { kind: CString, target: CString, data: CString, keep: Vec<OwnedFd> },
    /// A filesystem.
    Mount(Box<Mount>),
    /// A filesystem (a small one, of memory) with trees mounted on folders of it and links beside them, in the end read-only.
    Shelf { folder: Box<Mount>, trees: Vec<(CString, MountSource)>, links: Vec<(CString, CString)>, read_only: bool },
    /// Device nodes.
    Devices(Vec<Device>),
    /// Symbolic links: path, target.
    Links(Vec<(CString, CString)>),
    /// Folders, made when missing; `writable` ones become mounts of their own, which a read-only root does not cover.
    Folders { paths: Vec<CString>, writable: bool },
    /// Hides paths: files behind the null device in `null`, folders behind an empty read-only filesystem. Missing ones are passed over.
    Mask { null: OwnedFd, paths: Vec<CString> },
    /// Makes paths read-only, with all below. Missing ones are passed over.
    ReadOnly(Vec<CString>),
    /// Attributes and propagation of the root.
    RootAttributes { attributes: Attributes, propagation: Option<Propagation> },
    /// pivot_root(2), and the old root is gone; or chroot(2) only.
    EnterRoot { pivot: bool },
    /// A terminal as controlling terminal and standard streams; the master goes to the parent.
    Terminal(Terminal),
    /// Standard streams.
    Streams([Shared; 3]),
    /// Gives standard streams (a mask of 1, 2, 4) to a user; refusals do not matter.
    OwnStreams { uid: u32, which: u8 },
    /// sethostname(2).
    Hostname(CString),
    /// setdomainname(2).
    Domainname(CString),
    /// Writes below a procfs: no mount is crossed. With `lenient`, missing permission is no failure.
    WriteProc { proc: Shared, path: CString, value: Vec<u8>, what: &'static str, lenient: bool },
    /// Limit, soft and hard.
    Rlimit { resource: u32, soft: u64, hard: u64, name: String },
    /// personality(2).
    Personality(u32),
    /// sched_setattr(2): `struct sched_attr` as words.
    Scheduler([u64; 6]),
    /// ioprio_set(2).
    IoPriority(i32),
    /// Changes to a folder of the container, and makes sure of it. `again` is for the final user, when the first try was refused.
    WorkingDirectory { path: CString, create: bool, again: bool },
    /// Bounding set, groups, user; capabilities stay permitted (and effective, if asked) until [`Op::Capabilities`].
    Identity(Identity),
    /// The final sets.
    Capabilities(Capabilities),
    /// umask(2).
    Umask(u32),
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
    /// Every descriptor from 3 up closes on exec.
    CloseOnExec,
    /// Closes every descriptor from 3 up now, but for the talk with the parent and these, which close on exec: for a child that waits.
    CloseAllBut(Vec<Shared>),
    /// No signal blocked; those of the mask (bit `n - 1` for signal `n`) get their default action back.
    Signals { ignored: u64 },
    /// Tells the parent that all is ready and waits for its word.
    Gate,
    /// As [`Op::Gate`], but it is any process that connects to this listening socket and writes a byte that lets go, and that is
    /// told of a later failure.
    GateListener {
        listener: Shared,
        /// What to call a failure of each operation after this one.
        words: Vec<Vec<u8>>,
    },
    /// Loads a filter: instructions as words.
    Seccomp { program: Vec<u64>, flags: u32 },
    /// execve(2): does not return.
    Exec(Exec),
}

/// How mount events travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// In.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and no bind.
    Unbindable,
}

impl Propagation {
    /// MS_* bits.
    pub const fn bits(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// MOUNT_ATTR_* bits to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// To set.
    pub set: u64,
    /// To clear.
    pub clear: u64,
}

impl Attributes {
    /// MOUNT_ATTR_RDONLY.
    pub const RDONLY: u64 = 0x01;
    /// MOUNT_ATTR_NOSUID.
    pub const NOSUID: u64 = 0x02;
    /// MOUNT_ATTR_NODEV.
    pub const NODEV: u64 = 0x04;
    /// MOUNT_ATTR_NOEXEC.
    pub const NOEXEC: u64 = 0x08;
    /// MOUNT_ATTR__ATIME: the field of the three below.
    pub const ATIME: u64 = 0x70;
    /// MOUNT_ATTR_NOATIME.
    pub const NOATIME: u64 = 0x10;
    /// MOUNT_ATTR_STRICTATIME.
    pub const STRICTATIME: u64 = 0x20;
    /// MOUNT_ATTR_NODIRATIME.
    pub const NODIRATIME: u64 = 0x80;
    /// MOUNT_ATTR_IDMAP.
    pub const IDMAP: u64 = 0x0010_0000;
    /// MOUNT_ATTR_NOSYMFOLLOW.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// What to make where a mount's target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// An empty file.
    File,
}

/// A filesystem to attach inside the root.
#[derive(Debug)]
pub struct Mount {
    /// What.
    pub source: MountSource,
    /// Where, inside the container.
    pub target: CString,
    /// Made when missing.
    pub node: Node,
    /// Refuse a target behind symbolic links: for procfs and sysfs, which other operations rely on.
    pub no_symlinks: bool,
    /// Allow a target that lies on a procfs.
    pub on_proc: bool,
}

/// Where a mount comes from.
#[derive(Debug)]
pub enum MountSource {
    /// A detached mount, ready.
    Tree(OwnedFd),
    /// A folder of a detached mount, and nothing else of it: only in a mount namespace can one be cut out of the other (a detached
    /// mount can be cloned from since Linux 6.15 alone), so the whole is attached there for the moment between.
    Part {
        /// The whole.
        tree: OwnedFd,
        /// The folder, opened in it.
        part: OwnedFd,
    },
    /// A new filesystem of the child's own namespaces.
    New {
        /// Its type.
        kind: CString,
        /// Its parameters.
        parameters: Vec<Parameter>,
        /// Attributes of the mount.
        attributes: Attributes,
        /// How its mount events travel, if not privately.
        propagation: Option<Propagation>,
    },
}

/// A parameter of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parameter {
    /// `ro`.
    Flag(CString),
    /// `size=64k`.
    Value(CString, CString),
}

/// A device node.
#[derive(Debug)]
pub struct Device {
    /// Inside the container.
    pub path: CString,
    /// Type and permissions.
    pub mode: u32,
    /// As makedev(3).
    pub device: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// See [`Op::Terminal`].
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    /// Owner of the terminal.
    pub uid: u32,
    /// Rows and columns; none: the kernel's.
    pub size: Option<(u16, u16)>,
    /// Bind it on `/dev/console`.
    pub console: bool,
}

/// See [`Op::Identity`].
#[derive(Debug)]
pub struct Identity {
    /// Capabilities that stay in the bounding set, as a bit mask.
    pub bounding: u64,
    /// Supplementary groups, all of them.
    pub groups: Vec<u32>,
    /// Real, effective and saved.
    pub gid: u32,
    /// Real, effective and saved.
    pub uid: u32,
    /// What this process may use, made effective again after the change of user.
    pub keep_effective: Option<u64>,
}

/// Capability sets as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the sets")]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// C strings and the array of pointers to them that execve wants.
#[derive(Debug, Default)]
pub struct Strings {
    pointers: Vec<*const c_char>,
    // Heap blocks that the pointers name: moving this struct does not move them.
    strings: Vec<CString>,
}

impl Strings {
    /// Takes the strings.
    pub fn new(strings: Vec<CString>) -> Strings {
        Strings { pointers: crate::spawn::pointers(&strings), strings }
    }

    /// The strings.
    pub fn as_slice(&self) -> &[CString] {
        &self.strings
    }

    pub(super) fn pointers(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// See [`Op::Exec`].
#[derive(Debug)]
pub struct Exec {
    /// An open program; none: the candidates are tried.
    pub file: Option<Shared>,
    /// Paths to try in turn, as PATH says.
    pub candidates: Vec<CString>,
    /// Arguments.
    pub argv: Strings,
    /// Environment.
    pub env: Strings,
}
