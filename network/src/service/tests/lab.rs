//! Namespaces with a thread in each, a host that routes, pods, programs that answer.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use keelson_api::SandboxId;
use keelson_sys::namespace::{self, NamespaceKinds};

use crate::{
    AttachRequest, Attachment, Config, Netns, Network, PortMapping, Protocol,
    address::Mac,
    netlink::{
        Batch, Socket,
        address::{self, Assigned},
        link::{self, Link, Veth},
        route,
    },
};

const PATIENCE: Duration = Duration::from_secs(3);

/// A network namespace with a thread in it that does what it is told. Both end with the value.
pub(super) struct Place {
    orders: Option<mpsc::Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<thread::JoinHandle<()>>,
    file: File,
}

impl Place {
    pub(super) fn new() -> Self {
        let (orders, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, made) = mpsc::channel();
        let thread = thread::spawn(move || {
            namespace::unshare(NamespaceKinds::NET).expect("unshare: these tests need root");
            ready.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            for order in inbox {
                order();
            }
        });
        let file = made.recv().expect("a thread in a new network namespace");
        let place = Place { orders: Some(orders), thread: Some(thread), file };
        place.run(|| {
            let mut batch = Batch::new();
            link::set_up(&mut batch, "lo", 0);
            Socket::open(None).unwrap().execute(batch).unwrap();
        });
        place
    }

    /// Runs `act` on the thread in this place.
    pub(super) fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, done) = mpsc::channel();
        let order = Box::new(move || {
            let _ = result.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)));
        });
        self.orders.as_ref().unwrap().send(order).unwrap();
        done.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(super) fn links(&self) -> Vec<Link> {
        self.run(|| link::list(&mut Socket::open(None).unwrap()).unwrap())
    }

    pub(super) fn link(&self, name: &str) -> Option<Link> {
        self.links().into_iter().find(|link| link.name == name)
    }

    pub(super) fn delete_link(&self, name: &str) {
        let name = name.to_owned();
        self.run(move || {
            let mut batch = Batch::new();
            link::delete(&mut batch, &name);
            Socket::open(None).unwrap().execute(batch).unwrap();
        });
    }

    /// Adds addresses to an interface, and a default route.
    pub(super) fn configure(&self, name: &str, addresses: &[(&str, u8)], gateways: &[&str]) {
        let name = name.to_owned();
        let addresses: Vec<(IpAddr, u8)> = addresses.iter().map(|(text, prefix)| (ip(text), *prefix)).collect();
        let gateways: Vec<IpAddr> = gateways.iter().map(|text| ip(text)).collect();
        self.run(move || {
            let mut socket = Socket::open(None).unwrap();
            let index = link::get(&mut socket, &name, false).unwrap().unwrap().index;
            let mut batch = Batch::new();
            link::set_up(&mut batch, &name, index);
            for (address, prefix) in addresses {
                address::add(&mut batch, Assigned { index, address, prefix });
            }
            for gateway in gateways {
                route::add_default(&mut batch, index, gateway);
            }
            socket.execute(batch).unwrap();
        });
    }

    pub(super) fn sysctl(&self, path: &str) -> String {
        let path = Path::new("/proc/sys/net").join(path);
        self.run(move || std::fs::read_to_string(&path).unwrap().trim().to_owned())
    }

    pub(super) fn set_sysctl(&self, path: &str, value: &'static str) {
        let path = Path::new("/proc/sys/net").join(path);
        self.run(move || std::fs::write(&path, value).unwrap());
    }

    /// A pair of interfaces: `near` here, `far` in the other place.
    pub(super) fn join(&self, near: &str, other: &Place, far: &str) {
        let (near, far) = (near.to_owned(), far.to_owned());
        let file = other.file.try_clone().unwrap();
        self.run(move || {
            let mut batch = Batch::new();
            let peer_mac = Mac::for_address([9, 9, 9, 9].into());
            let veth = Veth { name: &near, master: 0, peer: &far, peer_mac, netns: file.as_fd(), mtu: 1500 };
            link::create_veth(&mut batch, &veth);
            link::set_up(&mut batch, &near, 0);
            Socket::open(None).unwrap().execute(batch).unwrap();
        });
    }

    /// A program that tells everybody who connects (or sends a datagram) their own address.
    pub(super) fn serve(&self, at: &str) -> Server {
        let at: SocketAddr = at.parse().unwrap();
        let (tcp, udp) = self.run(move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let hits = Arc::new(AtomicU8::new(0));
        let counted = hits.clone();
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            while stopped.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                if let Ok((mut stream, peer)) = tcp.accept() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = write!(stream, "{}", peer.ip());
                }
                let mut buffer = [0; 16];
                // The timeout paces the loop; waiting for a datagram is what this thread is for.
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = udp.send_to(peer.ip().to_string().as_bytes(), peer);
                }
            }
        });
        Server { stop: Some(stop), thread: Some(thread), hits }
    }

    /// Asks by TCP; the answer is the address the other side saw.
    pub(super) fn tcp(&self, to: impl Into<String>) -> io::Result<IpAddr> {
        let to: SocketAddr = to.into().parse().unwrap();
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            text.parse().map_err(io::Error::other)
        })
    }

    /// Asks by one UDP datagram.
    pub(super) fn udp(&self, to: impl Into<String>) -> io::Result<IpAddr> {
        let to: SocketAddr = to.into().parse().unwrap();
        self.run(move || {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"?", to)?;
            let mut buffer = [0; 64];
            let (length, _) = socket.recv_from(&mut buffer)?;
            String::from_utf8_lossy(&buffer[..length]).parse().map_err(io::Error::other)
        })
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ends with the value.
pub(super) struct Server {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    hits: Arc<AtomicU8>,
}

impl Server {
    /// How many asked.
    pub(super) fn hits(&self) -> u8 {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A host with an uplink to an outside that has no route to any pod.
pub(super) struct Lab {
    pub(super) host: Place,
    pub(super) outside: Place,
    pub(super) dir: tempfile::TempDir,
}

pub(super) const HOST4: &str = "192.0.2.1";
pub(super) const HOST6: &str = "2001:db8::1";
pub(super) const OUT4: &str = "192.0.2.2";
pub(super) const OUT6: &str = "2001:db8::2";

impl Lab {
    pub(super) fn new() -> Self {
        let (host, outside) = (Place::new(), Place::new());
        for place in [&host, &outside] {
            place.set_sysctl("ipv6/conf/default/accept_dad", "0");
        }
        // A new namespace begins with IPv4's settings of the machine.
        host.set_sysctl("ipv4/ip_forward", "0");
        // The stricter of what distributions set.
        host.set_sysctl("ipv4/conf/all/rp_filter", "1");
        host.join("up0", &outside, "out0");
        host.configure("up0", &[(HOST4, 24), (HOST6, 64)], &[OUT4, OUT6]);
        outside.configure("out0", &[(OUT4, 24), (OUT6, 64)], &[]);
        Lab { host, outside, dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn config(&self) -> Config {
        Config::new(self.dir.path().join("network"), "kl-test")
    }

    pub(super) fn open(&self) -> Network {
        self.open_with(self.config())
    }

    pub(super) fn open_with(&self, config: Config) -> Network {
        self.host.run(move || Network::open(config).unwrap())
    }

    /// A pod that is attached with these host ports.
    pub(super) fn pod(&self, network: &Network, n: u8, ports: &[PortMapping]) -> Pod {
        let pod = Pod::bare(n);
        let attachment = pod.attach(network, ports).unwrap();
        Pod { attachment: Some(attachment), ..pod }
    }

    /// What is on the host beside what was there before any pod.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let known = ["lo", "up0"];
        let links = self.host.links().into_iter().map(|link| link.name);
        let mut left: Vec<String> = links.filter(|name| !known.contains(&name.as_str())).collect();
        for folder in ["attachments", "ipam"] {
            let names = std::fs::read_dir(self.dir.path().join("network").join(folder)).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            left.extend(names.filter(|name| !name.starts_with("cursor")));
        }
        left
    }
}

/// A place that is a pod.
pub(super) struct Pod {
    pub(super) place: Place,
    pub(super) netns: Netns,
    pub(super) id: SandboxId,
    pub(super) attachment: Option<Attachment>,
}

impl Pod {
    pub(super) fn bare(n: u8) -> Self {
        let place = Place::new();
        let netns = place.run(|| Netns::current().unwrap());
        Pod { place, netns, id: id(n), attachment: None }
    }

    pub(super) fn attach(&self, network: &Network, ports: &[PortMapping]) -> Result<Attachment, crate::AttachError> {
        network.attach(&AttachRequest { sandbox: self.id.clone(), ports: ports.to_vec() }, &self.netns)
    }

    pub(super) fn v4(&self) -> IpAddr {
        self.attachment.as_ref().unwrap().addresses[0]
    }

    pub(super) fn v6(&self) -> IpAddr {
        self.attachment.as_ref().unwrap().addresses[1]
    }
}

pub(super) fn id(n: u8) -> SandboxId {
    SandboxId::from_random([n; 32])
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn port(protocol: Protocol, host_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping { protocol, host_port, container_port: 80, host_ip: host_ip.map(ip) }
}

/// Waits until `ready` says so.
pub(super) fn eventually(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::yield_now();
    }
}

/// This machine's own interfaces and settings, which no test may change.
pub(super) fn own() -> (Vec<String>, String) {
    let names = link::list(&mut Socket::open(None).unwrap()).unwrap().into_iter().map(|link| link.name);
    (names.collect(), std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap())
}
