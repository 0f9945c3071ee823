//! Who reaches whom, and as whom.

use super::lab::{HOST4, HOST6, Lab, OUT4, OUT6, Pod, ip, own, port};
use crate::Protocol;

#[test]
fn privileged_two_pods_talk_at_once_and_as_themselves() {
    let before = own();
    let lab = Lab::new();
    let network = lab.open();
    let (one, two) = (lab.pod(&network, 1, &[]), lab.pod(&network, 2, &[]));
    let _server = two.place.serve("[::]:80");
    let expect = |pod: &Pod, at: String, as_whom| {
        assert_eq!(pod.place.udp(at.clone()).unwrap(), as_whom, "udp {at}");
        assert_eq!(pod.place.tcp(at.clone()).unwrap(), as_whom, "tcp {at}");
    };
    expect(&one, format!("[{}]:80", two.v6()), one.v6());
    let mapped = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => std::net::IpAddr::V6(address.to_ipv6_mapped()),
        std::net::IpAddr::V6(_) => address,
    };
    expect(&one, format!("{}:80", two.v4()), mapped(one.v4()));
    assert_eq!(own(), before);
}

#[test]
fn privileged_pods_leave_with_the_hosts_address() {
    let lab = Lab::new();
    let network = lab.open();
    let pod = lab.pod(&network, 1, &[]);
    let _four = lab.outside.serve(&format!("{OUT4}:80"));
    let _six = lab.outside.serve(&format!("[{OUT6}]:80"));
    assert_eq!(pod.place.tcp(format!("{OUT4}:80")).unwrap(), ip(HOST4));
    assert_eq!(pod.place.udp(format!("{OUT4}:80")).unwrap(), ip(HOST4));
    assert_eq!(pod.place.tcp(format!("[{OUT6}]:80")).unwrap(), ip(HOST6));
    assert_eq!(pod.place.udp(format!("[{OUT6}]:80")).unwrap(), ip(HOST6));
}

#[test]
fn privileged_a_host_port_is_reached_from_everywhere() {
    reached_from_everywhere(&Lab::new());
}

/// A host may or may not show bridged frames to its IP firewall (br_netfilter).
#[test]
fn privileged_a_host_port_is_reached_whatever_the_bridge_shows_the_firewall() {
    let folder = std::path::Path::new("/proc/sys/net/bridge");
    if !folder.exists() {
        println!(
            "SKIP privileged_a_host_port_is_reached_whatever_the_bridge_shows_the_firewall: no br_netfilter in this kernel"
        );
        return;
    }
    for value in ["0", "1"] {
        let lab = Lab::new();
        for key in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
            lab.host.set_sysctl(key, value);
        }
        reached_from_everywhere(&lab);
    }
}

fn reached_from_everywhere(lab: &Lab) {
    let network = lab.open();
    let ports = [port(Protocol::Tcp, 8080, None), port(Protocol::Udp, 8080, None)];
    let (pod, other) = (lab.pod(&network, 1, &ports), lab.pod(&network, 2, &[]));
    let _four = pod.place.serve("0.0.0.0:80");
    let _six = pod.place.serve(&format!("[{}]:80", pod.v6()));
    let gateway = &pod.attachment.as_ref().unwrap().gateways;
    let (gateway4, gateway6) = (gateway[0], gateway[1]);
    // From outside: the pod sees who really asks.
    for ask in [lab.outside.tcp(format!("{HOST4}:8080")), lab.outside.udp(format!("{HOST4}:8080"))] {
        assert_eq!(ask.unwrap(), ip(OUT4));
    }
    for ask in [lab.outside.tcp(format!("[{HOST6}]:8080")), lab.outside.udp(format!("[{HOST6}]:8080"))] {
        assert_eq!(ask.unwrap(), ip(OUT6));
    }
    // From another pod and from the pod itself, by the host's address and by the bridge's.
    for from in [&other, &pod] {
        for at in [ip(HOST4), gateway4] {
            assert_eq!(from.place.tcp(format!("{at}:8080")).unwrap(), gateway4, "{at}");
            assert_eq!(from.place.udp(format!("{at}:8080")).unwrap(), gateway4, "{at}");
        }
        for at in [ip(HOST6), gateway6] {
            assert_eq!(from.place.tcp(format!("[{at}]:8080")).unwrap(), gateway6, "{at}");
            assert_eq!(from.place.udp(format!("[{at}]:8080")).unwrap(), gateway6, "{at}");
        }
    }
    // From the host: its loopback and its own addresses.
    assert_eq!(lab.host.tcp("127.0.0.1:8080").unwrap(), gateway4);
    assert_eq!(lab.host.udp("127.0.0.1:8080").unwrap(), gateway4);
    assert!(lab.host.tcp(format!("{HOST4}:8080")).is_ok() && lab.host.tcp(format!("[{HOST6}]:8080")).is_ok());
    // IPv6 loopback cannot be redirected: refused at once, so that clients try 127.0.0.1.
    assert_eq!(lab.host.tcp("[::1]:8080").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // Unpublished: refused again.
    network.detach(&pod.id).unwrap();
    assert!(lab.outside.tcp(format!("{HOST4}:8080")).is_err() && lab.host.tcp("127.0.0.1:8080").is_err());
}

#[test]
fn privileged_a_port_of_one_host_address_is_not_one_of_another() {
    let lab = Lab::new();
    let network = lab.open();
    let ports = [
        port(Protocol::Tcp, 8080, Some("127.0.0.1")),
        port(Protocol::Tcp, 8081, Some(HOST4)),
        port(Protocol::Tcp, 8082, Some(HOST6)),
    ];
    let pod = lab.pod(&network, 1, &ports);
    let _server = pod.place.serve("[::]:80");
    assert!(lab.host.tcp("127.0.0.1:8080").is_ok());
    assert!(lab.outside.tcp(format!("{HOST4}:8080")).is_err());
    assert!(lab.outside.tcp(format!("{HOST4}:8081")).is_ok() && lab.host.tcp(format!("{HOST4}:8081")).is_ok());
    assert!(lab.host.tcp("127.0.0.1:8081").is_err() && lab.outside.tcp(format!("[{HOST6}]:8081")).is_err());
    assert!(lab.outside.tcp(format!("[{HOST6}]:8082")).is_ok() && lab.outside.tcp(format!("{HOST4}:8082")).is_err());
}

#[test]
fn privileged_a_host_address_that_is_not_the_hosts_takes_nobodys_traffic() {
    let lab = Lab::new();
    let network = lab.open();
    let thief = lab.pod(&network, 1, &[port(Protocol::Tcp, 80, Some(OUT4)), port(Protocol::Tcp, 80, Some(OUT6))]);
    let stolen = thief.place.serve("[::]:80");
    let victim = lab.pod(&network, 2, &[]);
    let _four = lab.outside.serve(&format!("{OUT4}:80"));
    let _six = lab.outside.serve(&format!("[{OUT6}]:80"));
    for from in [&victim.place, &lab.host] {
        from.tcp(format!("{OUT4}:80")).unwrap();
        from.tcp(format!("[{OUT6}]:80")).unwrap();
    }
    assert_eq!(stolen.hits(), 0);
}

#[test]
fn privileged_a_udp_sender_reaches_who_has_the_port_now() {
    let lab = Lab::new();
    let network = lab.open();
    let sender = lab.outside.run(|| {
        let socket = std::net::UdpSocket::bind((super::lab::OUT4, 4000)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        socket
    });
    let ask = || {
        let mut buffer = [0; 64];
        sender.send_to(b"?", (HOST4, 9000)).and_then(|_| sender.recv_from(&mut buffer)).map(|_| ())
    };
    // A flow from before anybody published the port.
    assert!(ask().is_err());
    for n in 1..=2 {
        let pod = lab.pod(&network, n, &[port(Protocol::Udp, 9000, None)]);
        let server = pod.place.serve("0.0.0.0:80");
        ask().unwrap();
        assert_eq!(server.hits(), 1, "pod {n}");
        network.detach(&pod.id).unwrap();
    }
}
