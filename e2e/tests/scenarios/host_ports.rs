//! Host ports: reached from another machine, from pods and from the host itself; conflicts; who has a port after a change.
//! The other machine is a network namespace of our own, on a cable of our own.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, eventually, pod};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic::Code;

use crate::scenario;

/// The host's and the other machine's ends of the cable.
const HOST4: &str = "198.51.100.1";
const HOST6: &str = "fd6b:6565::1";
const OUT4: &str = "198.51.100.2";
const OUT6: &str = "fd6b:6565::2";
/// Nobody answers: refused at once, or dropped.
const PATIENCE: Duration = Duration::from_millis(700);

/// Answers each TCP connection and each datagram with its name and who asked, on both families.
fn server(name: &str) -> String {
    format!(
        r#"exec perl -e 'use Socket qw(:DEFAULT inet_ntop); $|=1; my $any=pack_sockaddr_in6(9000,"\0"x16);
        sub who {{ my($p,$a)=unpack_sockaddr_in6($_[0]); "{name} ".inet_ntop(AF_INET6,$a)."\n" }}
        if(fork){{ socket(S,PF_INET6,SOCK_DGRAM,17)&&bind(S,$any)||die $!; while(1){{ my $p=recv(S,my $m,512,0); send(S,who($p),0,$p) if $p }} }}
        socket(T,PF_INET6,SOCK_STREAM,6); setsockopt(T,SOL_SOCKET,SO_REUSEADDR,1); bind(T,$any)&&listen(T,64)||die $!;
        while(my $p=accept(C,T)){{ syswrite(C,who($p)); close C }}'"#
    )
}

/// Another machine.
struct Outside;

impl Outside {
    const NAME: &'static str = "keelson-e2e-out";

    fn new() -> Result<Outside> {
        let ip = |arguments: &str| -> Result<()> {
            let status = Command::new("ip").args(arguments.split(' ')).status().context("run ip")?;
            ensure!(status.success(), "ip {arguments}");
            Ok(())
        };
        ip(&format!("netns add {}", Self::NAME))?;
        let outside = Outside;
        ip(&format!("link add kout-host type veth peer name kout-out netns {}", Self::NAME))?;
        ip(&format!("addr add {HOST4}/24 dev kout-host"))?;
        ip(&format!("-6 addr add {HOST6}/64 dev kout-host nodad"))?;
        ip("link set kout-host up")?;
        for command in [
            format!("addr add {OUT4}/24 dev kout-out"),
            format!("-6 addr add {OUT6}/64 dev kout-out nodad"),
            "link set kout-out up".to_owned(),
            "link set lo up".to_owned(),
        ] {
            ip(&format!("-n {} {command}", Self::NAME))?;
        }
        Ok(outside)
    }

    /// Runs something there, on a thread of its own.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let namespace = fs::File::open(format!("/run/netns/{}", Self::NAME)).expect("its namespace");
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
                    .expect("enter it");
                work()
            });
            there.join().expect("the thread there")
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", "kout-host"]).status();
        let _ = Command::new("ip").args(["netns", "del", Self::NAME]).status();
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// What the server answers a connection.
fn tcp(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

fn ask(socket: &UdpSocket, to: SocketAddr) -> io::Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 256];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim().to_owned())
}

/// What it answers a datagram.
fn udp(to: SocketAddr) -> io::Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    ask(&UdpSocket::bind(any)?, to)
}

fn port(protocol: cri::Protocol, host_port: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping { protocol: protocol.into(), container_port: 9000, host_port, host_ip: host_ip.into() }
}

/// A pod that serves, up and listening.
async fn serving(cri: &mut Cri, node: &Node, name: &str, ports: Vec<cri::PortMapping>) -> Result<(String, String)> {
    let mut config = pod(node, name);
    config.port_mappings = ports;
    let id = cri.run_pod(&config).await?;
    let c = cri.run(&id, container("c", "debian:bookworm", &server(name)), &config).await?;
    let mut cri = cri.clone();
    // 0x2328 is port 9000; 0A is LISTEN.
    let up = "grep -q ':2328 .* 0A ' /proc/net/tcp6 && grep -q ':2328' /proc/net/udp6";
    eventually("the server listens", async || cri.shell(&c, up).await.ok()).await?;
    Ok((id, c))
}

/// A client in a container: connects and prints what it is told.
fn client(address: &str, port: u16, kind: &str) -> String {
    format!(
        r#"perl -e 'use Socket; $SIG{{ALRM}}=sub{{exit 9}}; alarm 3; my $to=pack_sockaddr_in({port},inet_aton("{address}"));
        if("{kind}" eq "tcp"){{ socket(S,PF_INET,SOCK_STREAM,6); connect(S,$to)||exit 8; print <S> }}
        else{{ socket(S,PF_INET,SOCK_DGRAM,17); send(S,"?",0,$to); recv(S,my $m,256,0); print $m }}'"#
    )
}

#[test]
fn a_host_port_is_reached_from_outside_from_pods_and_from_the_host() {
    scenario(async |node, mut cri| {
        cri.pull("debian:bookworm").await?;
        let outside = Outside::new()?;
        let (tcp_any, udp_any) = (port(cri::Protocol::Tcp, 18080, ""), port(cri::Protocol::Udp, 18080, ""));
        let ports = vec![
            tcp_any,
            udp_any,
            port(cri::Protocol::Tcp, 18081, HOST4),
            port(cri::Protocol::Tcp, 18082, "127.0.0.1"),
        ];
        let (one, serving_c) = serving(&mut cri, node, "one", ports).await?;
        let (_, other_c) = serving(&mut cri, node, "other", Vec::new()).await?;

        // From another machine: the server sees who really asks.
        for (to, from) in [(HOST4, "one ::ffff:198.51.100.2"), (HOST6, "one fd6b:6565::2")] {
            let (stream, datagram) = outside.run(|| (tcp(at(to, 18080)), udp(at(to, 18080))));
            let told = (stream?, datagram?);
            ensure!(told == (from.to_owned(), from.to_owned()), "from outside to {to}: {told:?}");
        }
        // From the host: by its loopback, and by any address of its own.
        for to in ["127.0.0.1", HOST4, HOST6] {
            ensure!(tcp(at(to, 18080))?.starts_with("one ") && udp(at(to, 18080))?.starts_with("one "), "host to {to}");
        }
        // From pods, the very one among them.
        for c in [&serving_c, &other_c] {
            for kind in ["tcp", "udp"] {
                let text = cri.shell(c, &client(HOST4, 18080, kind)).await?;
                ensure!(text.starts_with("one "), "{kind} from {c}: {text}");
            }
        }
        // A port of one address is not one of another.
        ensure!(outside.run(|| tcp(at(HOST4, 18081)))? == "one ::ffff:198.51.100.2");
        ensure!(tcp(at("127.0.0.1", 18081)).is_err() && outside.run(|| tcp(at(HOST6, 18081))).is_err());
        ensure!(tcp(at("127.0.0.1", 18082))?.starts_with("one "));
        ensure!(outside.run(|| tcp(at(HOST4, 18082))).is_err(), "a port of the loopback is open to others");

        // Kept over a kill of the daemon, and unpublished with the pod.
        node.kill()?;
        ensure!(outside.run(|| tcp(at(HOST4, 18080))).is_ok(), "without the daemon");
        node.boot()?;
        ensure!(outside.run(|| tcp(at(HOST4, 18080))).is_ok(), "with the next one");
        let mut cri = node.cri()?;
        cri.stop_pod(&one).await?;
        ensure!(outside.run(|| tcp(at(HOST4, 18080))).is_err() && tcp(at("127.0.0.1", 18080)).is_err());
        Ok(())
    });
}

/// The class of CVE-2020-8558.
#[test]
fn what_listens_on_the_hosts_loopback_is_for_the_host_alone() {
    scenario(async |node, mut cri| {
        cri.pull("debian:bookworm").await?;
        let outside = Outside::new()?;
        let secret = TcpListener::bind("127.0.0.1:0")?;
        let listening = secret.local_addr()?;
        let over = Arc::new(AtomicBool::new(false));
        let answering = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                while let Ok((mut stream, _)) = secret.accept() {
                    let _ = stream.write_all(b"secret");
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
        });
        let mut config = pod(node, "attacker");
        config.port_mappings = vec![port(cri::Protocol::Tcp, 18080, "")];
        config.linux.get_or_insert_default().security_context =
            Some(cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() });
        let id = cri.run_pod(&config).await?;
        let mut c = container("c", "debian:bookworm", "sleep 1000");
        c.linux.get_or_insert_default().security_context =
            Some(cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() });
        let c = cri.run(&id, c, &config).await?;
        ensure!(tcp(listening)? == "secret", "the host itself reaches it");
        let gateway = cri.shell(&c, "ip route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p'").await?;
        let gateway = gateway.trim().to_owned();
        ensure!(!gateway.is_empty(), "the pod has a default route");
        let open = |via: &str, dev: &str| {
            format!(
                "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet && ip addr flush dev lo && \
                 ip route add 127.0.0.0/8 via {via} dev {dev}"
            )
        };
        cri.shell(&c, &open(&gateway, "eth0")).await?;
        let text = cri.exec(&c, &["sh", "-c", &client("127.0.0.1", listening.port(), "tcp")], 10).await?;
        ensure!(text.exit_code != 0 && text.stdout.is_empty(), "a pod reaches the host's loopback: {text:?}");
        let status =
            Command::new("ip").args(["netns", "exec", Outside::NAME, "sh", "-c", &open(HOST4, "kout-out")]).status()?;
        ensure!(status.success(), "set the other machine up");
        let reached = outside.run(|| tcp(listening));
        ensure!(reached.is_err(), "another machine reaches the host's loopback: {reached:?}");
        // The control: with the guard taken out of the firewall the same attempt of the pod gets there.
        let flushed = Command::new("sh")
            .args(["-c", "nft list tables | grep -o 'inet kl-.*' | while read t; do nft flush chain $t guard; done"])
            .status()?;
        ensure!(flushed.success(), "flush the guard");
        let text = cri.exec(&c, &["sh", "-c", &client("127.0.0.1", listening.port(), "tcp")], 10).await?;
        ensure!(text.stdout == b"secret", "this attack would reach nothing anyway: {text:?}");
        // And the daemon puts it back.
        let mut cri = node.cri()?;
        cri.runtime.status(cri::StatusRequest::default()).await?;
        let text = cri.exec(&c, &["sh", "-c", &client("127.0.0.1", listening.port(), "tcp")], 10).await?;
        ensure!(text.stdout.is_empty(), "the guard is not put back: {text:?}");
        over.store(true, Ordering::Relaxed);
        ensure!(tcp(listening)? == "secret");
        answering.join().map_err(|_| anyhow::anyhow!("the listener panicked"))?;
        Ok(())
    });
}

#[test]
fn a_conflict_of_host_ports_names_its_owner() {
    scenario(async |node, mut cri| {
        cri.pull("debian:bookworm").await?;
        let with = |name: &str, ports: Vec<cri::PortMapping>| {
            let mut config = pod(node, name);
            config.port_mappings = ports;
            config
        };
        let tcp_any = port(cri::Protocol::Tcp, 18080, "");
        let first = cri.run_pod(&with("first", vec![tcp_any.clone()])).await?;
        for (ports, code, words) in [
            (vec![tcp_any.clone()], Code::AlreadyExists, first.as_str()),
            (vec![port(cri::Protocol::Tcp, 18080, "127.0.0.1")], Code::AlreadyExists, first.as_str()),
            (vec![port(cri::Protocol::Tcp, 18081, "::1")], Code::InvalidArgument, "127.0.0.1"),
            (vec![cri::PortMapping { host_ip: "x".into(), ..tcp_any.clone() }], Code::InvalidArgument, "host_ip"),
            (vec![cri::PortMapping { host_port: 70_000, ..tcp_any.clone() }], Code::InvalidArgument, "65535"),
            (vec![cri::PortMapping { container_port: 0, ..tcp_any.clone() }], Code::InvalidArgument, "container port"),
        ] {
            let error = cri.run_pod(&with("second", ports)).await.err().context("taken all the same")?;
            ensure!(error.code() == code && error.message().contains(words), "{error:?}");
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let taken = i32::from(listener.local_addr()?.port());
        let error = cri.run_pod(&with("second", vec![port(cri::Protocol::Tcp, taken, "")])).await.err().context("")?;
        ensure!(
            error.code() == Code::FailedPrecondition && error.message().contains("a program of the host"),
            "{error:?}"
        );
        // Another protocol, another address: no conflict.
        let neighbour = vec![port(cri::Protocol::Udp, 18080, ""), port(cri::Protocol::Tcp, 18083, "127.0.0.2")];
        cri.run_pod(&with("neighbour", neighbour)).await?;
        cri.run_pod(&with("neighbour2", vec![port(cri::Protocol::Tcp, 18083, "127.0.0.3")])).await?;
        // And once the owner has gone, or was only stopped, the port is free; the refused pod left nothing behind.
        cri.stop_pod(&first).await?;
        cri.run_pod(&with("second", vec![tcp_any])).await?;
        Ok(())
    });
}

#[test]
fn a_udp_sender_reaches_who_has_the_port_now() {
    scenario(async |node, mut cri| {
        cri.pull("debian:bookworm").await?;
        let outside = Outside::new()?;
        let sender = outside.run(|| UdpSocket::bind((OUT4, 4000)))?;
        let to = at(HOST4, 18053);
        // A flow from before anybody had the port, which connection tracking remembers.
        ensure!(ask(&sender, to).is_err());
        for name in ["one", "two"] {
            let (id, _) = serving(&mut cri, node, name, vec![port(cri::Protocol::Udp, 18053, "")]).await?;
            ensure!(ask(&sender, to)?.starts_with(name), "{name}");
            ensure!(udp(at("127.0.0.1", 18053))?.starts_with(name), "{name} from the host");
            cri.stop_pod(&id).await?;
            ensure!(ask(&sender, to).is_err(), "{name} is gone");
            cri.remove_pod(&id).await?;
        }
        Ok(())
    });
}
