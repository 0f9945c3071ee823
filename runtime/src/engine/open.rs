//! Opening the engine: take the folders, open store, images and network, look at the host, recover, start the reconciler.
//! Blocks on the blocking pool until recovery begins. Order matters: locks first, recovery before any request.
//! Owns the locks it takes. Must never touch a folder that another daemon has.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_imageservice::ImageService;
use keelson_network::Network;
use keelson_shim::cgroup;
use rustix::{
    fs::{FlockOperation, OFlags},
    process::Resource,
};

use tokio::sync::Semaphore;

use super::{
    CgroupDriver, EngineConfig, OpenError, Rlimit,
    shared::{STATS_TURNS, Shared},
    table::Table,
};
use crate::{
    apparmor::AppArmor,
    dirs::{RootDir, StateDir},
    oci::Host,
    seccomp::Programs,
    selinux::Selinux,
    shim_client::Shims,
    stats::{layers::Layers, slot::Budget},
    store::Store,
};

/// A daemon that was killed while it started a shim leaves its locks to that child until the child has exec'd.
const RELEASE: Duration = Duration::from_millis(500);

/// Everything but recovery.
pub(super) fn open(mut config: EngineConfig) -> Result<Arc<Shared>, OpenError> {
    let root = RootDir::new(config.root.clone());
    let state = StateDir::new(config.state.clone());
    let io = |act: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { act, path, source }
    };
    root.make().map_err(io("make folder", &config.root))?;
    state.make().map_err(io("make folder", &config.state))?;
    let locks = [lock(&state.lock())?, lock(&root.lock())?];
    let hierarchies = cgroup::detect().map_err(|error| OpenError::Cgroups(Box::new(error)))?;
    let mode = hierarchies.mode();
    let host_limits = !crate::oci::capabilities::of_this_process().iter().any(|name| name == "SYS_RESOURCE");
    if host_limits {
        config.rlimits.iter_mut().for_each(clamp);
    }
    let systemd = match config.cgroup_driver {
        CgroupDriver::Auto => mode == cgroup::Mode::V2 && cgroup::systemd_is_running(),
        CgroupDriver::Cgroupfs => false,
        CgroupDriver::Systemd => true,
    };
    let shims = Shims::new(&config.shim).map_err(io("copy the shim", &config.shim))?;
    let random = Path::new("/dev/urandom");
    let store = Store::open(&root, state.clone())?;
    let images = ImageService::open(config.images.clone()).map_err(|error| OpenError::Images(Box::new(error)))?;
    let network =
        config.network.clone().map(Network::open).transpose().map_err(|error| OpenError::Network(Box::new(error)))?;
    Ok(Arc::new(Shared {
        state,
        store,
        images: Arc::new(images),
        network,
        shims,
        host: Host::detect(mode == cgroup::Mode::V2, systemd, &root.probe()),
        cgroup_mode: mode,
        programs: Programs::default(),
        apparmor: AppArmor::detect(),
        selinux: Selinux::detect(),
        table: Table::default(),
        events: Default::default(),
        checkpoints: Default::default(),
        teardown: Shared::semaphore(),
        pending: Default::default(),
        draining: Default::default(),
        tasks: Default::default(),
        reapers: Default::default(),
        made_parents: Default::default(),
        random: File::open(random).map_err(io("open", random))?,
        last_created: Default::default(),
        layers: Layers::new(config.writable_layer_period),
        health: Arc::default(),
        features: Default::default(),
        readers: Arc::new(Budget::of_this_process()),
        stats_turns: Arc::new(Semaphore::new(STATS_TURNS)),
        _locks: locks,
        config,
    }))
}

/// Without CAP_SYS_RESOURCE a default limit above the daemon's own would fail every container: it is lowered, and told once.
fn clamp(limit: &mut Rlimit) {
    let resource = match limit.name.as_str() {
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return,
    };
    if let Some(most) = rustix::process::getrlimit(resource).maximum.filter(|most| *most < limit.hard) {
        tracing::info!(
            limit = limit.name,
            asked = limit.hard,
            most,
            "the daemon may not raise its own limit: containers get what it has"
        );
        limit.hard = most;
        limit.soft = limit.soft.min(most);
    }
}

/// Takes the lock file, or says who has it.
fn lock(path: &Path) -> Result<File, OpenError> {
    let failed = |act, source| OpenError::Io { act, path: path.to_owned(), source };
    let nofollow = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nofollow)
        .open(path)
        .map_err(|source| failed("open", source))?;
    let end = Instant::now() + RELEASE;
    let locked = loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(RELEASE / 50),
            other => break other,
        }
    };
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // Who has it is told where it can be read; that it is taken is certain.
            let _ = (&file).take(32).read_to_string(&mut text);
            return Err(OpenError::Locked { path: path.to_owned(), pid: text.trim().parse().unwrap_or(0) });
        }
        Err(errno) => return Err(failed("lock", errno.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(|source| failed("write", source))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_has_the_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let first = lock(&path).unwrap();
        match lock(&path) {
            Err(OpenError::Locked { pid, .. }) => assert_eq!(u32::try_from(pid).unwrap(), std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(first);
        lock(&path).unwrap();
    }
}
