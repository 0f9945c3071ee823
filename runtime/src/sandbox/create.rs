//! Making a sandbox: namespaces, network attachment, files, /dev/shm, and its holder, if it has one.
//! Kernel work runs on one thread of the blocking pool and two it starts for it: one inside the new namespaces, one for the files.
//! Owns nothing: the intent is recorded before the first effect, and every effect is found again by the sandbox's id.
//! Must never leave anything of a sandbox that failed: `release` undoes all that a name can find, in whatever state it is.

use std::{io, net::IpAddr, sync::Arc};

use keelson_network::AttachRequest;
use rustix::mount::MountFlags;

use super::{
    SandboxError, files, holder, namespaces, parent, release,
    spec::{IpcMode, PortMapping, Protocol},
};
use crate::{
    dirs::SandboxDir,
    engine::shared::{Shared, blocking},
    observe::Stage,
    selinux,
    store::record::SandboxRecord,
    user_namespace::UserNamespace,
};

/// What a made sandbox has.
pub(crate) struct Made {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) holder: Option<holder::Holder>,
    pub(crate) made_cgroup: bool,
}

/// A step that failed.
pub(crate) struct Failure {
    pub(crate) stage: &'static str,
    pub(crate) source: Arc<dyn std::error::Error + Send + Sync>,
}

/// Wraps the error of a step.
pub(crate) fn failed<E: std::error::Error + Send + Sync + 'static>(stage: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure { stage, source: Arc::new(error) }
}

/// Makes it, or undoes what was made.
pub(crate) async fn create(shared: Arc<Shared>, record: SandboxRecord) -> Result<Made, SandboxError> {
    let (record, base) = {
        let shared = Arc::clone(&shared);
        blocking(move || {
            let mut record = record;
            record.made_cgroup = Stage::Cgroup.run(&record.id, || parent::claim(&shared, &record));
            let made = make(&shared, &record);
            (record, made)
        })
        .await
    };
    let made_cgroup = record.made_cgroup;
    let made = match base {
        Ok(addresses) if holder::is_wanted(&shared, &record.spec) => {
            let holder = Stage::Holder.wait(&record.id, holder::start(&shared, &record)).await;
            holder.map(|holder| Made { addresses, holder: Some(holder), made_cgroup })
        }
        Ok(addresses) => Ok(Made { addresses, holder: None, made_cgroup }),
        Err(failure) => Err(failure),
    };
    match made {
        Ok(made) => Ok(made),
        Err(Failure { stage, source }) => {
            let id = record.id.clone();
            let undone = blocking(move || release::everything(&shared, &record)).await;
            if let Err(error) = undone {
                // The record is still there: the next start of the daemon tries again.
                tracing::warn!(sandbox = %id, %error, "undo failed sandbox");
            }
            Err(SandboxError::Failed { act: "run", id, stage, source })
        }
    }
}

fn make(shared: &Shared, record: &SandboxRecord) -> Result<Vec<IpAddr>, Failure> {
    let spec = &record.spec;
    let dir = shared.state.sandbox(&record.id);
    let hostname = files::hostname(spec);
    Stage::Reserve.run(&record.id, || {
        dir.make().map_err(failed("make run directory"))?;
        // The intent: from here on the sandbox's effects can be found and undone.
        shared.store.put_sandbox(record).map_err(failed("record intent"))
    })?;
    let span = tracing::Span::current();
    std::thread::scope(|scope| {
        let beside = std::thread::Builder::new()
            .name("sandbox-files".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, || {
                span.in_scope(|| Stage::Files.run(&record.id, || fill(shared, record, &hostname, &dir)))
            })
            .map_err(failed("start thread"))?;
        let addresses = connect(shared, record, &hostname, &dir);
        let filled = beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let addresses = addresses?;
        filled?;
        files::write_hosts(spec, &hostname, &addresses, &dir).map_err(failed("write hosts file"))?;
        if let Some(label) = shared.selinux.common(record) {
            files::label(&dir, &label).map_err(failed("label files"))?;
        }
        files::hand_over(spec, &dir).map_err(failed("give files to the sandbox's root"))?;
        Ok(addresses)
    })
}

/// Namespaces and network.
fn connect(shared: &Shared, record: &SandboxRecord, hostname: &str, dir: &SandboxDir) -> Result<Vec<IpAddr>, Failure> {
    let spec = &record.spec;
    let stage = Stage::Namespaces.begin(&record.id);
    let netns = namespaces::make(&shared.config, spec, hostname, dir)?;
    if let (IpcMode::Sandbox, Some(label)) = (spec.namespaces.ipc, shared.selinux.common(record)) {
        selinux::label_queues(&dir.ipc(), &label).map_err(failed("label message queues"))?;
    }
    drop(stage);
    match (netns, &shared.network) {
        (Some(netns), Some(network)) => {
            let request = AttachRequest {
                sandbox: record.id.clone(),
                ports: spec.port_mappings.iter().filter_map(port).collect(),
            };
            let attached = Stage::Network.run(&record.id, || network.attach(&request, &netns));
            Ok(attached.map_err(failed("attach to network"))?.addresses)
        }
        // Refused by the engine before.
        (Some(_), None) | (None, _) => Ok(Vec::new()),
    }
}

/// Resolver, host name, shared memory.
fn fill(shared: &Shared, record: &SandboxRecord, hostname: &str, dir: &SandboxDir) -> Result<(), Failure> {
    let spec = &record.spec;
    files::write(spec, hostname, dir).map_err(failed("write resolver and host name files"))?;
    if spec.namespaces.ipc == IpcMode::Sandbox {
        let root = spec.user_namespace.as_ref().map_or((0, 0), UserNamespace::root);
        let label = shared.selinux.common(record);
        mount_shm(dir, shared.config.shm_size, root, label.as_deref()).map_err(failed("mount /dev/shm"))?;
    }
    Ok(())
}

/// `root` is the sandbox's own: its folder. `label`: SELinux's, for all that will be in it.
fn mount_shm(dir: &SandboxDir, size: u64, root: (u32, u32), label: Option<&str>) -> io::Result<()> {
    std::fs::create_dir(dir.shm())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // In quotes, because a label has commas.
    let label = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
    let options = std::ffi::CString::new(format!("mode=1777,size={size},uid={},gid={}{label}", root.0, root.1))?;
    Ok(rustix::mount::mount("shm", dir.shm(), "tmpfs", flags, options.as_c_str())?)
}

/// A published port in the network room's words.
fn port(mapping: &PortMapping) -> Option<keelson_network::PortMapping> {
    (mapping.host_port != 0).then_some(keelson_network::PortMapping {
        protocol: match mapping.protocol {
            Protocol::Tcp => keelson_network::Protocol::Tcp,
            Protocol::Udp => keelson_network::Protocol::Udp,
            Protocol::Sctp => keelson_network::Protocol::Sctp,
        },
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        host_ip: mapping.host_ip,
    })
}
