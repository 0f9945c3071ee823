//! Servers of the port-forward scenarios, scripted by each connection's first byte: listeners made inside a pod's network namespace
//! by a thread that enters it, and then served by the test's own tasks.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use keelson_e2e::node::DEADLINE;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

pub(super) const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(super) const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A server that does what the first byte of each connection says:
/// `e` gives back what it gets, and when that ends says `bye`; `r` sends `half` and resets; `h` ends its own side first and
/// goes on listening; `v` gives back what it gets, until that ends in whatever way. Ends when dropped.
pub(super) struct Server {
    pub(super) port: u16,
    /// What connections of the kinds `h` and `v` got, once they ended; whether in order.
    got: mpsc::UnboundedReceiver<(String, bool)>,
    _task: JoinSet<()>,
}

impl Server {
    /// In the network namespace of this process, or the host's; on a free port of this address.
    pub(super) fn start(pid: Option<i64>, address: IpAddr) -> Result<Server> {
        let listener = std::thread::spawn(move || {
            if let Some(pid) = pid {
                let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
            }
            let listener = std::net::TcpListener::bind((address, 0))?;
            listener.set_nonblocking(true)?;
            anyhow::Ok(listener)
        });
        let listener = TcpListener::from_std(listener.join().ok().context("the thread there")??)?;
        let port = listener.local_addr()?.port();
        let (told, got) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, told.clone()));
            }
        });
        Ok(Server { port, got, _task: task })
    }

    /// What the next connection that ended had got.
    pub(super) async fn got(&mut self) -> Result<(String, bool)> {
        let got = tokio::time::timeout(*DEADLINE, self.got.recv()).await;
        got.context("the server hears of the end")?.context("the server ended")
    }
}

async fn serve(mut stream: TcpStream, told: mpsc::UnboundedSender<(String, bool)>) {
    let kind = stream.read_u8().await;
    match kind {
        Ok(b'e') => {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.write_all(b"bye").await;
        }
        Ok(b'r') => {
            let _ = stream.write_all(b"half").await;
            let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        }
        Ok(b'h' | b'v') => {
            let echo = kind.is_ok_and(|kind| kind == b'v');
            if !echo {
                let _ = stream.shutdown().await;
            }
            let (mut got, mut piece) = (Vec::new(), [0; 1024]);
            let ended = loop {
                let length = match stream.read(&mut piece).await {
                    Ok(0) => break true,
                    Ok(length) => length,
                    Err(_) => break false,
                };
                got.extend(&piece[..length]);
                if echo {
                    let _ = stream.write_all(&piece[..length]).await;
                }
            };
            // Nobody has to listen.
            let _ = told.send((String::from_utf8_lossy(&got).into_owned(), ended));
        }
        _ => {}
    }
}
