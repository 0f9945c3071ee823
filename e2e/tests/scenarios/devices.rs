//! Devices by CDI: what a vendor's spec gives to a container, by request and by annotation, and what is refused.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result, ensure};
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Node, container, pod},
};
use tonic::Code;

use crate::{scenario_with, userns};

/// A vendor's folder pair, as configured.
struct Vendor {
    scratch: tempfile::TempDir,
}

impl Vendor {
    fn new() -> Vendor {
        let scratch = tempfile::tempdir_in("/var/tmp").expect("scratch folder");
        for name in ["etc", "run"] {
            fs::create_dir(scratch.path().join(name)).expect("folder");
        }
        Vendor { scratch }
    }

    fn config(&self) -> String {
        let path = |name: &str| self.scratch.path().join(name).display().to_string();
        format!("[containers]\ncdi_dirs = [\"{}\", \"{}\"]\n", path("etc"), path("run"))
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.scratch.path().join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.display().to_string())
    }
}

fn asking(name: &str, devices: &[&str]) -> Result<v1::ContainerConfig> {
    let mut config: v1::ContainerConfig = same(&container(name, "busybox:latest", "sleep 1000"))?;
    config.cdi_devices = devices.iter().map(|name| v1::CdiDevice { name: (*name).to_owned() }).collect();
    Ok(config)
}

#[test]
fn a_cdi_device_is_all_that_its_spec_says() {
    let vendor = Vendor::new();
    scenario_with(&vendor.config(), async |node, mut cri| {
        let library = vendor.file("libgpu.so", "library\n")?;
        let hook = vendor.file(
            "hook",
            "#!/bin/sh\nread -r state\nroot=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')/rootfs\n\
             echo \"$state\" > $root/hook-state && env > $root/hook-env\n",
        )?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        vendor.file(
            "etc/gpu.json",
            &format!(
                r#"{{"cdiVersion": "1.1.0", "kind": "vendor.example/gpu",
                  "containerEdits": {{
                    "env": ["GPUS=common"],
                    "mounts": [{{"hostPath": "{library}", "containerPath": "/usr/lib/libgpu.so", "options": ["ro", "nosuid", "nodev", "bind"]}}],
                    "hooks": [{{"hookName": "createContainer", "path": "{hook}", "env": ["OWN=1"]}}]
                  }},
                  "devices": [
                    {{"name": "0", "containerEdits": {{
                      "env": ["GPU0=yes"], "additionalGids": [4242],
                      "deviceNodes": [{{"path": "/dev/gpu/zero", "hostPath": "/dev/zero", "permissions": "r"}}]}}}},
                    {{"name": "log", "containerEdits": {{"deviceNodes": [{{"path": "/dev/fuse", "permissions": "rw", "fileMode": 384}}]}}}}
                  ]}}"#
            ),
        )?;
        vendor.file(
            "run/fpga.yaml",
            "cdiVersion: 0.5.0\nkind: vendor.example/fpga\ndevices:\n- name: a\n  containerEdits:\n    env: [FPGA=a]\n",
        )?;
        cri.pull("busybox:latest").await?;
        let id = cri.run_pod(&pod(node, "pod")).await?;
        let mut newest = Newest::of(node)?;
        let mut config = asking("c", &["vendor.example/gpu=0"])?;
        config.envs = vec![v1::KeyValue { key: "LD_PRELOAD".into(), value: b"/evil.so".to_vec() }];
        config.annotations =
            [("cdi.k8s.io/plugin_x".to_owned(), "vendor.example/fpga=a,vendor.example/gpu=0".to_owned())].into();
        let c = newest.run(&id, config).await?;
        let shell = async |script: &str| node.cri()?.shell(&c, script).await;
        ensure!(shell("echo $GPUS $GPU0 $FPGA").await? == "common yes a\n", "the environment of all of them");
        ensure!(
            shell("head -c 4 /dev/gpu/zero | od -An -tx1").await?.trim() == "00 00 00 00",
            "the device can be used"
        );
        ensure!(shell("cat /usr/lib/libgpu.so; id -G").await?.starts_with("library\n"), "the mount is there");
        ensure!(shell("id -G").await?.split_whitespace().any(|gid| gid == "4242"), "the group is there");
        ensure!(shell("cat /hook-state").await?.contains(&c), "the hook was told of the container, in its mounts");
        let environment = shell("cat /hook-env").await?;
        ensure!(environment.contains("OWN=1") && !environment.contains("evil"), "of the hook: {environment}");
        let status = newest.status(&c).await?;
        let groups = status.user.and_then(|user| user.linux).unwrap_or_default().supplemental_groups;
        ensure!(groups.contains(&4242), "the status says so: {groups:?}");
        // What was not asked for stays shut, even with a node of it.
        let shut = cri.exec(&c, &["sh", "-c", "mknod /made c 10 229 && : < /made"], 10).await?;
        ensure!(shut.exit_code != 0, "a device of the spec that was not asked for can be used");
        let mut config = asking("user", &["vendor.example/gpu=log"])?;
        config.linux.get_or_insert_default().security_context = Some(v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: 1000 }),
            run_as_group: Some(v1::Int64Value { value: 1001 }),
            ..Default::default()
        });
        let user = newest.run(&id, config).await?;
        ensure!(cri.shell(&user, "stat -c '%u:%g %a' /dev/fuse; : < /dev/fuse").await? == "1000:1001 600\n");
        node.kill()?;
        node.boot()?;
        ensure!(
            node.cri()?.shell(&c, "head -c 1 /dev/gpu/zero | wc -c").await?.trim() == "1",
            "after a kill of the daemon"
        );
        Ok(())
    });
}

#[test]
fn a_cdi_device_that_cannot_be_given_leaves_nothing_and_says_why() {
    let vendor = Vendor::new();
    scenario_with(&vendor.config(), async |node, mut cri| {
        let device = |edits: &str| {
            format!(
                r#"{{"cdiVersion": "1.1.0", "kind": "v.example/d", "devices": [{{"name": "x", "containerEdits": {{{edits}}}}}]}}"#
            )
        };
        vendor.file("etc/broken.json", "{")?;
        cri.pull("busybox:latest").await?;
        let id = cri.run_pod(&pod(node, "pod")).await?;
        let mut newest = Newest::of(node)?;
        let mut refused = async |edits: Option<&str>, name: &str| -> Result<tonic::Status> {
            match edits {
                Some(edits) => vendor.file("run/d.json", &device(edits)).map(drop)?,
                None => fs::remove_file(vendor.scratch.path().join("run/d.json"))
                    .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?,
            }
            newest.create(&id, asking("c", &[name])?).await.err().context("created all the same")
        };
        let error = refused(None, "v.example/d=x").await?;
        let names =
            ["v.example/d=x", "broken.json", &*vendor.scratch.path().join("run").to_string_lossy().into_owned()]
                .map(str::to_owned);
        ensure!(error.code() == Code::InvalidArgument, "{error:?}");
        ensure!(names.iter().all(|name| error.message().contains(name)), "{error:?}");
        let resctrl = fs::read_to_string("/proc/self/mountinfo")?.contains(" - resctrl ");
        let no_rdt = if resctrl { Code::Internal } else { Code::FailedPrecondition };
        for (edits, name, code, words) in [
            (r#""env": ["A=1"]"#, "v.example/d=y", Code::InvalidArgument, "there are: x"),
            (r#""env": ["A=1"]"#, "../../etc", Code::InvalidArgument, "want vendor.com/class=device"),
            (r#""netDevices": [{"hostInterfaceName": "lo"}]"#, "v.example/d=x", Code::InvalidArgument, "no name of an"),
            (
                r#""netDevices": [{"hostInterfaceName": "keelson-none"}]"#,
                "v.example/d=x",
                Code::Internal,
                "keelson-none",
            ),
            (r#""intelRdt": {"closID": "keelson-none"}"#, "v.example/d=x", no_rdt, "resctrl"),
            (
                r#""hooks": [{"hookName": "createContainer", "path": "/bin/false"}]"#,
                "v.example/d=x",
                Code::InvalidArgument,
                "hook",
            ),
            (
                r#""mounts": [{"hostPath": "/no/such/file", "containerPath": "/x"}]"#,
                "v.example/d=x",
                Code::Internal,
                "/no/such",
            ),
        ] {
            let error = refused(Some(edits), name).await?;
            ensure!(error.code() == code && error.message().contains(words), "{edits}: {error:?}");
        }
        let left = fs::read_dir(node.state_dir().join("containers"))?.count();
        ensure!(left == 0, "{left} containers left");
        ensure!(Path::new(&vendor.file("run/d.json", &device(r#""env": ["A=1"]"#))?).exists());
        let c = newest.run(&id, asking("c", &["v.example/d=x"])?).await?;
        ensure!(cri.shell(&c, "echo $A").await? == "1\n", "the same name, once the spec is mended");
        Ok(())
    });
}

/// A hook of the daemon's namespaces that adds what it was told to a file.
fn hook(vendor: &Vendor, name: &str, script: &str) -> Result<(String, std::path::PathBuf)> {
    let out = vendor.scratch.path().join(format!("{name}.out"));
    let text = format!("#!/bin/sh\nread -r state\necho \"$state\" >> {}\n{script}\n", out.display());
    let path = vendor.file(name, &text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((path, out))
}

/// What a hook was told, one JSON value for each time that it ran.
fn told(out: &Path) -> Result<Vec<serde_json::Value>> {
    let text = match fs::read_to_string(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn hooks_of_cdi_devices_run_after_the_start_and_at_the_removal() {
    let vendor = Vendor::new();
    scenario_with(&vendor.config(), async |node, mut cri| {
        let (start, started) = hook(&vendor, "start", "exit 0")?;
        let (stop, stopped) = hook(&vendor, "stop", "exit 7")?;
        let (bad, refused) = hook(&vendor, "bad", "exit 3")?;
        vendor.file(
            "etc/d.json",
            &format!(
                r#"{{"cdiVersion": "1.1.0", "kind": "v.example/d", "devices": [
                  {{"name": "x", "containerEdits": {{"hooks": [{{"hookName": "poststart", "path": "{start}"}}, {{"hookName": "poststop", "path": "{stop}"}}]}}}},
                  {{"name": "bad", "containerEdits": {{"hooks": [{{"hookName": "poststart", "path": "{bad}"}}]}}}}]}}"#
            ),
        )?;
        cri.pull("busybox:latest").await?;
        let id = cri.run_pod(&pod(node, "pod")).await?;
        let mut newest = Newest::of(node)?;
        let c = newest.create(&id, asking("c", &["v.example/d=x"])?).await?;
        ensure!(told(&started)?.is_empty(), "before the start");
        newest.runtime.start_container(v1::StartContainerRequest { container_id: c.clone() }).await?;
        let said = told(&started)?;
        ensure!(said.len() == 1 && said[0]["id"] == *c && said[0]["status"] == "running", "{said:?}");
        let pid = said[0]["pid"].as_i64().context("no pid")?;
        ensure!(fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains(&*c), "{said:?}");
        // A hook that fails ends what it should have completed.
        let error = newest.run(&id, asking("bad", &["v.example/d=bad"])?).await.err().context("a failed hook")?;
        ensure!(format!("{error:#}").contains("poststart"), "{error:#}");
        ensure!(told(&refused)?.len() == 1);
        // The daemon dies with a container that has yet to be removed: what its device asks for at the end is not forgotten.
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        cri.runtime.stop_container(k8s_cri::v1::StopContainerRequest { container_id: c.clone(), timeout: 0 }).await?;
        let request = || k8s_cri::v1::RemoveContainerRequest { container_id: c.clone() };
        cri.runtime.remove_container(request()).await?;
        let said = told(&stopped)?;
        ensure!(said.len() == 1 && said[0]["id"] == *c && said[0]["status"] == "stopped", "{said:?}");
        cri.runtime.remove_container(request()).await?;
        ensure!(told(&stopped)?.len() == 1, "run again");
        ensure!(told(&started)?.len() == 1, "run again");
        Ok(())
    });
}

#[test]
fn an_interface_of_the_node_is_the_pods_while_it_lives() {
    const HOST: &str = "kle2e0";
    let vendor = Vendor::new();
    scenario_with(&vendor.config(), async |node, mut cri| {
        vendor.file(
            "etc/n.json",
            &format!(
                r#"{{"cdiVersion": "1.1.0", "kind": "v.example/nic", "devices": [{{"name": "x", "containerEdits": {{
                  "netDevices": [{{"hostInterfaceName": "{HOST}", "name": "net1"}}]}}}}]}}"#
            ),
        )?;
        cri.pull("busybox:latest").await?;
        let mut on_host = pod(node, "host");
        let security = on_host.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(k8s_cri::v1::NamespaceOption {
            network: k8s_cri::v1::NamespaceMode::Node.into(),
            pid: k8s_cri::v1::NamespaceMode::Container.into(),
            ..Default::default()
        });
        let namespaces = security.namespace_options.clone();
        let host_pod = cri.run_pod(&on_host).await?;
        let mut admin = container("admin", "busybox", "exec sleep 1000");
        let security = admin.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = namespaces;
        security.capabilities =
            Some(k8s_cri::v1::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
        let admin = cri.run(&host_pod, admin, &on_host).await?;
        // A scenario that was ended half-way may have left it.
        let script = format!(
            "ip link del {HOST} 2>/dev/null; (ip link add {HOST} type dummy || ip link add {HOST} type veth) && \
             ip addr add 192.0.2.7/24 dev {HOST} && ip link set {HOST} up && echo made"
        );
        let made = cri.exec(&admin, &["sh", "-c", &script], 20).await?;
        if made.exit_code != 0 {
            println!(
                "SKIP an_interface_of_the_node_is_the_pods_while_it_lives: no interface can be made here: {}",
                String::from_utf8_lossy(&made.stderr)
            );
            return Ok(());
        }
        let outcome = lent(node, &admin).await;
        let _ = node.cri()?.exec(&admin, &["ip", "link", "del", HOST], 20).await;
        outcome
    });

    async fn lent(node: &mut Node, admin: &str) -> Result<()> {
        let mut cri = node.cri()?;
        let mut newest = Newest::of(node)?;
        let show = async |c: &str, name: &str| -> Result<String> {
            let shown = node.cri()?.exec(c, &["ip", "addr", "show", "dev", name], 10).await?;
            Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
        };
        ensure!(show(admin, HOST).await?.contains("192.0.2.7/24"), "on the node");
        let id = cri.run_pod(&pod(node, "pod")).await?;
        let c = newest.run(&id, asking("c", &["v.example/nic=x"])?).await?;
        let inside = show(&c, "net1").await?;
        ensure!(inside.contains("192.0.2.7/24") && inside.contains("UP"), "{inside}");
        ensure!(show(&c, "eth0").await?.contains("inet "), "the pod's own");
        ensure!(show(admin, HOST).await?.is_empty(), "it is not on the node");
        // A successor in the same pod has it too, another pod has not.
        newest.runtime.remove_container(v1::RemoveContainerRequest { container_id: c }).await?;
        let again = newest.run(&id, asking("again", &["v.example/nic=x"])?).await?;
        ensure!(show(&again, "net1").await?.contains("192.0.2.7/24"), "the second container of the pod");
        let other = cri.run_pod(&pod(node, "other")).await?;
        let error = newest.create(&other, asking("c", &["v.example/nic=x"])?).await.err().context("lent twice")?;
        ensure!(error.message().contains(HOST) && error.message().contains("another pod"), "{error:?}");
        // Who may rename interfaces in the pod does not decide what comes to the node.
        let swap = "ip link set net1 down && ip link set net1 name real && (ip link add net1 type dummy || ip link add net1 type veth) && ip link set net1 up";
        let mut root: v1::ContainerConfig = asking("swap", &["v.example/nic=x"])?;
        root.linux.get_or_insert_default().security_context = Some(v1::LinuxContainerSecurityContext {
            capabilities: Some(v1::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() }),
            ..Default::default()
        });
        let root = newest.run(&id, root).await?;
        let swapped = cri.exec(&root, &["sh", "-c", swap], 10).await?;
        ensure!(swapped.exit_code == 0, "{}", String::from_utf8_lossy(&swapped.stderr));
        let mac = show(&root, "real").await?;
        let mac = mac.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no MAC")?.to_owned();
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        cri.runtime.stop_pod_sandbox(k8s_cri::v1::StopPodSandboxRequest { pod_sandbox_id: id }).await?;
        let mut admin_view = String::new();
        for _ in 0..100 {
            let shown = cri.exec(admin, &["ip", "addr", "show", "dev", HOST], 10).await?;
            admin_view = String::from_utf8_lossy(&shown.stdout).into_owned();
            // Done behind the answer: moved, then as it was.
            if admin_view.contains("192.0.2.7/24") && admin_view.contains("UP") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        ensure!(admin_view.contains("192.0.2.7/24") && admin_view.contains("UP"), "back on the node: {admin_view}");
        ensure!(admin_view.contains(&mac), "another interface came to the node: {admin_view}");
        Ok(())
    }
}

#[test]
fn a_cdi_device_of_another_name_on_the_node_is_bound_in_a_user_namespace() {
    const NAME: &str = "a_cdi_device_of_another_name_on_the_node_is_bound_in_a_user_namespace";
    let vendor = Vendor::new();
    scenario_with(&vendor.config(), async |node, mut cri| {
        if !userns::can(&mut cri, NAME).await? {
            return Ok(());
        }
        vendor.file(
            "etc/d.json",
            r#"{"cdiVersion": "1.1.0", "kind": "v.example/d", "devices": [{"name": "x", "containerEdits": {"deviceNodes": [
              {"path": "/dev/gpu/zero", "hostPath": "/dev/zero", "permissions": "rw"}, {"path": "/dev/full", "hostPath": "/dev/full"}]}}]}"#,
        )?;
        cri.pull("busybox:latest").await?;
        let mut config = pod(node, "users");
        userns::with(&mut config, userns::own());
        let id = cri.run_pod(&config).await?;
        let mut newest = Newest::of(node)?;
        let c: v1::ContainerConfig =
            same(&userns::inside(container("c", "busybox:latest", "sleep 1000"), userns::own()))?;
        let devices = vec![v1::CdiDevice { name: "v.example/d=x".to_owned() }];
        let c = newest.run(&id, v1::ContainerConfig { cdi_devices: devices, ..c }).await?;
        let said =
            cri.shell(&c, "stat -c %t:%T /dev/gpu/zero /dev/full; head -c 3 /dev/gpu/zero | od -An -tx1").await?;
        ensure!(said == "1:5\n1:7\n 00 00 00\n", "{said}");
        ensure!(fs::metadata("/dev/zero")?.permissions().mode() & 0o777 == 0o666, "the node's own is as it was");
        Ok(())
    });
}
