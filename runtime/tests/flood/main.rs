//! T5 (docs/threat-model.md): thousands of streaming sessions, many of them broken off, leave nothing behind; strangers are bounded.
//! A process of its own, one test at a time: descriptors, tasks, threads and memory of the whole process are compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

#[allow(dead_code, reason = "shared with the tests of the protocols")]
#[path = "../streaming/clients.rs"]
mod clients;
#[allow(dead_code, reason = "shared with the tests of the protocols")]
#[path = "../streaming/lab.rs"]
mod lab;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use clients::{Spdy, hear, parts, say, status, websocket};
use keelson_runtime::streaming::spdy::frame;
use lab::{ALL, Lab, OUT, TERMINAL, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
};

const V4: [&str; 1] = ["v4.channel.k8s.io"];
/// Sessions at once.
const AT_ONCE: usize = 24;
/// What the allocator may keep, bytes.
const KEPT: usize = 8 << 20;

static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    tasks: usize,
    threads: usize,
    memory: usize,
}

fn held() -> Held {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let number = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Held {
        descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        tasks: Handle::current().metrics().num_alive_tasks(),
        threads: number("Threads:"),
        memory: number("RssAnon:") * 1024,
    }
}

/// One session of the mix.
async fn session(lab: &Lab, number: usize, address: &str, pod: u16) {
    match number % 16 {
        0 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["say", "out", "err", "1"], OUT), &V4).await;
            let ids = client.streams(&["stdout", "stderr"]).await;
            assert_eq!(client.collect(&ids).await.text(ids[1]), "out");
        }
        1 => {
            let (mut socket, _) = websocket(&lab.exec(&["say", "out", "err", "1"], OUT), "v5.channel.k8s.io").await;
            assert_eq!(hear(&mut socket).await[&2], b"err");
        }
        2 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["cat"], ALL), &V4).await;
            let ids = client.streams(&["stdin", "stdout", "stderr"]).await;
            client.send(ids[1], &[b'x'; 20_000], true).await;
            assert_eq!(client.collect(&[ids[0], ids[2]]).await.bytes[&ids[2]].len(), 20_000);
        }
        3 => {
            let (mut socket, _) = websocket(&lab.attach(ALL), "v4.channel.k8s.io").await;
            say(&mut socket, 0, b"and gone").await;
        }
        4 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["sleep"], TERMINAL), &V4).await;
            let ids = client.streams(&["stdin", "stdout", "resize"]).await;
            client.send(ids[3], b"{\"Width\":1,\"Height\":1}", false).await;
        }
        5 => assert_eq!(status(&format!("http://{address}/exec/AAAAAAAAAAAAAAAA"), &[]).await, 404),
        6 => {
            let mut io = TcpStream::connect(address).await.unwrap();
            io.write_all(b"GET /attach/ HTTP/1.1\r\nHost:").await.unwrap();
        }
        7 => drop(TcpStream::connect(address).await.unwrap()),
        8 => {
            let (mut client, _) = Spdy::connect(&lab.forward(&[]), &["portforward.k8s.io"]).await;
            let port = pod.to_string();
            let error = client.open(&[("port", &port), ("streamtype", "error"), ("requestid", "1")]).await;
            let data = client.open(&[("port", &port), ("streamtype", "data"), ("requestid", "1")]).await;
            client.send(data, b"echo", true).await;
            assert_eq!(client.collect(&[error, data]).await.text(data), "echo");
            // And one that is left half-way.
            client.open(&[("port", &port), ("streamtype", "error"), ("requestid", "2")]).await;
        }
        9 => {
            let (mut socket, _) = websocket(&lab.forward(&[pod]), "v4.channel.k8s.io").await;
            say(&mut socket, 0, b"echo").await;
        }
        10 => {
            let (socket, _) = websocket(&lab.forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
            drop(socket);
        }
        11 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["cat"], ALL), &V4).await;
            client.raw(&[0x80, 9, 9, 9, 9, 9, 9, 9, 9]).await;
            assert_eq!(client.frame().await, None);
        }
        12 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["cat"], ALL), &V4).await;
            client.open(&[("streamtype", "stdin")]).await;
        }
        13 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["missing"], OUT), &V4).await;
            let ids = client.streams(&["stdout", "stderr"]).await;
            assert!(client.collect(&ids).await.text(ids[0]).contains("InternalError"));
        }
        14 => {
            let (mut client, _) = Spdy::connect(&lab.exec(&["yes"], OUT), &V4).await;
            let ids = client.streams(&["stdout", "stderr"]).await;
            while !matches!(client.frame().await, Some(frame::Frame::Data { stream, .. }) if stream == ids[1]) {}
        }
        _ => {
            let (mut socket, _) = websocket(&lab.exec(&["yes"], OUT), "v5.channel.k8s.io").await;
            let mut some = [0; 1000];
            socket.get_mut().read_exact(&mut some).await.unwrap();
        }
    }
}

async fn sessions(lab: &Arc<Lab>, count: usize, pod: u16) {
    let mut running = tokio::task::JoinSet::new();
    let url = lab.attach(ALL);
    for number in 0..count {
        if running.len() >= AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        let (lab, address) = (Arc::clone(lab), parts(&url).0.to_owned());
        running.spawn(async move { session(&lab, number, &address, pod).await });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    lab.all_gone().await;
    until("every session is over", || lab.streaming.counts().running() == 0).await;
}

#[test]
fn ten_thousand_sessions_leave_nothing() {
    let _alone = alone();
    // About 7 s with a debug build on two cores.
    let count = std::env::var("KEELSON_T5_SESSIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let lab = Arc::new(Lab::start().await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = listener.local_addr().unwrap().port();
        let echo = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (mut stream, _) = accepted.unwrap();
                        running.spawn(async move {
                            let (mut from, mut to) = stream.split();
                            let _ = tokio::io::copy(&mut from, &mut to).await;
                        });
                    }
                    Some(_) = running.join_next() => {}
                }
            }
        });
        sessions(&lab, 480, pod).await;
        let before = settled(None).await;
        let began = Instant::now();
        sessions(&lab, count, pod).await;
        let after = settled(Some(before)).await;
        println!("{count} sessions in {:?} (KEELSON_T5_SESSIONS): before {before:?}, after {after:?}", began.elapsed());
        assert_eq!(after.descriptors, before.descriptors);
        assert_eq!(after.tasks, before.tasks);
        assert!(after.threads <= before.threads, "{after:?}");
        assert!(after.memory <= before.memory + KEPT, "{before:?} {after:?}");
        echo.abort();
    });
}

/// What is held once it no longer changes, or is as little as before.
async fn settled(before: Option<Held>) -> Held {
    let deadline = Instant::now() + lab::PATIENCE;
    let mut last = held();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = held();
        let still = (now.descriptors, now.tasks) == (last.descriptors, last.tasks);
        let back = before.is_none_or(|before| now.descriptors <= before.descriptors && now.tasks <= before.tasks);
        if (still && back) || Instant::now() > deadline {
            return now;
        }
        last = now;
    }
}

#[test]
fn slow_heads_hold_up_nobody_for_long() {
    let _alone = alone();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let lab = Lab::start().await;
        let url = lab.exec(&["say", "served", "", "0"], OUT);
        // More than may knock at once: each sends a byte of its head now and then, for ever.
        let mut slow = Vec::new();
        for _ in 0..300 {
            let mut io = TcpStream::connect(parts(&url).0).await.unwrap();
            io.write_all(b"GET /exec/").await.unwrap();
            slow.push(tokio::spawn(async move {
                while io.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }));
        }
        // No more than the bound of them are accepted: a descriptor each, on both sides here.
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let accepted = held().descriptors.saturating_sub(300);
        assert!(accepted < 128 + 64, "{accepted} descriptors beside the clients' own");
        // A good client behind all of them is served once those before it have had their time.
        let (mut client, _) = tokio::time::timeout(Duration::from_secs(40), Spdy::connect_slowly(&url)).await.unwrap();
        let ids = client.streams(&["stdout", "stderr"]).await;
        assert_eq!(client.collect(&ids).await.text(ids[1]), "served");
        println!("served after {:?} behind 300 slow heads", began.elapsed());
        for slow in slow {
            slow.abort();
        }
    });
}

#[test]
fn sessions_are_counted_and_refused_above_the_bound() {
    let _alone = alone();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let _ = rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit { current: Some(8192), maximum: Some(8192) },
        );
        let lab = Lab::start().await;
        let mut held = Vec::new();
        for _ in 0..1024 {
            held.push(Spdy::connect(&lab.forward(&[]), &["portforward.k8s.io"]).await);
        }
        until("all run", || lab.streaming.counts().running() == 1024).await;
        assert_eq!(status(&lab.forward(&[]), &["Connection: Upgrade", "Upgrade: SPDY/3.1"]).await, 503);
        held.truncate(10);
        until("most are over", || lab.streaming.counts().running() == 10).await;
        assert_eq!(status(&lab.forward(&[]), &["Connection: Upgrade", "Upgrade: SPDY/3.1"]).await, 101);
        assert_eq!(lab.seen.alive.load(Ordering::SeqCst), 0);
    });
}
