//! Making the namespaces of a sandbox and pinning them, with its host name and kernel parameters in them.
//! Without a user namespace a thread of the daemon unshares them and ends. A user namespace cannot be had by a thread: a child
//! that makes raw system calls alone (`sys::child`) is born in it, so that it owns the other namespaces, and ends when they are pinned.
//! Owns nothing: the pins are found by the sandbox's id. Must never leave the child.

use std::{collections::BTreeMap, ffi::CString, os::fd::OwnedFd, rc::Rc, sync::Arc};

use keelson_network::Netns;
use keelson_shim::launch;
use keelson_sys::{
    child::{self, Channel, Child, CloneOptions, Message, Op, Shared as Descriptor},
    namespace::{NamespaceKinds, in_new, pin, pin_of},
};
use rustix::{fs::OFlags, io::Errno};

use super::{
    create::{Failure, failed},
    spec::{IpcMode, NetworkMode, SandboxSpec},
    sysctl,
};
use crate::{dirs::SandboxDir, engine::EngineConfig, user_namespace::UserNamespace};

/// A step that the child could not take.
#[derive(Debug, thiserror::Error)]
#[error("{step}{}{object}", if object.is_empty() { "" } else { " " })]
struct ChildError {
    step: &'static str,
    object: String,
    #[source]
    source: std::io::Error,
}

/// Makes and pins what the sandbox does not share with the host; returns its network namespace if it has one of its own.
pub(crate) fn make(
    config: &EngineConfig,
    spec: &SandboxSpec,
    hostname: &str,
    dir: &SandboxDir,
) -> Result<Option<Netns>, Failure> {
    let own_network = spec.namespaces.network == NetworkMode::Sandbox;
    let own_ipc = spec.namespaces.ipc == IpcMode::Sandbox;
    let groups = spec.user_namespace.as_ref().map(UserNamespace::groups);
    let defaults = sysctl::defaults(spec.namespaces, config.unprivileged_ports, config.unprivileged_icmp, groups);
    let mut kinds = NamespaceKinds::EMPTY;
    if own_network {
        kinds = kinds | NamespaceKinds::NET | NamespaceKinds::UTS;
    }
    if own_ipc {
        kinds = kinds | NamespaceKinds::IPC;
    }
    if let Some(users) = &spec.user_namespace {
        in_user_namespace(users, kinds, hostname, dir, &sysctl::writes(&spec.sysctls, &defaults))?;
        let open = || Netns::open(&dir.net()).map_err(failed("open network namespace"));
        return own_network.then(open).transpose();
    }
    if kinds.is_empty() {
        return Ok(None);
    }
    let made = in_new(kinds, || -> Result<Option<Netns>, Failure> {
        sysctl::apply(&spec.sysctls, &defaults).map_err(failed("set kernel parameters"))?;
        if own_ipc {
            pin(NamespaceKinds::IPC, &dir.ipc()).map_err(failed("pin IPC namespace"))?;
        }
        if !own_network {
            return Ok(None);
        }
        rustix::system::sethostname(hostname.as_bytes()).map_err(failed("set host name"))?;
        pin(NamespaceKinds::UTS, &dir.uts()).map_err(failed("pin UTS namespace"))?;
        let netns = Netns::current().map_err(failed("open network namespace"))?;
        pin(NamespaceKinds::NET, &dir.net()).map_err(failed("pin network namespace"))?;
        Ok(Some(netns))
    });
    made.map_err(failed("make namespaces"))?
}

/// The child's way: mapped, root of its namespace, parameters and name set as that root (the kernel gives those of a user
/// namespace's IPC to nobody else), pinned by us, gone.
fn in_user_namespace(
    users: &UserNamespace,
    kinds: NamespaceKinds,
    hostname: &str,
    dir: &SandboxDir,
    writes: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let ops = plan(kinds, hostname, writes)?;
    let (channel, theirs) = Channel::pair().map_err(failed("make user namespace"))?;
    let options = CloneOptions { namespaces: kinds | NamespaceKinds::USER, ..CloneOptions::default() };
    let child = child::fork(&ops, (&channel, theirs), options).map_err(failed("make user namespace"))?;
    let made = attend(&child, &channel, &ops, |at| match at {
        0 => launch::write_id_maps(child.pid, &ranges(&users.uids), &ranges(&users.gids))
            .map_err(failed("map user namespace")),
        _ => pin_all(child.pid, kinds, dir),
    });
    child.end();
    made
}

fn plan(kinds: NamespaceKinds, hostname: &str, writes: &BTreeMap<String, String>) -> Result<Vec<Op>, Failure> {
    let text = |text: &str| CString::new(text).map_err(failed("make user namespace"));
    let proc: Descriptor = Rc::new(open_proc().map_err(failed("open /proc"))?);
    // First of all it lets go of what else the daemon has open.
    let mut ops = vec![Op::Undumpable, Op::CloseAllBut(vec![proc.clone()]), Op::Sync, Op::BecomeRoot];
    for (path, value) in writes {
        ops.push(Op::WriteProc {
            proc: proc.clone(),
            path: text(&format!("sys/{path}"))?,
            value: value.clone().into_bytes(),
            what: "set kernel parameter",
            lenient: false,
        });
    }
    if kinds.contains(NamespaceKinds::UTS) {
        ops.push(Op::Hostname(text(hostname)?));
    }
    ops.push(Op::Sync);
    Ok(ops)
}

/// Does its part at each of the child's stops; the last one is the end.
fn attend(
    child: &Child,
    channel: &Channel,
    ops: &[Op],
    mut act: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let stops = ops.iter().filter(|op| matches!(op, Op::Sync)).count();
    for at in 0..stops {
        match channel.receive().map_err(failed("make user namespace"))? {
            Message::Sync => act(at)?,
            Message::Failed(report, _) => {
                let op = usize::try_from(report.op).ok().and_then(|op| ops.get(op));
                let (step, object) = op.map_or(("begin", String::new()), |op| op.describe(report.part));
                let source = std::io::Error::from_raw_os_error(report.errno);
                return Err(failed("make user namespace")(ChildError { step, object, source }));
            }
            Message::Ready | Message::Terminal(_) | Message::End => {
                let source = std::io::Error::other(format!("child {} ended before its work was done", child.pid));
                return Err(Failure { stage: "make user namespace", source: Arc::new(source) });
            }
        }
        if at + 1 < stops {
            channel.go_on().map_err(failed("make user namespace"))?;
        }
    }
    Ok(())
}

fn pin_all(pid: i32, kinds: NamespaceKinds, dir: &SandboxDir) -> Result<(), Failure> {
    // The owner first: after a crash here the others go with it.
    pin_of(pid, NamespaceKinds::USER, &dir.user()).map_err(failed("pin user namespace"))?;
    if kinds.contains(NamespaceKinds::IPC) {
        pin_of(pid, NamespaceKinds::IPC, &dir.ipc()).map_err(failed("pin IPC namespace"))?;
    }
    if kinds.contains(NamespaceKinds::UTS) {
        pin_of(pid, NamespaceKinds::UTS, &dir.uts()).map_err(failed("pin UTS namespace"))?;
    }
    if kinds.contains(NamespaceKinds::NET) {
        pin_of(pid, NamespaceKinds::NET, &dir.net()).map_err(failed("pin network namespace"))?;
    }
    Ok(())
}

/// In the launcher's words.
pub(crate) fn ranges(ranges: &[crate::container::spec::IdMapping]) -> Vec<keelson_shim::spec::IdMapping> {
    let range = |range: &crate::container::spec::IdMapping| keelson_shim::spec::IdMapping {
        container_id: range.container_id,
        host_id: range.host_id,
        size: range.length,
    };
    ranges.iter().map(range).collect()
}

fn open_proc() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open("/proc", flags, rustix::fs::Mode::empty())
}
