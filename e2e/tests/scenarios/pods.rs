//! Pod sandboxes: life, attributes, namespaces, network.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, pod};

use crate::scenario;

async fn ready(cri: &mut Cri, node: &Node, name: &str) -> Result<(String, cri::PodSandboxConfig, String)> {
    let config = pod(node, name);
    let id = cri.run_pod(&config).await?;
    let ip = cri.pod_status(&id).await?.network.context("network")?.ip;
    Ok((id, config, ip))
}

#[test]
fn a_pod_lives_and_goes() {
    scenario(async |node, mut cri| {
        let (id, config, ip) = ready(&mut cri, node, "life").await?;
        let status = cri.pod_status(&id).await?;
        ensure!(status.state() == cri::PodSandboxState::SandboxReady);
        ensure!(status.metadata == config.metadata && status.labels == config.labels, "{status:?}");
        ensure!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "address `{ip}`");
        let network = status.network.context("network")?;
        ensure!(network.additional_ips.iter().any(|a| a.ip.parse::<std::net::Ipv6Addr>().is_ok()), "{network:?}");
        let again = cri.run_pod(&config).await?;
        ensure!(again == id, "a repeated RunPodSandbox returns the first: {again} {id}");
        cri.stop_pod(&id).await?;
        cri.stop_pod(&id).await?;
        ensure!(cri.pod_status(&id).await?.state() == cri::PodSandboxState::SandboxNotready);
        cri.remove_pod(&id).await?;
        cri.remove_pod(&id).await?;
        let list = cri.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items;
        ensure!(list.is_empty(), "{list:?}");
        Ok(())
    });
}

#[test]
fn lists_are_filtered_by_id_state_and_label() {
    scenario(async |node, mut cri| {
        let (one, ..) = ready(&mut cri, node, "one").await?;
        let (two, ..) = ready(&mut cri, node, "two").await?;
        cri.stop_pod(&two).await?;
        let mut list = async |filter: cri::PodSandboxFilter| -> Result<Vec<String>> {
            let request = cri::ListPodSandboxRequest { filter: Some(filter) };
            Ok(cri.runtime.list_pod_sandbox(request).await?.into_inner().items.into_iter().map(|p| p.id).collect())
        };
        ensure!(list(cri::PodSandboxFilter::default()).await?.len() == 2);
        ensure!(
            list(cri::PodSandboxFilter { id: one[..12].into(), ..Default::default() }).await?
                == std::slice::from_ref(&one)
        );
        let state = |state: cri::PodSandboxState| Some(cri::PodSandboxStateValue { state: state.into() });
        ensure!(
            list(cri::PodSandboxFilter { state: state(cri::PodSandboxState::SandboxNotready), ..Default::default() })
                .await?
                == [two]
        );
        let label_selector = [("test".to_owned(), "one".to_owned())].into();
        ensure!(list(cri::PodSandboxFilter { label_selector, ..Default::default() }).await? == [one]);
        Ok(())
    });
}

#[test]
fn containers_of_a_pod_share_its_network_and_name() {
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let (id, config, ip) = ready(&mut cri, node, "shared").await?;
        let server = container(
            "server",
            "busybox:latest",
            "mkdir /www; echo hi > /www/index.html; exec httpd -f -p 8080 -h /www",
        );
        cri.run(&id, server, &config).await?;
        let client = cri.run(&id, container("client", "busybox:latest", "sleep 1000"), &config).await?;
        let page = cri.shell(&client, "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://127.0.0.1:8080/ && exit; usleep 50000; done; exit 1").await?;
        ensure!(page == "hi\n", "{page}");
        ensure!(cri.shell(&client, "hostname").await?.trim() == "shared");
        let addresses = cri.shell(&client, "ip addr show eth0").await?;
        ensure!(addresses.contains(&ip), "{addresses}");
        ensure!(cri.shell(&client, "cat /etc/hosts").await?.contains("localhost"));
        // Another pod reaches it by address, v4 and v6.
        let (other, other_config, _) = ready(&mut cri, node, "other").await?;
        let far = cri.run(&other, container("far", "busybox:latest", "sleep 1000"), &other_config).await?;
        ensure!(cri.shell(&far, &format!("wget -q -O - http://{ip}:8080/")).await? == "hi\n");
        let v6 = cri.pod_status(&id).await?.network.context("network")?.additional_ips;
        let v6 = &v6.first().context("an IPv6 address")?.ip;
        ensure!(cri.shell(&far, &format!("wget -q -O - http://[{v6}]:8080/")).await? == "hi\n");
        // Hairpin: the pod reaches itself by its own address.
        ensure!(cri.shell(&client, &format!("wget -q -O - http://{ip}:8080/")).await? == "hi\n");
        Ok(())
    });
}

#[test]
fn namespace_modes_are_kept() {
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let host =
            |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).map(|l| l.to_string_lossy().into_owned());
        let options = cri::NamespaceOption {
            network: cri::NamespaceMode::Node.into(),
            ipc: cri::NamespaceMode::Node.into(),
            pid: cri::NamespaceMode::Node.into(),
            ..Default::default()
        };
        let mut config = pod(node, "hostns");
        config.hostname = String::new();
        let linux = config.linux.get_or_insert_default();
        linux.security_context =
            Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() });
        let id = cri.run_pod(&config).await?;
        let mut ctr = container("c", "busybox:latest", "sleep 1000");
        ctr.linux.get_or_insert_default().security_context =
            Some(cri::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() });
        let c = cri.run(&id, ctr, &config).await?;
        for kind in ["net", "ipc", "pid", "uts"] {
            let inside = cri.shell(&c, &format!("readlink /proc/self/ns/{kind}")).await?;
            ensure!(inside.trim() == host(kind)?, "{kind}: {inside} is not the host's");
        }

        // Shared process namespace: both containers see the pod's init, and the reaper collects orphans.
        let mut config = pod(node, "sharedpid");
        let options = cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() };
        config.linux.get_or_insert_default().security_context =
            Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() });
        let id = cri.run_pod(&config).await?;
        let with = |name: &str, script: &str| {
            let mut ctr = container(name, "busybox:latest", script);
            ctr.linux.get_or_insert_default().security_context = Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(options.clone()),
                ..Default::default()
            });
            ctr
        };
        let a = cri.run(&id, with("a", "exec sleep 4242"), &config).await?;
        let b = cri.run(&id, with("b", "exec sleep 1000"), &config).await?;
        let seen = cri.shell(&b, "ps").await?;
        ensure!(seen.contains("sleep 4242"), "{seen}");
        cri.shell(&a, "(sleep 0.1 &) ; true").await?;
        let zombies = "for i in 1 2 3 4 5 6 7 8 9 10; do usleep 100000; grep -l '^State:.*Z' /proc/[0-9]*/status 2>/dev/null || exit 0; done; exit 1";
        cri.shell(&b, zombies).await.context("an orphan stays a zombie")?;
        cri.stop(&a, 0).await?;
        ensure!(
            cri.status(&b).await?.state() == cri::ContainerState::ContainerRunning,
            "one container's end does not end the other"
        );
        Ok(())
    });
}

#[test]
fn sysctls_dns_and_devices_shm_are_as_asked() {
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let mut config = pod(node, "sys");
        config.dns_config = Some(cri::DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
        config.linux.get_or_insert_default().sysctls =
            [("kernel.shm_rmid_forced".into(), "1".into()), ("net.ipv4.tcp_syncookies".into(), "0".into())].into();
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        let d = cri.run(&id, container("d", "busybox:latest", "sleep 1000"), &config).await?;
        let resolv = cri.shell(&c, "cat /etc/resolv.conf").await?;
        ensure!(resolv == "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n", "{resolv}");
        ensure!(
            cri.shell(&c, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/tcp_syncookies").await? == "1\n0\n"
        );
        cri.shell(&c, "echo shared > /dev/shm/x").await?;
        ensure!(cri.shell(&d, "cat /dev/shm/x").await? == "shared\n", "/dev/shm belongs to the pod");
        cri.shell(&c, "echo a > /dev/null; head -c 4 /dev/urandom | wc -c; ls -l /dev/stdout /dev/fd /dev/ptmx")
            .await?;
        ensure!(cri.shell(&c, "df /dev/shm | tail -1").await?.contains("65536"));
        Ok(())
    });
}
