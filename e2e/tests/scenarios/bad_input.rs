//! Bad input gets a specific error, leaves nothing half-made, and the daemon goes on.

use anyhow::{Context, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{container, pod};
use tonic::Code;

use crate::scenario;

#[test]
fn malformed_requests_are_refused_by_name() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let good = pod(node, "pod");
        let change = |f: fn(&mut cri::PodSandboxConfig)| {
            let mut config = good.clone();
            f(&mut config);
            config
        };
        for (what, config) in [
            ("no metadata", change(|c| c.metadata = None)),
            ("empty name", change(|c| c.metadata.as_mut().unwrap().name.clear())),
            ("relative log directory", change(|c| c.log_directory = "relative".into())),
            ("long hostname", change(|c| c.hostname = "h".repeat(300))),
            ("cgroup traversal", change(|c| c.linux.as_mut().unwrap().cgroup_parent = "/../../x".into())),
            (
                "unknown namespace mode",
                change(|c| {
                    c.linux.as_mut().unwrap().security_context = Some(cri::LinuxSandboxSecurityContext {
                        namespace_options: Some(cri::NamespaceOption { network: 77, ..Default::default() }),
                        ..Default::default()
                    });
                }),
            ),
        ] {
            let error = cri.run_pod(&config).await.err().with_context(|| format!("{what} must be refused"))?;
            ensure!(error.code() == Code::InvalidArgument && error.message().len() > 10, "{what}: {error:?}");
        }
        let request = cri::RunPodSandboxRequest { config: Some(good.clone()), runtime_handler: "nosuch".into() };
        let error = cri.runtime.run_pod_sandbox(request).await.err().context("unknown handler")?;
        ensure!(error.message().contains("nosuch"), "{error:?}");
        let id = cri.run_pod(&good).await?;
        let change = |f: fn(&mut cri::ContainerConfig)| {
            let mut config = container("c", "busybox", "sleep 1000");
            f(&mut config);
            config
        };
        for (what, config) in [
            ("no metadata", change(|c| c.metadata = None)),
            ("no image", change(|c| c.image = None)),
            ("absent image", change(|c| c.image.as_mut().unwrap().image = "absent:latest".into())),
            (
                "relative mount",
                change(|c| {
                    c.mounts.push(cri::Mount {
                        container_path: "../x".into(),
                        host_path: "/tmp".into(),
                        ..Default::default()
                    })
                }),
            ),
            (
                "mount of nothing",
                change(|c| {
                    c.mounts.push(cri::Mount {
                        container_path: "/x".into(),
                        host_path: String::new(),
                        ..Default::default()
                    })
                }),
            ),
            ("env with =", change(|c| c.envs.push(cri::KeyValue { key: "A=B".into(), value: "x".into() }))),
            ("env with NUL", change(|c| c.envs.push(cri::KeyValue { key: "A".into(), value: "x\0y".into() }))),
            ("log traversal", change(|c| c.log_path = "../../etc/x".into())),
            (
                "unknown capability",
                change(|c| {
                    c.linux.as_mut().unwrap().security_context = Some(cri::LinuxContainerSecurityContext {
                        capabilities: Some(cri::Capability {
                            add_capabilities: vec!["NOSUCH".into()],
                            ..Default::default()
                        }),
                        ..Default::default()
                    });
                }),
            ),
            (
                "apparmor without the kernel",
                change(|c| {
                    c.linux.as_mut().unwrap().security_context = Some(cri::LinuxContainerSecurityContext {
                        apparmor: Some(cri::SecurityProfile { profile_type: 2, localhost_ref: "localhost/x".into() }),
                        ..Default::default()
                    });
                }),
            ),
            (
                "missing seccomp profile",
                change(|c| {
                    c.linux.as_mut().unwrap().security_context = Some(cri::LinuxContainerSecurityContext {
                        seccomp: Some(cri::SecurityProfile {
                            profile_type: 2,
                            localhost_ref: "/no/such/profile.json".into(),
                        }),
                        ..Default::default()
                    });
                }),
            ),
        ] {
            let result = cri.create(&id, config, &good).await;
            let error = result.err().with_context(|| format!("{what} must be refused"))?;
            ensure!(
                error.message().len() > 10 && error.code() != Code::Unknown && error.code() != Code::Internal,
                "{what}: {error:?}"
            );
        }
        let unknown = "ab".repeat(32);
        for error in [cri.start(&unknown).await.err(), cri.exec(&unknown, &["true"], 1).await.map(drop).err()] {
            ensure!(
                error.as_ref().is_some_and(|e| e.code() == Code::NotFound && e.message().contains(&unknown[..12])),
                "{error:?}"
            );
        }
        cri.stop(&unknown, 0).await?;
        cri.remove(&unknown).await?;
        cri.stop_pod(&unknown).await?;
        cri.remove_pod(&unknown).await?;
        let error = cri.create(&unknown, container("c", "busybox", "x"), &good).await.err().context("unknown pod")?;
        ensure!(error.code() == Code::NotFound, "{error:?}");
        let list = cri.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers;
        ensure!(list.is_empty(), "a refused create leaves nothing: {list:?}");
        cri.stop_pod(&id).await?;
        let error = cri.create(&id, container("c", "busybox", "x"), &good).await.err().context("stopped pod")?;
        ensure!(error.code() == Code::FailedPrecondition, "{error:?}");
        Ok(())
    });
}

#[test]
fn a_megabyte_of_annotations_is_carried_and_more_than_the_limit_refused() {
    scenario(async |node, mut cri| {
        let mut config = pod(node, "big");
        config.annotations = (0..4).map(|i| (format!("a{i}"), "x".repeat(250 * 1024))).collect();
        let id = cri.run_pod(&config).await?;
        ensure!(cri.pod_status(&id).await?.annotations == config.annotations);
        config.annotations = [("huge".to_owned(), "x".repeat(17 << 20))].into();
        config.metadata.as_mut().context("metadata")?.name = "huge".into();
        ensure!(cri.run_pod(&config).await.is_err());
        Ok::<(), anyhow::Error>(())
    });
}
