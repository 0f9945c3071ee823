use std::time::Duration;

use keelson_api::shim::ExecResult;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, timeout},
};

use super::*;

fn piped() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn ended(exit_code: i32) -> Option<Outcome> {
    Some(Outcome::Exec(ExecResult { exit_code, ..ExecResult::default() }))
}

#[tokio::test]
async fn output_ends_with_its_last_writer() {
    let (reader, writer) = piped();
    let (_end, news) = watch::channel(None);
    let mut output = Output::pipe(reader, Some(Drain::new(news))).unwrap();
    rustix::io::write(&writer, b"said").unwrap();
    drop(writer);
    let mut said = String::new();
    output.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "said");
}

#[tokio::test]
async fn a_background_child_holds_the_output_for_a_moment_only() {
    let (reader, writer) = piped();
    let (end, news) = watch::channel(None);
    let mut output = Output::pipe(reader, Some(Drain::new(news))).unwrap();
    rustix::io::write(&writer, b"last words").unwrap();
    let mut said = [0; 4];
    output.read_exact(&mut said).await.unwrap();
    assert!(timeout(Duration::from_millis(300), output.read_exact(&mut [0; 7])).await.is_err(), "it runs: no end");
    end.send_replace(ended(0));
    let begun = Instant::now();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(writer);
}

#[tokio::test]
async fn a_chatty_background_child_is_given_up() {
    let (reader, writer) = piped();
    let (_end, news) = watch::channel(ended(0));
    let mut output = Output::pipe(reader, Some(Drain::new(news))).unwrap();
    let chatter = tokio::spawn(async move {
        let mut writer = tokio::net::unix::pipe::Sender::from_owned_fd(writer).unwrap();
        while writer.write_all(b"and another thing\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut said = Vec::new();
    timeout(Duration::from_secs(10), output.read_to_end(&mut said)).await.expect("given up").unwrap();
    assert!(!said.is_empty());
    drop(output);
    chatter.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_all_that_the_process_wrote() {
    let (reader, writer) = piped();
    let (_end, news) = watch::channel(ended(0));
    let mut output = Output::pipe(reader, Some(Drain::new(news))).unwrap();
    rustix::io::write(&writer, &[b'x'; 60_000]).unwrap();
    let (mut all, mut chunk) = (0, [0; 1000]);
    loop {
        match output.read(&mut chunk).await.unwrap() {
            0 => break,
            count => all += count,
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(all, 60_000);
    drop(writer);
}

#[tokio::test]
async fn the_end_of_the_input_is_the_end_of_the_pipe() {
    let (reader, writer) = piped();
    let mut input = Input::pipe(writer).unwrap();
    input.write_all(b"in").await.unwrap();
    input.shutdown().await.unwrap();
    let mut buffer = [0; 8];
    assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 2);
    assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 0);
    assert!(input.write_all(b"more").await.is_err());
}

#[tokio::test]
async fn privileged_a_port_is_found_on_either_loopback_of_a_namespace() {
    use keelson_sys::namespace::{NamespaceKinds, in_new, pin, unpin};

    let folder = tempfile::tempdir().unwrap();
    let netns = folder.path().join("net");
    let id: keelson_api::SandboxId = "ab".repeat(32).parse().unwrap();
    let servers = in_new(NamespaceKinds::NET, || {
        pin(NamespaceKinds::NET, &netns).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "ip (package iproute2)");
        let four = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let six = std::net::TcpListener::bind(("::1", 0)).unwrap();
        (four, six)
    })
    .unwrap();
    let mine = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    for listener in [&servers.0, &servers.1] {
        let port = listener.local_addr().unwrap().port();
        let stream = port::connect(&id, Some(netns.clone()), port).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), stream.local_addr().unwrap());
    }
    let refused = port::connect(&id, Some(netns.clone()), 1).await.unwrap_err();
    assert!(matches!(refused, port::PortError::Refused { port: 1, .. }), "{refused}");
    let none = port::connect(&id, Some(folder.path().join("absent")), 1).await.unwrap_err();
    assert!(matches!(none, port::PortError::Failed { .. }), "{none}");
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), mine);
    unpin(&netns).unwrap();
}
