//! Suite T15 of the security record from the outside: who a container's processes are. Capabilities, groups, cgroup, environment.
//! (User namespaces, which are the rest of it, have a file of their own.)

use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, pod};

use crate::scenario;

const SETS: &str = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";

async fn sandbox(cri: &mut Cri, node: &Node) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, "pod");
    Ok((cri.run_pod(&config).await?, config))
}

fn with(name: &str, image: &str, context: cri::LinuxContainerSecurityContext) -> cri::ContainerConfig {
    // What the init itself has is in its log, what an exec has is its output: both must be the same.
    let mut c = container(name, image, &format!("{SETS}; id -u; id -g; id -G; exec sleep 1000"));
    c.linux.get_or_insert_default().security_context = Some(context);
    c
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn uid(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

/// The five sets (inheritable, permitted, effective, bounding, ambient) as `/proc` prints them.
fn sets(sets: [u64; 5]) -> String {
    let [inh, prm, eff, bnd, amb] = sets;
    format!("CapInh:{inh:016x} CapPrm:{prm:016x} CapEff:{eff:016x} CapBnd:{bnd:016x} CapAmb:{amb:016x} ")
}

/// CVE-2022-24769, CVE-2022-29162, CVE-2025-27612: nothing is inheritable but what is ambient, and that is exactly what was asked for.
#[test]
fn t15_capabilities_are_exactly_those_asked_for_in_run_and_exec() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        const DEFAULT: u64 = 0xa804_25fb;
        const NET_BIND: u64 = 1 << 10;
        let context = |user: i64, add: &[&str], drop: &[&str], ambient: &[&str]| cri::LinuxContainerSecurityContext {
            run_as_user: uid(user),
            capabilities: Some(cri::Capability {
                add_capabilities: names(add),
                drop_capabilities: names(drop),
                add_ambient_capabilities: names(ambient),
            }),
            ..Default::default()
        };
        for (name, context, want) in [
            ("root", context(0, &[], &[], &[]), [0, DEFAULT, DEFAULT, DEFAULT, 0]),
            ("user", context(1000, &[], &[], &[]), [0, 0, 0, DEFAULT, 0]),
            ("user-add", context(1000, &["NET_ADMIN"], &[], &[]), [0, 0, 0, DEFAULT | 1 << 12, 0]),
            ("drop-all", context(0, &[], &["ALL"], &[]), [0; 5]),
            ("prefix-and-case", context(0, &["cap_net_admin"], &["all"], &[]), [0, 1 << 12, 1 << 12, 1 << 12, 0]),
            ("drop-one", context(0, &[], &["CAP_CHOWN"], &[]), {
                let rest = DEFAULT & !1;
                [0, rest, rest, rest, 0]
            }),
            ("ambient", context(1000, &[], &["ALL"], &["NET_BIND_SERVICE"]), [NET_BIND; 5]),
        ] {
            let c = cri.run(&id, with(name, "busybox", context), &config).await?;
            let by_exec = cri.shell(&c, SETS).await?;
            ensure!(by_exec == sets(want), "{name}, exec: {by_exec} want {}", sets(want));
            let log = format!("{}/{name}.log", config.log_directory);
            let by_run = keelson_e2e::node::eventually("the init's sets", async || {
                fs::read_to_string(&log).ok().filter(|text| text.lines().count() >= 3)
            })
            .await?;
            ensure!(by_run.contains(sets(want).trim_end()), "{name}, run: {by_run}");
        }
        let c = with("unknown", "busybox", context(0, &["GODMODE"], &[], &[]));
        let error = cri.create(&id, c, &config).await.err().context("an unknown capability was taken")?;
        ensure!(error.code() == tonic::Code::InvalidArgument && error.message().contains("GODMODE"), "{error:?}");
        Ok(())
    });
}

/// CVE-2022-36109, CVE-2022-2989, CVE-2023-25173: the groups are the asked ones and the image's, the primary one among them, and a
/// file that denies a group denies it to its members.
#[test]
fn t15_groups_are_those_of_the_policy_and_deny_as_well_as_allow() {
    scenario(async |node, mut cri| {
        let image = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest";
        cri.pull(image).await?;
        let (id, config) = sandbox(&mut cri, node).await?;
        let context = |policy: cri::SupplementalGroupsPolicy, groups: &[i64], group: Option<i64>| {
            cri::LinuxContainerSecurityContext {
                run_as_user: uid(1000),
                run_as_group: group.and_then(uid),
                supplemental_groups: groups.to_vec(),
                supplemental_groups_policy: policy.into(),
                ..Default::default()
            }
        };
        use cri::SupplementalGroupsPolicy::{Merge, Strict};
        for (name, context, want) in [
            ("merge", context(Merge, &[1234], None), &[1000, 1234, 50_000][..]),
            ("strict", context(Strict, &[1234], None), &[1000, 1234]),
            ("merge-group", context(Merge, &[], Some(7)), &[7, 50_000]),
            ("strict-group", context(Strict, &[7], Some(7)), &[7]),
        ] {
            let c = cri.run(&id, with(name, image, context), &config).await?;
            let mut groups: Vec<u32> =
                cri.shell(&c, "id -G").await?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            groups.sort_unstable();
            ensure!(groups == want, "{name}: {groups:?} want {want:?}");
            let user = cri.status(&c).await?.user.and_then(|user| user.linux).context("no user told")?;
            let mut told = user.supplemental_groups.clone();
            told.sort_unstable();
            ensure!(told == want.iter().map(|gid| i64::from(*gid)).collect::<Vec<_>>(), "{name}: told {told:?}");
            ensure!((user.uid, user.gid) == (1000, i64::from(groups[0].min(1000))), "{name}: {user:?}");
        }
        // Readable to everybody but to members of 50000: a group that was lost would open it.
        let volume = tempfile::tempdir_in("/var/tmp")?;
        fs::write(volume.path().join("secret"), "secret")?;
        std::os::unix::fs::chown(volume.path().join("secret"), Some(0), Some(50_000))?;
        fs::set_permissions(volume.path().join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o604))?;
        fs::set_permissions(volume.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        for (name, policy, readable) in [("member", Merge, false), ("stranger", Strict, true)] {
            let mut c = with(name, image, context(policy, &[], None));
            c.mounts = vec![cri::Mount {
                container_path: "/volume".into(),
                host_path: volume.path().to_string_lossy().into(),
                ..Default::default()
            }];
            let c = cri.run(&id, c, &config).await?;
            let read = cri.exec(&c, &["cat", "/volume/secret"], 10).await?;
            ensure!((read.exit_code == 0) == readable, "{name}: {read:?}");
        }
        Ok(())
    });
}

/// CVE-2021-21334: containers made at once do not get each other's environment.
#[test]
fn t15_environments_of_containers_made_at_once_do_not_mix() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100 {
            let (mut cri, id, config) = (cri.clone(), id.clone(), config.clone());
            tasks.spawn(async move {
                let mut c = container(&format!("env{number}"), "busybox", "env; true");
                c.envs = vec![
                    cri::KeyValue { key: "MINE".into(), value: number.to_string() },
                    cri::KeyValue { key: format!("ONLY_{number}"), value: "x".into() },
                ];
                let id = cri.run(&id, c, &config).await?;
                cri.wait_exit(&id).await?;
                let text = fs::read_to_string(format!("{}/env{number}.log", config.log_directory))?;
                let of = |prefix: &str| text.lines().filter(|line| line.contains(prefix)).count();
                ensure!(of(" MINE=") == 1 && text.contains(&format!(" MINE={number}\n")), "{number}: {text}");
                ensure!(of(" ONLY_") == 1 && text.contains(&format!(" ONLY_{number}=x\n")), "{number}: {text}");
                Ok(())
            });
        }
        tasks.join_all().await.into_iter().collect::<Result<()>>()
    });
}

/// CVE-2023-25809, CVE-2025-47291: init and execs are in the pod's cgroup, and the container cannot write to any.
#[test]
fn t15_processes_are_in_the_pods_cgroup_and_cannot_write_to_it() {
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let mut config = pod(node, "pod");
        config.linux.get_or_insert_default().cgroup_parent = "/keelson-e2e-identity".into();
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox", "exec sleep 1000"), &config).await?;
        let mut other = cri.clone();
        let target = c.clone();
        let exec = tokio::spawn(async move { other.exec(&target, &["sleep", "4242"], 3).await });
        let found = keelson_e2e::node::eventually("the exec's process", async || {
            fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                (line == b"sleep\x004242\0").then(|| fs::read_to_string(entry.path().join("cgroup")).ok())?
            })
        })
        .await?;
        let _ = exec.await?;
        for controller in ["memory", "pids", "devices"] {
            let line =
                found.lines().find(|line| line.contains(&format!(":{controller}:"))).or_else(|| found.lines().last());
            let line = line.context("no cgroup")?;
            ensure!(line.contains(&format!("/keelson-e2e-identity/{c}")), "{line}");
        }
        let script = "for f in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs -o -maxdepth 2 -name tasks); do echo 1 > $f && echo wrote $f; done; mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x && echo made; true";
        let said = cri.shell(&c, script).await?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    });
}
