//! Streaming sessions of a real node: the stock crictl over both transports, and clients of our own for what it does not do.

pub(crate) mod wire;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, pod};

use crate::scenario;
use wire::{Spdy, Web};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// crictl with something to read. Its answer, whatever its exit code.
fn crictl(node: &Node, arguments: &[&str], input: &str) -> Result<Output> {
    let mut child = crictl_command(node, arguments).stdin(Stdio::piped()).spawn().context("run crictl")?;
    child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn crictl_command(node: &Node, arguments: &[&str]) -> Command {
    let mut command = Command::new(keelson_e2e::cache::dir().join("cri-tools-v1.36.0/crictl"));
    command.args(["--config", "/dev/null", "--runtime-endpoint"]);
    command.arg(format!("unix://{}", node.socket().display())).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A pod with a container that sleeps.
async fn sleeper(cri: &mut Cri, node: &Node) -> Result<(String, String)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, "pod");
    let pod = cri.run_pod(&config).await?;
    let id = cri.run(&pod, container("c", "busybox:latest", "exec sleep 100000"), &config).await?;
    Ok((pod, id))
}

async fn exec_url(cri: &mut Cri, id: &str, script: &str, stdin: bool, tty: bool) -> Result<String> {
    let cmd = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let container_id = id.to_owned();
    let request = cri::ExecRequest { container_id, cmd, stdin, tty, stdout: true, stderr: !tty };
    Ok(cri.runtime.exec(request).await?.into_inner().url)
}

#[test]
fn crictl_execs_over_both_transports() {
    scenario(async |node, mut cri| {
        let (_, id) = sleeper(&mut cri, node).await?;
        for transport in TRANSPORTS {
            let exec = ["exec", "--transport", transport];
            let output = crictl(node, &[&exec[..], &[&id, "sh", "-c", "echo out; echo err >&2"]].concat(), "")?;
            ensure!(output.status.success(), "{transport}: {output:?}");
            ensure!(said(&output) == ("out\n".into(), "err\n".into()), "{transport}: {output:?}");
            let output = crictl(node, &[&exec[..], &[&id, "sh", "-c", "echo some; exit 7"]].concat(), "")?;
            ensure!(!output.status.success() && said(&output).0 == "some\n", "{transport}: {output:?}");
            ensure!(said(&output).1.contains("exit code 7"), "{transport}: {output:?}");
            let output = crictl(node, &[&exec[..], &["-i", &id, "wc", "-c"]].concat(), &"x".repeat(300_000))?;
            ensure!(said(&output).0.trim() == "300000", "{transport}: {output:?}");
            let output = crictl(node, &[&exec[..], &[&id, "/no/such/program"]].concat(), "")?;
            ensure!(
                !output.status.success() && said(&output).1.contains("/no/such/program"),
                "{transport}: {output:?}"
            );
            // All of a large output, and its code after it.
            let much = "dd if=/dev/zero bs=64k count=160 2>/dev/null; exit 9";
            let output = crictl(node, &[&exec[..], &[&id, "sh", "-c", much]].concat(), "")?;
            ensure!(output.stdout.len() == 160 * 65_536 && said(&output).1.contains("exit code 9"), "{transport}");
            // A client that is killed takes its program with it.
            let arguments = [&exec[..], &["-i", &id, "sleep", "4242"]].concat();
            let mut client = crictl_command(node, &arguments).stdin(Stdio::piped()).spawn()?;
            let runs = "ps | grep -c '[s]leep 4242'";
            let mut probe = cri.clone();
            wait_shell(&mut probe, &id, runs, "1").await?;
            client.kill()?;
            client.wait()?;
            wait_shell(&mut probe, &id, runs, "0").await?;
        }
        Ok(())
    });
}

/// Waits until this script says this; its exit code does not matter.
async fn wait_shell(cri: &mut Cri, id: &str, script: &str, want: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let said = cri.shell(id, &format!("{script} || true")).await?;
        if said.trim() == want {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "`{script}` says {said}, not {want}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn crictl_attaches_and_forwards_over_both_transports() {
    scenario(async |node, mut cri| {
        let (pod_id, _) = sleeper(&mut cri, node).await?;
        let config = pod(node, "pod");
        for transport in TRANSPORTS {
            let mut shell =
                container(&format!("cat-{transport}"), "busybox:latest", "cat; echo ended; sleep 1; exit 5");
            (shell.stdin, shell.stdin_once) = (true, true);
            let cat = cri.run(&pod_id, shell, &config).await?;
            // The end of crictl's input is that of the container's.
            let output = crictl(node, &["attach", "--transport", transport, "-i", &cat], "to the container\n")?;
            ensure!(said(&output).0.contains("to the container"), "{transport}: {output:?}");
            ensure!(cri.wait_exit(&cat).await?.exit_code == 5, "{transport}: the end of stdin reaches it");
        }
        cri.pull("docker.io/library/nginx:latest").await?;
        let mut nginx = container("nginx", "docker.io/library/nginx:latest", "");
        (nginx.command, nginx.args) = (vec![], vec![]);
        cri.run(&pod_id, nginx, &config).await?;
        wait_nginx(&mut cri, &pod_id).await?;
        for transport in TRANSPORTS {
            // Port 0 is any free one on this side; nobody listens on 81.
            let arguments = ["port-forward", "--transport", transport, &pod_id, "0:80", "0:81"];
            let mut client = crictl_command(node, &arguments).stdin(Stdio::null()).spawn()?;
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(client.stdout.take().context("stdout")?));
            let mut port = |to: &str| -> Result<u16> {
                let line = lines
                    .by_ref()
                    .find(|line| line.as_ref().is_ok_and(|line| line.contains("127.0.0.1:") && line.ends_with(to)));
                let line = line.with_context(|| format!("no port for {to}"))??;
                let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
                Ok(port.with_context(|| line.clone())?.parse()?)
            };
            let good = port("> 80")?;
            for round in 0..20 {
                let answer = wire::http(good).await.with_context(|| format!("{transport} {round}"))?;
                ensure!(answer.contains("nginx"), "{transport}: {answer}");
            }
            client.kill()?;
            client.wait()?;
        }
        Ok(())
    });
}

#[test]
fn websocket_clients_of_every_version_are_served() {
    scenario(async |node, mut cri| {
        let (_, id) = sleeper(&mut cri, node).await?;
        for protocol in ["", "channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"] {
            let mut web =
                Web::connect(&exec_url(&mut cri, &id, "echo hello; exit 6", false, false).await?, protocol).await?;
            let messages = web.hear().await?;
            ensure!(messages.iter().any(|message| message == b"\x01hello\n"), "{protocol}: {messages:?}");
            let last = messages.last().context("a status")?;
            ensure!(last.first() == Some(&3) && last.contains(&b'6'), "{protocol}: {messages:?}");
        }
        for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
            let mut web =
                Web::connect(&exec_url(&mut cri, &id, "read x; echo $x", true, false).await?, protocol).await?;
            web.say(false, b"0aGkK").await?;
            let messages = web.hear().await?;
            ensure!(messages.iter().any(|message| message == b"1aGkK"), "{protocol}: {messages:?}");
        }
        // Version 5 ends stdin alone; the process goes on.
        let mut web =
            Web::connect(&exec_url(&mut cri, &id, "wc -c; exit 3", true, false).await?, "v5.channel.k8s.io").await?;
        web.say(true, b"\0four").await?;
        web.say(true, b"\xff\0").await?;
        let messages = web.hear().await?;
        ensure!(messages.iter().any(|message| message == b"\x014\n"), "{messages:?}");
        // A terminal has the size that the client says.
        let script = "read go; stty size";
        let mut web = Web::connect(&exec_url(&mut cri, &id, script, true, true).await?, "v5.channel.k8s.io").await?;
        web.say(true, b"\x04{\"Width\":97,\"Height\":31}").await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        web.say(true, b"\0go\n").await?;
        let heard: Vec<u8> = web.hear().await?.iter().flat_map(|message| message[1..].to_vec()).collect();
        ensure!(String::from_utf8_lossy(&heard).contains("31 97"), "{:?}", String::from_utf8_lossy(&heard));
        Ok(())
    });
}

/// What a port says to a GET through this session; why it says nothing.
async fn get(client: &mut Spdy, port: &str, request: &str) -> Result<(String, String)> {
    let mut headers = [("port", port), ("streamtype", "error"), ("requestid", request)];
    let error = client.open(&headers).await?;
    headers[1].1 = "data";
    let data = client.open(&headers).await?;
    client.send(data, b"GET / HTTP/1.0\r\n\r\n").await?;
    // Of a connection that is made the data ends first, of another the error.
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if port == "80" {
        Ok((client.hear(data).await.map(text)?, String::new()))
    } else {
        Ok((String::new(), client.hear(error).await.map(text)?))
    }
}

async fn forward(cri: &mut Cri, pod_id: &str) -> Result<Spdy> {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod_id.to_owned(), port: vec![] };
    Spdy::connect(&cri.runtime.port_forward(request).await?.into_inner().url, "portforward.k8s.io").await
}

/// What a web server on port 80 of a pod answers, through a forward.
pub(crate) async fn page(cri: &mut Cri, pod_id: &str) -> Result<String> {
    Ok(get(&mut forward(cri, pod_id).await?, "80", "1").await?.0)
}

async fn wait_nginx(cri: &mut Cri, pod_id: &str) -> Result<()> {
    let mut client = forward(cri, pod_id).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    for round in 0.. {
        if get(&mut client, "80", &round.to_string()).await?.0.contains("nginx") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "nginx does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[test]
fn a_forward_outlives_refusals() {
    scenario(async |node, mut cri| {
        cri.pull("docker.io/library/nginx:latest").await?;
        let config = pod(node, "pod");
        let pod_id = cri.run_pod(&config).await?;
        let mut nginx = container("nginx", "docker.io/library/nginx:latest", "");
        (nginx.command, nginx.args) = (vec![], vec![]);
        cri.run(&pod_id, nginx, &config).await?;
        wait_nginx(&mut cri, &pod_id).await?;
        let mut client = forward(&mut cri, &pod_id).await?;
        for round in 0..10 {
            let (_, why) = get(&mut client, "9", &format!("refused {round}")).await?;
            ensure!(why.contains("connection refused"), "{why}");
            let (page, _) = get(&mut client, "80", &format!("good {round}")).await?;
            ensure!(page.contains("nginx"), "{page}");
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_is_refused_before_a_url_is_given() {
    scenario(async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        let ask =
            cri::ExecRequest { container_id: id.clone(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
        for (request, code) in [
            (cri::ExecRequest { tty: true, stderr: true, ..ask.clone() }, tonic::Code::InvalidArgument),
            (cri::ExecRequest { stdout: false, ..ask.clone() }, tonic::Code::InvalidArgument),
            (cri::ExecRequest { cmd: vec![], ..ask.clone() }, tonic::Code::InvalidArgument),
            (cri::ExecRequest { container_id: "feed".into(), ..ask.clone() }, tonic::Code::NotFound),
        ] {
            let refused = cri.runtime.exec(request.clone()).await.err().with_context(|| format!("{request:?}"))?;
            ensure!(refused.code() == code, "{request:?}: {refused:?}");
        }
        let attach = cri::AttachRequest { container_id: id.clone(), stdout: true, tty: true, ..Default::default() };
        let refused = cri.runtime.attach(attach).await.err().context("no terminal there")?;
        ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused:?}");
        let bad = cri::PortForwardRequest { pod_sandbox_id: pod_id.clone(), port: vec![70_000] };
        let refused = cri.runtime.port_forward(bad).await.err().context("no such port")?;
        ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused:?}");
        cri.stop(&id, 0).await?;
        let refused = cri.runtime.exec(ask).await.err().context("it has ended")?;
        ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused:?}");
        cri.stop_pod(&pod_id).await?;
        let stopped = cri::PortForwardRequest { pod_sandbox_id: pod_id, port: vec![80] };
        let refused = cri.runtime.port_forward(stopped).await.err().context("it is not ready")?;
        ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused:?}");
        Ok(())
    });
}

/// What the daemon, the container's shim and the container hold.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    memory: usize,
    shim: (usize, usize),
    processes: usize,
}

fn process(pid: u32) -> Result<(usize, usize, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |name: &str| -> Result<usize> {
        let line = status.lines().find(|line| line.starts_with(name)).context("no such line")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((descriptors, number("Threads:")?, number("RssAnon:")?))
}

async fn held(node: &Node, cri: &mut Cri, id: &str) -> Result<Held> {
    let processes = cri.shell(id, "ls -d /proc/[0-9]* | wc -l").await?.trim().parse()?;
    let shim = std::fs::read_to_string(node.state_dir().join("containers").join(id).join("shim.pid"))?;
    let (descriptors, threads, memory) = process(node.daemon_pid().context("a daemon")?)?;
    let shim = process(shim.trim().parse()?)?;
    Ok(Held { descriptors, threads, memory, shim: (shim.0, shim.2), processes })
}

/// T5 on a real node. Its ten thousand are in `runtime/tests/flood`; here each session costs processes, so there are fewer.
#[test]
fn sessions_however_they_end_leave_nothing() {
    scenario(async |node, mut cri| {
        let count: usize = std::env::var("KEELSON_T5_NODE").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        for number in 0..40 {
            session(&mut cri, &pod_id, &id, number).await.with_context(|| format!("session {number}"))?;
        }
        let before = settled(node, &mut cri, &id, None).await?;
        let begun = Instant::now();
        for number in 0..count {
            session(&mut cri, &pod_id, &id, number).await.with_context(|| format!("session {number}"))?;
        }
        let took = begun.elapsed();
        let after = settled(node, &mut cri, &id, Some(before)).await?;
        println!("T5: {count} sessions of a node (KEELSON_T5_NODE) in {took:?}: before {before:?}, after {after:?}");
        ensure!(after.descriptors <= before.descriptors && after.threads <= before.threads, "{before:?} {after:?}");
        ensure!(after.shim.0 <= before.shim.0 && after.processes <= before.processes, "{before:?} {after:?}");
        ensure!(after.memory <= before.memory + 8192 && after.shim.1 <= before.shim.1 + 128, "{before:?} {after:?}");
        Ok(())
    });
}

/// What is held once it is as little as before, or does not change for a while.
async fn settled(node: &Node, cri: &mut Cri, id: &str, before: Option<Held>) -> Result<Held> {
    let begun = Instant::now();
    loop {
        // The pool's idle threads end after five seconds.
        tokio::time::sleep(Duration::from_millis(if before.is_none() { 6500 } else { 500 })).await;
        let now = held(node, cri, id).await?;
        let back = before.is_none_or(|before| {
            now.descriptors <= before.descriptors
                && now.threads <= before.threads
                && now.shim.0 <= before.shim.0
                && now.processes <= before.processes
        });
        if back || begun.elapsed() > Duration::from_secs(20) {
            return Ok(now);
        }
    }
}

async fn session(cri: &mut Cri, pod: &str, id: &str, number: usize) -> Result<()> {
    const V4: &str = "v4.channel.k8s.io";
    let kinds = |spdy: Spdy| async move {
        let mut spdy = spdy;
        let status = spdy.open(&[("streamtype", "error")]).await?;
        for kind in ["stdin", "stdout", "stderr"] {
            spdy.open(&[("streamtype", kind)]).await?;
        }
        anyhow::Ok((spdy, status))
    };
    match number % 8 {
        0 => {
            let url = exec_url(cri, id, "echo x; exit 2", true, false).await?;
            let (mut spdy, status) = kinds(Spdy::connect(&url, V4).await?).await?;
            let said = String::from_utf8(spdy.hear(status).await?)?;
            ensure!(said.contains("NonZeroExitCode"), "{said}");
        }
        1 => {
            let url = exec_url(cri, id, "echo x", false, false).await?;
            ensure!(!Web::connect(&url, "v5.channel.k8s.io").await?.hear().await?.is_empty());
        }
        // Broken off: with the program at work, with a terminal, before any stream, in the middle of output.
        2 => {
            let url = exec_url(cri, id, "sleep 1000", true, false).await?;
            let _ = kinds(Spdy::connect(&url, V4).await?).await?;
        }
        3 => drop(Web::connect(&exec_url(cri, id, "sleep 1000", true, true).await?, V4).await?),
        4 => drop(Spdy::connect(&exec_url(cri, id, "true", true, false).await?, V4).await?),
        5 => {
            let mut web = Web::connect(&exec_url(cri, id, "while :; do echo y; done", false, false).await?, V4).await?;
            tokio::io::AsyncReadExt::read_u64(&mut web.0).await?;
        }
        6 => {
            let container_id = id.to_owned();
            let attach = cri::AttachRequest { container_id, stdout: true, stderr: true, ..Default::default() };
            let url = cri.runtime.attach(attach).await?.into_inner().url;
            drop(Web::connect(&url, V4).await?);
            let (_, answer) = wire::upgrade(&url, "Upgrade: SPDY/3.1\r\n").await?;
            ensure!(answer.starts_with("HTTP/1.1 404"), "a URL is good once: {answer}");
        }
        _ => {
            let request = cri::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![] };
            let url = cri.runtime.port_forward(request).await?.into_inner().url;
            let mut spdy = Spdy::connect(&url, "portforward.k8s.io").await?;
            let error = spdy.open(&[("port", "9"), ("streamtype", "error"), ("requestid", "1")]).await?;
            spdy.open(&[("port", "9"), ("streamtype", "data"), ("requestid", "1")]).await?;
            ensure!(!spdy.hear(error).await?.is_empty(), "nobody listens there");
        }
    }
    Ok(())
}
