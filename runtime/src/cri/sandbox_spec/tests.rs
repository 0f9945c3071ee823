//! What a pod sandbox's configuration becomes, and what is refused.

use super::*;

fn config() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "default".into(),
            attempt: 3,
        }),
        ..v1::PodSandboxConfig::default()
    }
}

fn security(options: v1::NamespaceOption) -> Option<v1::LinuxPodSandboxConfig> {
    Some(v1::LinuxPodSandboxConfig {
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..v1::LinuxSandboxSecurityContext::default()
        }),
        ..v1::LinuxPodSandboxConfig::default()
    })
}

#[test]
fn a_whole_configuration_arrives() {
    let config = v1::PodSandboxConfig {
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/x".into(),
        dns_config: Some(v1::DnsConfig { servers: vec!["10.0.0.10".into()], ..v1::DnsConfig::default() }),
        port_mappings: vec![v1::PortMapping {
            protocol: 1,
            container_port: 53,
            host_port: 5353,
            host_ip: "fd00::1".into(),
        }],
        labels: [("a".to_owned(), "b".to_owned())].into(),
        annotations: [("c".to_owned(), "line\nbreak".to_owned())].into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/podx".into(),
            sysctls: [("net.core.somaxconn".to_owned(), "1024".to_owned())].into(),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        ..config()
    };
    let spec = decode(Some(config), HANDLER.into()).unwrap();
    assert_eq!(encode_key(&spec.key), super::tests::config().metadata.unwrap());
    assert_eq!(spec.log_directory.as_deref(), Some(std::path::Path::new("/var/log/pods/x")));
    assert_eq!(spec.dns.unwrap().servers, ["10.0.0.10"]);
    let port = spec.port_mappings.first().unwrap();
    assert_eq!((port.protocol, port.container_port, port.host_port), (Protocol::Udp, 53, 5353));
    assert_eq!(port.host_ip, Some("fd00::1".parse().unwrap()));
    assert_eq!(spec.annotations["c"], "line\nbreak");
    assert_eq!((spec.cgroup_parent.as_str(), spec.handler.as_str()), ("/kubepods/podx", "native"));
    assert_eq!(spec.sysctls["net.core.somaxconn"], "1024");
}

#[test]
fn an_empty_resolver_configuration_is_none() {
    let config = v1::PodSandboxConfig { dns_config: Some(v1::DnsConfig::default()), ..config() };
    assert_eq!(decode(Some(config), String::new()).unwrap().dns, None);
}

#[test]
fn namespaces_survive_the_way_in_and_out() {
    use v1::NamespaceMode::{Container, Node, Pod};
    for network in [Pod, Node] {
        for pid in [Pod, Container, Node] {
            for ipc in [Pod, Node] {
                let options = v1::NamespaceOption {
                    network: network.into(),
                    pid: pid.into(),
                    ipc: ipc.into(),
                    ..v1::NamespaceOption::default()
                };
                let config = v1::PodSandboxConfig { linux: security(options.clone()), ..config() };
                let spec = decode(Some(config), String::new()).unwrap();
                assert_eq!(encode_namespaces(&spec), options);
            }
        }
    }
}

#[test]
fn a_sandbox_that_says_nothing_of_namespaces_shares_no_pid_namespace() {
    assert_eq!(decode(Some(config()), String::new()).unwrap().namespaces, Namespaces::default());
    assert_eq!(Namespaces::default().pid, PidMode::Container);
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    type Spoil = fn(&mut v1::PodSandboxConfig);
    fn metadata(config: &mut v1::PodSandboxConfig) -> &mut v1::PodSandboxMetadata {
        config.metadata.as_mut().unwrap()
    }
    fn option(config: &mut v1::PodSandboxConfig, set: fn(&mut v1::NamespaceOption)) {
        let mut options = v1::NamespaceOption::default();
        set(&mut options);
        config.linux = security(options);
    }
    fn userns(mode: i32) -> Option<v1::UserNamespace> {
        Some(v1::UserNamespace { mode, ..v1::UserNamespace::default() })
    }
    let cases: [(&str, Spoil); 25] = [
        ("config.metadata: missing", |c| c.metadata = None),
        ("config.metadata.name: is empty", |c| metadata(c).name.clear()),
        ("config.metadata.namespace: is empty", |c| metadata(c).namespace.clear()),
        ("config.metadata.uid: is empty", |c| metadata(c).uid.clear()),
        ("config.metadata.name: has 300 bytes", |c| metadata(c).name = "x".repeat(300)),
        ("config.metadata.name: `a\\nb` holds a control", |c| metadata(c).name = "a\nb".into()),
        ("config.metadata.uid: `\\0` holds a control", |c| metadata(c).uid = "\0".into()),
        ("config.log_directory: `logs`", |c| c.log_directory = "logs".into()),
        ("config.windows", |c| c.windows = Some(v1::WindowsPodSandboxConfig::default())),
        ("config.port_mappings: container_port 65536", |c| c.port_mappings = vec![port(65536, 0, "")]),
        ("config.port_mappings: host_port -1", |c| c.port_mappings = vec![port(80, -1, "")]),
        ("config.port_mappings: host_ip `::x`", |c| c.port_mappings = vec![port(80, 80, "::x")]),
        ("config.port_mappings: protocol 9", |c| {
            c.port_mappings = vec![v1::PortMapping { protocol: 9, ..v1::PortMapping::default() }];
        }),
        ("config.linux.security_context.namespace_options.network: mode 7", |c| option(c, |o| o.network = 7)),
        ("config.linux.security_context.namespace_options.network: a pod", |c| option(c, |o| o.network = 1)),
        ("config.linux.security_context.namespace_options.pid: TARGET", |c| option(c, |o| o.pid = 3)),
        ("config.linux.security_context.namespace_options.ipc: want POD", |c| option(c, |o| o.ipc = 1)),
        ("config.linux.security_context.namespace_options.ipc: mode -1", |c| option(c, |o| o.ipc = -1)),
        ("config.linux.security_context.namespace_options.userns_options: uids: 0 mappings", |c| {
            option(c, |o| o.userns_options = userns(0));
        }),
        ("config.linux.security_context.namespace_options.userns_options: uids: 2 mappings", |c| {
            option(c, |o| o.userns_options = mapped(&[(0, 1000, 10), (0, 2000, 10)]));
        }),
        ("config.linux.security_context.namespace_options.userns_options: uids: id 0", |c| {
            option(c, |o| o.userns_options = mapped(&[(1, 1000, 10)]));
        }),
        ("config.linux.security_context.namespace_options.userns_options: uids: a mapping of length 0", |c| {
            option(c, |o| o.userns_options = mapped(&[(0, 1000, 0)]));
        }),
        ("config.linux.security_context.namespace_options.userns_options: mode NODE has no", |c| {
            option(c, |o| {
                o.userns_options = mapped(&[(0, 1000, 10)]).map(|users| v1::UserNamespace { mode: 2, ..users });
            });
        }),
        ("config.linux.security_context.namespace_options.userns_options: want POD", |c| {
            option(c, |o| o.userns_options = userns(1));
        }),
        ("config.linux.security_context.namespace_options.userns_options: mode 8", |c| {
            option(c, |o| o.userns_options = userns(8));
        }),
    ];
    for (want, spoil) in cases {
        let mut config = config();
        spoil(&mut config);
        let said = decode(Some(config), String::new()).unwrap_err().to_string();
        assert!(said.starts_with(want), "want {want}\n got {said}");
    }
    // Which handlers there are, the engine knows.
    assert_eq!(decode(Some(config()), "kata".into()).unwrap().handler, "kata");
    assert!(decode(None, String::new()).is_err());
}

fn mapped(ranges: &[(u32, u32, u32)]) -> Option<v1::UserNamespace> {
    let range = |&(container_id, host_id, length): &(u32, u32, u32)| v1::IdMapping { host_id, container_id, length };
    let ranges: Vec<_> = ranges.iter().map(range).collect();
    Some(v1::UserNamespace { mode: 0, uids: ranges.clone(), gids: ranges })
}

fn port(container_port: i32, host_port: i32, host_ip: &str) -> v1::PortMapping {
    v1::PortMapping { protocol: 0, container_port, host_port, host_ip: host_ip.into() }
}

#[test]
fn the_hosts_user_namespace_may_be_asked_for() {
    let options = v1::NamespaceOption {
        userns_options: Some(v1::UserNamespace { mode: 2, ..v1::UserNamespace::default() }),
        ..v1::NamespaceOption::default()
    };
    assert!(decode(Some(v1::PodSandboxConfig { linux: security(options), ..config() }), String::new()).is_ok());
}

#[test]
fn a_user_namespace_comes_back_as_it_was_asked_for() {
    let options = v1::NamespaceOption { userns_options: mapped(&[(0, 1000, 100_000)]), ..Default::default() };
    let decoded = v1::PodSandboxConfig { linux: security(options.clone()), ..config() };
    assert_eq!(encode_namespaces(&decode(Some(decoded), String::new()).unwrap()), options);
}
