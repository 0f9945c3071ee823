//! Which sockets of the host listen, by sock_diag: a host port must not take traffic from a program that is there already.
//! Runs on the caller's thread, blocks briefly. Owns nothing.
//! Must never change a socket.

use std::net::IpAddr;

use rustix::net::netlink::SOCK_DIAG;

use super::{Batch, NetlinkError, Socket, address::ip, family, flags};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP: u8 = 6;
const TCP_CLOSE: u32 = 1 << 7;
const TCP_LISTEN: u32 = 1 << 10;

/// A local end that takes what arrives for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The address it is bound to; unspecified: all of its family.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Every socket of this IP protocol that takes connections (or, without them, datagrams from anybody), in the calling
/// thread's network namespace.
///
/// # Errors
/// Of netlink, or of opening its socket.
pub fn listeners(protocol: u8) -> Result<Vec<Listener>, NetlinkError> {
    let lost = |source| NetlinkError::Socket { act: "list listening sockets", object: String::new(), source };
    let mut socket = Socket::open(Some(SOCK_DIAG)).map_err(lost)?;
    let mut all = Vec::new();
    for family in [family::INET, family::INET6] {
        let states = if protocol == TCP { TCP_LISTEN } else { TCP_CLOSE };
        let mut header = [0u8; 56];
        let [f, p, _, _, s0, s1, s2, s3, ..] = &mut header;
        (*f, *p) = (family, protocol);
        [*s0, *s1, *s2, *s3] = states.to_ne_bytes();
        let found: Vec<Listener> = socket.dump(
            |batch: &mut Batch| {
                let what = ("list listening sockets", "");
                batch.push(what, (SOCK_DIAG_BY_FAMILY, flags::DUMP), &header, |_| {});
            },
            |list: &mut Vec<Listener>, message| {
                let (fixed, _) = message.split::<72>()?;
                let [_, _, _, _, p0, p1, _, _, address @ ..] = fixed;
                let length = if family == family::INET { 4 } else { 16 };
                if let Some(address) = address.get(..length).and_then(ip) {
                    list.push(Listener { address, port: u16::from_be_bytes([p0, p1]) });
                }
                Ok(())
            },
        )?;
        all.extend(found);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_listening_socket_is_seen_and_an_outgoing_one_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let client = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let seen = |protocol, at: std::net::SocketAddr| {
            listeners(protocol).unwrap().contains(&Listener { address: at.ip(), port: at.port() })
        };
        assert!(seen(6, tcp.local_addr().unwrap()));
        assert!(seen(17, udp.local_addr().unwrap()));
        assert!(!seen(6, client.local_addr().unwrap()));
    }
}
