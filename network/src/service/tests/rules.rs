//! What the firewall, the settings and the records of others look like.

use super::lab::{HOST4, HOST6, Lab, OUT4, OUT6, Place, Pod, eventually, id, ip, port};
use crate::{
    AttachError, Config, PortError, Protocol, Subnet,
    netlink::{Batch, Socket, flags},
    nfnetlink::{Nftables, Transaction, Verdict},
    service::SetupError,
};

/// Every rule of a table as the kernel tells it, byte for byte.
fn dump(place: &Place, table: &'static str) -> Vec<Vec<u8>> {
    place.run(move || {
        let mut socket = Socket::open(Some(rustix::net::netlink::NETFILTER)).unwrap();
        let request = |batch: &mut Batch| {
            let kind = (10 << 8 | 7, flags::DUMP);
            batch.push(("dump", table), kind, &[1, 0, 0, 0], |message| message.text(1, table));
        };
        // The first four bytes hold the ruleset's generation.
        let entry = |all: &mut Vec<Vec<u8>>, message: &crate::netlink::Message<'_>| {
            all.push(message.payload[4..].to_vec());
            Ok(())
        };
        socket.dump(request, entry).unwrap()
    })
}

fn foreign_table(place: &Place) {
    place.run(|| {
        let mut transaction = Transaction::on("theirs");
        transaction.add_table();
        let hook = crate::nfnetlink::Hook { kind: "filter", hook: 2, priority: 10 };
        transaction.add_chain("forward", hook);
        transaction.add_rule("forward", "theirs", |rule| rule.in_interface("eth9").verdict(Verdict::Drop));
        Nftables::open().unwrap().commit(transaction).unwrap();
    });
}

#[test]
fn privileged_a_foreign_table_is_not_touched_by_a_byte() {
    let lab = Lab::new();
    foreign_table(&lab.host);
    let before = dump(&lab.host, "theirs");
    assert_eq!(before.len(), 1);
    let network = lab.open();
    let pod = lab.pod(&network, 1, &[port(Protocol::Tcp, 80, None)]);
    network.status().unwrap();
    assert_eq!(dump(&lab.host, "theirs"), before);
    assert_ne!(dump(&lab.host, "kl-test"), Vec::<Vec<u8>>::new());
    network.detach(&pod.id).unwrap();
    network.close().unwrap();
    assert_eq!(dump(&lab.host, "theirs"), before);
    assert_eq!(dump(&lab.host, "kl-test"), Vec::<Vec<u8>>::new());
}

#[test]
fn privileged_no_pod_reaches_what_listens_on_the_hosts_loopback() {
    let lab = Lab::new();
    let network = lab.open();
    let pod = lab.pod(&network, 1, &[]);
    let server = lab.host.serve("127.0.0.1:7777");
    let knock = || {
        pod.place.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // Bound to eth0, 127.0.0.1 goes out by the default route.
            let device = std::ffi::OsString::from("eth0");
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &device).unwrap();
            socket.send_to(b"?", "127.0.0.1:7777").unwrap();
        });
    };
    (0..3).for_each(|_| knock());
    // The pod's later, allowed datagram comes after the forbidden ones and is seen: they would have been by now.
    let gateway = pod.attachment.as_ref().unwrap().gateways[0];
    let witness = lab.host.serve(&format!("{gateway}:7778"));
    pod.place.udp(format!("{gateway}:7778")).unwrap();
    assert_eq!((server.hits(), witness.hits()), (0, 1));
    // The same knock without our table arrives: the guard is what kept it out.
    lab.host.run(|| {
        let mut transaction = Transaction::on("kl-test");
        transaction.delete_table();
        Nftables::open().unwrap().commit(transaction).unwrap();
    });
    knock();
    eventually("an unguarded datagram", || server.hits() == 1);
}

#[test]
fn privileged_the_host_routes_for_pods_and_for_nobody_else() {
    let lab = Lab::new();
    let other = Place::new();
    lab.host.join("up1", &other, "out0");
    lab.host.configure("up1", &[("198.51.100.1", 24)], &[]);
    other.configure("out0", &[("198.51.100.2", 24)], &["198.51.100.1"]);
    lab.outside.configure("out0", &[], &[HOST4]);
    let _server = lab.outside.serve(&format!("{OUT4}:80"));
    assert!(other.tcp(format!("{OUT4}:80")).is_err(), "the host routed before");
    lab.host.set_sysctl("ipv6/conf/up1/accept_ra", "0");
    let network = lab.open();
    let pod = lab.pod(&network, 1, &[]);
    assert_eq!(pod.place.tcp(format!("{OUT4}:80")).unwrap(), ip(HOST4));
    assert!(other.tcp(format!("{OUT4}:80")).is_err(), "the host became a router for others");
    let settings =
        ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/up0/accept_ra", "ipv6/conf/up1/accept_ra"];
    let now = || settings.map(|path| lab.host.sysctl(path));
    // Who heeded routers goes on doing so; pods are no routers.
    assert_eq!(now(), ["1", "1", "2", "0"]);
    assert_eq!(lab.host.sysctl("ipv6/conf/kl-test/accept_ra"), "0");
    assert_eq!(pod.place.sysctl("ipv6/conf/eth0/accept_ra"), "0");
    network.detach(&pod.id).unwrap();
    network.close().unwrap();
    assert_eq!(now(), ["0", "0", "1", "0"]);
    // Somebody came who may rely on it: left on.
    let pod = lab.pod(&network, 1, &[]);
    let late = Place::new();
    lab.host.join("late0", &late, "out0");
    network.detach(&pod.id).unwrap();
    network.close().unwrap();
    assert_eq!(now(), ["1", "1", "2", "0"]);
}

#[test]
fn privileged_a_host_that_routes_already_is_left_as_it_is() {
    let lab = Lab::new();
    lab.host.set_sysctl("ipv4/ip_forward", "1");
    lab.host.set_sysctl("ipv6/conf/all/forwarding", "1");
    let other = Place::new();
    lab.host.join("up1", &other, "out0");
    lab.host.configure("up1", &[("198.51.100.1", 24)], &[]);
    other.configure("out0", &[("198.51.100.2", 24)], &["198.51.100.1"]);
    lab.outside.configure("out0", &[], &[HOST4]);
    let _server = lab.outside.serve(&format!("{OUT4}:80"));
    let network = lab.open();
    let pod = lab.pod(&network, 1, &[]);
    assert!(other.tcp(format!("{OUT4}:80")).is_ok(), "the host stopped routing");
    network.detach(&pod.id).unwrap();
    network.close().unwrap();
    assert_eq!(
        (lab.host.sysctl("ipv4/ip_forward"), lab.host.sysctl("ipv6/conf/all/forwarding")),
        ("1".into(), "1".into())
    );
}

#[test]
fn privileged_a_family_that_is_off_is_off_and_the_other_works() {
    let lab = Lab::new();
    lab.host.set_sysctl("ipv6/conf/all/disable_ipv6", "1");
    let network = lab.open();
    let pod = lab.pod(&network, 1, &[port(Protocol::Tcp, 8080, None)]);
    let _server = lab.outside.serve(&format!("{OUT4}:80"));
    assert_eq!(pod.attachment.as_ref().unwrap().addresses.len(), 1);
    assert_eq!(pod.place.tcp(format!("{OUT4}:80")).unwrap(), ip(HOST4));
    assert_eq!(lab.host.sysctl("ipv6/conf/all/forwarding"), "0");
    let other = Lab::new();
    let network = other.open_with(Config { ipv4: Subnet::Off, ..other.config() });
    let pod = other.pod(&network, 1, &[]);
    let _server = other.outside.serve(&format!("[{OUT6}]:80"));
    assert_eq!(pod.attachment.as_ref().unwrap().addresses.len(), 1);
    assert_eq!(pod.place.tcp(format!("[{OUT6}]:80")).unwrap(), ip(HOST6));
    let other = Lab::new();
    other.host.set_sysctl("ipv6/conf/all/disable_ipv6", "1");
    let network = other.open_with(Config { ipv4: Subnet::Off, ..other.config() });
    let error = Pod::bare(1).attach(&network, &[]).unwrap_err();
    match error {
        AttachError::Setup { source, .. } => assert!(matches!(*source, SetupError::NoFamily), "{source:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn privileged_two_networks_live_side_by_side() {
    let lab = Lab::new();
    let first = lab.open();
    let second = Config::new(lab.dir.path().join("second"), "kl-second");
    let second = lab.open_with(Config { mtu: Some(1400), ..second });
    let (one, two) = (lab.pod(&first, 1, &[]), lab.pod(&second, 2, &[port(Protocol::Tcp, 8080, None)]));
    assert_eq!(one.v4(), ip("10.88.0.2"));
    assert_eq!(two.v4(), ip("10.89.0.2"));
    assert_eq!((one.attachment.as_ref().unwrap().mtu, two.attachment.as_ref().unwrap().mtu), (1500, 1400));
    let _server = lab.outside.serve(&format!("{OUT4}:80"));
    let _inside = two.place.serve("[::]:80");
    for pod in [&one, &two] {
        assert_eq!(pod.place.tcp(format!("{OUT4}:80")).unwrap(), ip(HOST4));
    }
    assert!(one.place.tcp(format!("{HOST4}:8080")).is_ok());
    // The same folder's networks come back after a restart; the other network goes on without the first.
    first.detach(&one.id).unwrap();
    first.close().unwrap();
    second.status().unwrap();
    assert_eq!(two.place.tcp(format!("{OUT4}:80")).unwrap(), ip(HOST4));
    assert!(lab.host.link("kl-second").is_some() && lab.host.link("kl-test").is_none());
    let again = lab.open();
    assert_eq!(
        lab.pod(&again, 3, &[]).v6(),
        one.v6().to_string().replace("::2", "::3").parse::<std::net::IpAddr>().unwrap()
    );
}

#[test]
fn privileged_a_strangers_bridge_is_not_taken() {
    let lab = Lab::new();
    let first = lab.open();
    let _pod = lab.pod(&first, 1, &[]);
    let thief = lab.open_with(Config::new(lab.dir.path().join("thief"), "kl-test"));
    let refused = Pod::bare(2).attach(&thief, &[]).unwrap_err();
    let mut text = String::new();
    let mut error: Option<&dyn std::error::Error> = Some(&refused);
    while let Some(one) = error {
        text.push_str(&format!("{one}: "));
        error = one.source();
    }
    assert!(text.contains("kl-test") && text.contains("not of this network"), "{text}");
    first.status().unwrap();
}

#[test]
fn privileged_host_ports_conflict_with_pods_and_with_programs() {
    let lab = Lab::new();
    let network = lab.open();
    let web = port(Protocol::Tcp, 8080, None);
    let _pod = lab.pod(&network, 1, &[web]);
    let second = Pod::bare(2);
    match second.attach(&network, &[web]).unwrap_err() {
        AttachError::Port { source: PortError::Taken { owner, .. }, .. } => assert_eq!(owner, id(1)),
        other => panic!("{other:?}"),
    }
    assert!(network.attachment(&id(2)).is_none());
    let listener = lab.host.run(|| std::net::TcpListener::bind("127.0.0.1:9090").unwrap());
    let refused = second.attach(&network, &[port(Protocol::Tcp, 9090, None)]).unwrap_err();
    assert!(matches!(refused, AttachError::Port { source: PortError::Listening { .. }, .. }), "{refused:?}");
    drop(listener);
    second.attach(&network, &[port(Protocol::Tcp, 9090, None)]).unwrap();
}
