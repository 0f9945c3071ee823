//! H3: one container through the OCI command line: create, start, wait, delete of `/bin/true`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Options, Table,
    daemons::peer,
    figures::{FLOOR, OURS, machine_cpu},
};

struct Runtime {
    name: &'static str,
    /// Program and arguments before the verb.
    command: Vec<String>,
    /// Run in a private mount namespace that shows only cgroup2: crun refuses a hybrid hierarchy.
    only_v2: bool,
}

const FIGURE: &str = "H3 OCI create, start, wait, delete";

pub(super) fn h3(options: &Options, table: &mut Table) -> Result<()> {
    let scratch = tempfile::tempdir_in("/dev/shm")?;
    let bundle = bundle(scratch.path())?;
    let state = |name: &str| scratch.path().join(format!("state-{name}"));
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let shim = crate::node::binary("keelson-shim");
    let hybrid = Path::new("/sys/fs/cgroup/unified").exists();
    let mut runtimes = vec![
        Runtime {
            name: OURS,
            command: vec![text(shim), "oci".into(), "--root".into(), text(state(OURS))],
            only_v2: false,
        },
        Runtime {
            name: "runc",
            command: vec![text(peer("runc")?), "--root".into(), text(state("runc"))],
            only_v2: false,
        },
    ];
    if Path::new("/usr/bin/crun").exists() {
        runtimes.push(Runtime {
            name: "crun",
            command: vec!["/usr/bin/crun".into(), "--root".into(), text(state("crun"))],
            only_v2: hybrid,
        });
    }
    runtimes.retain(|r| r.name.contains(&options.contender));
    let mut samples: Vec<Vec<f64>> = runtimes.iter().map(|_| Vec::new()).collect();
    let mut cpu: Vec<Duration> = runtimes.iter().map(|_| Duration::ZERO).collect();
    let mut floor = Vec::new();
    for runtime in &runtimes {
        turn(runtime, &bundle, "warm", 1).with_context(|| format!("{}: warm-up", runtime.name))?;
    }
    for r in 0..options.rounds {
        for (i, runtime) in runtimes.iter().enumerate() {
            let before = machine_cpu();
            samples[i].extend(
                turn(runtime, &bundle, &format!("b{r}"), options.operations)
                    .with_context(|| runtime.name.to_owned())?,
            );
            cpu[i] += machine_cpu() - before;
        }
        for _ in 0..options.operations {
            let begun = Instant::now();
            let status =
                Command::new("unshare").args(["-m", "-n", "-p", "-u", "-i", "-f", "/bin/busybox", "true"]).status()?;
            ensure!(status.success());
            floor.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    for ((runtime, samples), cpu) in runtimes.iter().zip(samples).zip(cpu) {
        table.add(FIGURE, runtime.name, "ms", samples, Some(cpu));
    }
    table.add(FIGURE, FLOOR, "ms", floor, None);
    Ok(())
}

/// One whole life, milliseconds.
fn life(runtime: &Runtime, bundle: &Path, id: &str) -> Result<f64> {
    let pid_file = bundle.join("pid");
    let bundle_text = bundle.to_string_lossy();
    let begun = Instant::now();
    verb(runtime, &["create", "--bundle", &bundle_text, "--pid-file", &pid_file.to_string_lossy(), id])?;
    let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid).context("pid")?,
        rustix::process::PidfdFlags::empty(),
    );
    verb(runtime, &["start", id])?;
    if let Ok(pidfd) = pidfd {
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 }))?;
    }
    verb(runtime, &["delete", id])?;
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

fn verb(runtime: &Runtime, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(&runtime.command[0]);
    // No pipes: the container keeps its standard streams open.
    let status = command
        .args(&runtime.command[1..])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()?;
    ensure!(status.success(), "{} {arguments:?} ended with {status}", runtime.name);
    Ok(())
}

/// A turn of many lives, milliseconds each.
fn turn(runtime: &Runtime, bundle: &Path, tag: &str, count: usize) -> Result<Vec<f64>> {
    if !runtime.only_v2 {
        return (0..count).map(|n| life(runtime, bundle, &format!("{tag}-{n}"))).collect();
    }
    let inside = "mount -t cgroup2 none /sys/fs/cgroup; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", inside, "sh"])
        .arg(std::env::current_exe()?)
        .args(["oci-lives", tag, &count.to_string()])
        .arg(bundle)
        .args(&runtime.command)
        .stderr(Stdio::inherit())
        .output()
        .context("run unshare")?;
    ensure!(output.status.success(), "{} in its own mount namespace ended with {}", runtime.name, output.status);
    String::from_utf8(output.stdout)?.lines().map(|l| Ok(l.parse()?)).collect()
}

/// The part of a turn that runs inside a private mount namespace: prints one figure a line.
pub fn lives(tag: &str, count: usize, bundle: &Path, command: Vec<String>) -> Result<()> {
    let runtime = Runtime { name: "", command, only_v2: false };
    for n in 0..count {
        println!("{}", life(&runtime, bundle, &format!("{tag}-{n}"))?);
    }
    Ok(())
}

fn bundle(scratch: &Path) -> Result<PathBuf> {
    let bundle = scratch.join("bundle");
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    for dir in ["proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("copy busybox (package busybox-static)")?;
    fs::hard_link(rootfs.join("bin/busybox"), rootfs.join("bin/true"))?;
    let namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount"].iter().map(|t| json!({ "type": t })).collect();
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
    Ok(bundle)
}
