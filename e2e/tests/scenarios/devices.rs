//! Devices by CDI: what a vendor's spec gives to a container, by request and by annotation, and what is refused.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result, ensure};
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{container, pod},
};
use tonic::Code;

use crate::scenario_with;

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
        for (edits, name, code, words) in [
            (r#""env": ["A=1"]"#, "v.example/d=y", Code::InvalidArgument, "there are: x"),
            (r#""env": ["A=1"]"#, "../../etc", Code::InvalidArgument, "want vendor.com/class=device"),
            (r#""netDevices": [{"hostInterfaceName": "lo"}]"#, "v.example/d=x", Code::FailedPrecondition, "netDevices"),
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
