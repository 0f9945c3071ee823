//! Port-forward of a real node: the stock crictl, and our own client in each form.

use std::{
    io::{BufRead as _, Read as _},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, DEADLINE, Node, container, eventually, pod};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    TRANSPORTS, crictl_command,
    server::{Server, V4, V6},
    sleeper,
    wire::{self, Spdy, Web},
};
use crate::scenario;

/// A crictl that forwards.
pub(super) struct Crictl {
    child: Child,
    lines: std::io::Lines<std::io::BufReader<ChildStdout>>,
    ports: Vec<(u16, u16)>,
}

impl Crictl {
    /// With these arguments, and a free port on this side for each of the pod's. Waits until it listens.
    pub(super) fn start(node: &Node, arguments: &[&str], ports: &[u16]) -> Result<Crictl> {
        let pairs: Vec<_> = ports.iter().map(|port| format!("0:{port}")).collect();
        let arguments = [arguments, &pairs.iter().map(String::as_str).collect::<Vec<_>>()].concat();
        let mut child = crictl_command(node, &arguments).stdin(Stdio::null()).spawn()?;
        let lines = std::io::BufReader::new(child.stdout.take().context("stdout")?).lines();
        let mut client = Crictl { child, lines, ports: Vec::new() };
        for to in ports {
            let end = format!("> {to}");
            let line = client
                .lines
                .by_ref()
                .find(|line| line.as_ref().is_ok_and(|line| line.contains("127.0.0.1:") && line.ends_with(&end)));
            let line = line.with_context(|| format!("no port for {to}"))??;
            let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
            client.ports.push((*to, port.with_context(|| line.clone())?.parse()?));
        }
        Ok(client)
    }

    /// The port on this side.
    fn port(&self, to: u16) -> Result<u16> {
        Ok(self.ports.iter().find(|(of, _)| *of == to).context("not forwarded")?.1)
    }

    /// What a server of ours says to this, through a connection whose one side ends.
    pub(super) async fn echo(&self, to: u16, text: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port(to)?)).await?;
        stream.write_all(format!("e{text}").as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        tokio::time::timeout(*DEADLINE, stream.read_to_string(&mut answer)).await??;
        Ok(answer)
    }

    /// Ends it; all that it complained of.
    pub(super) fn stop(mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        let mut complaints = String::new();
        self.child.stderr.take().context("stderr")?.read_to_string(&mut complaints)?;
        Ok(complaints)
    }
}

#[test]
fn crictl_forwards_over_both_transports() {
    scenario(async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        nginx(&mut cri, node, &pod_id).await?;
        let server = Server::start(Some(cri.pid(&id).await?), V4)?;
        for transport in TRANSPORTS {
            let arguments = ["port-forward", "--transport", transport, &pod_id];
            // Nobody listens on 81.
            let client = Crictl::start(node, &arguments, &[80, 81, server.port])?;
            for round in 0..20 {
                let answer = wire::http(client.port(80)?).await.with_context(|| format!("{transport} {round}"))?;
                ensure!(answer.contains("nginx"), "{transport}: {answer}");
            }
            ensure!(client.echo(server.port, "half-close").await? == "half-closebye", "{transport}");
            // A refusal is told, in words; after it crictl's library ends its session by itself.
            let mut refused = TcpStream::connect(("127.0.0.1", client.port(81)?)).await?;
            let mut nothing = Vec::new();
            let ended = tokio::time::timeout(*DEADLINE, refused.read_to_end(&mut nothing)).await?;
            ensure!(nothing.is_empty(), "{transport}: {ended:?} {nothing:?}");
            let complaints = client.stop()?;
            ensure!(
                complaints.contains("connection refused: nothing listens there on 127.0.0.1 or ::1"),
                "{complaints}"
            );
        }
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
    Spdy::connect(&url(cri, pod_id, &[]).await?, "portforward.k8s.io").await
}

async fn url(cri: &mut Cri, pod_id: &str, ports: &[u16]) -> Result<String> {
    let port = ports.iter().map(|port| i32::from(*port)).collect();
    let request = cri::PortForwardRequest { pod_sandbox_id: pod_id.to_owned(), port };
    Ok(cri.runtime.port_forward(request).await?.into_inner().url)
}

/// Our client in both forms that carry many connections.
async fn both(cri: &mut Cri, pod_id: &str) -> Result<[(&'static str, Spdy); 2]> {
    let tunnelled = Spdy::tunnelled(&url(cri, pod_id, &[]).await?).await?;
    Ok([("spdy", forward(cri, pod_id).await?), ("tunnel", tunnelled)])
}

/// The streams of one forwarded connection: error and data.
async fn pair(client: &mut Spdy, port: u16, request: &str) -> Result<(u32, u32)> {
    let port = port.to_string();
    let mut headers = [("port", port.as_str()), ("streamtype", "error"), ("requestid", request)];
    let error = client.open(&headers).await?;
    headers[1].1 = "data";
    Ok((error, client.open(&headers).await?))
}

/// A server gives back what it is sent, to the end.
async fn echoes(client: &mut Spdy, port: u16, request: &str) -> Result<()> {
    let (error, data) = pair(client, port, request).await?;
    client.send(data, b"ehello").await?;
    client.close(data).await?;
    let (data, error) = (client.outcome(data).await?, client.outcome(error).await?);
    ensure!(data.ended && data.text() == "hellobye", "{request}: {data:?} {error:?}");
    ensure!(error.ended && error.bytes.is_empty(), "{request}: {error:?}");
    Ok(())
}

async fn nginx(cri: &mut Cri, node: &Node, pod_id: &str) -> Result<()> {
    cri.pull("docker.io/library/nginx:latest").await?;
    cri.run(pod_id, container("nginx", "docker.io/library/nginx:latest", ""), &pod(node, "pod")).await?;
    wait_nginx(cri, pod_id).await
}

/// What a web server on port 80 of a pod answers, through a forward.
pub(crate) async fn page(cri: &mut Cri, pod_id: &str) -> Result<String> {
    Ok(get(&mut forward(cri, pod_id).await?, "80", "1").await?.0)
}

async fn wait_nginx(cri: &mut Cri, pod_id: &str) -> Result<()> {
    let mut client = forward(cri, pod_id).await?;
    let mut round = 0;
    eventually("nginx answers", async || {
        round += 1;
        let said = get(&mut client, "80", &round.to_string()).await;
        said.is_ok_and(|(page, _)| page.contains("nginx")).then_some(())
    })
    .await
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
fn a_server_on_either_loopback_address_is_reached_in_a_pod_and_on_the_host() {
    scenario(async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        let mut config = pod(node, "host");
        let options = cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() };
        let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        config.linux = Some(cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let host_id = cri.run_pod(&config).await?;
        for (pod_id, pid) in [(&pod_id, Some(cri.pid(&id).await?)), (&host_id, None)] {
            for address in [V4, V6] {
                let server = Server::start(pid, address)?;
                for (form, mut client) in both(&mut cri, pod_id).await? {
                    let what = format!("{form} {address} {pid:?}");
                    echoes(&mut client, server.port, "1").await.with_context(|| what.clone())?;
                    // What has no server is not reached by way of another network.
                    let closed = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
                    let (error, data) = pair(&mut client, closed, "2").await?;
                    let (error, data) = (client.outcome(error).await?, client.outcome(data).await?);
                    let want = format!("forward port {closed} of sandbox {pod_id}: connection refused");
                    ensure!(error.text().starts_with(&want) && data.reset, "{what}: {error:?} {data:?}");
                }
            }
        }
        // A server of the host is none of the pod's.
        let server = Server::start(None, V4)?;
        let mut client = forward(&mut cri, &pod_id).await?;
        let (error, _) = pair(&mut client, server.port, "3").await?;
        ensure!(client.outcome(error).await?.text().contains("connection refused"));
        Ok(())
    });
}

#[test]
fn a_reset_inside_costs_its_own_stream_of_many() {
    scenario(async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        let mut server = Server::start(Some(cri.pid(&id).await?), V4)?;
        for (form, mut client) in both(&mut cri, &pod_id).await? {
            let mut open = Vec::new();
            for number in 0..24 {
                let (error, data) = pair(&mut client, server.port, &number.to_string()).await?;
                client.send(data, format!("e{number}").as_bytes()).await?;
                client.wait(data, &number.to_string()).await.context(form)?;
                open.push((number, error, data));
            }
            for round in 0..8 {
                let (error, data) = pair(&mut client, server.port, &format!("reset {round}")).await?;
                client.send(data, b"r").await?;
                let (data, error) = (client.outcome(data).await?, client.outcome(error).await?);
                // No word on the error stream: clients end the whole session for one.
                ensure!(data.reset && error.bytes.is_empty(), "{form}: {data:?} {error:?}");
            }
            // One that the client resets ends inside the pod, and no other.
            let (_, data) = pair(&mut client, server.port, "given up").await?;
            client.send(data, b"vsome").await?;
            client.wait(data, "some").await.context(form)?;
            client.reset(data).await?;
            ensure!(server.got().await.context(form)?.0 == "some", "{form}");
            for (number, error, data) in open {
                client.send(data, b" still").await?;
                client.close(data).await?;
                let (data, error) = (client.outcome(data).await?, client.outcome(error).await?);
                ensure!(data.ended && data.text() == format!("{number} stillbye"), "{form} {number}: {data:?}");
                ensure!(error.ended && error.bytes.is_empty(), "{form} {number}: {error:?}");
            }
            echoes(&mut client, server.port, "after all that").await.context(form)?;
        }
        Ok(())
    });
}

#[test]
fn each_side_of_a_connection_ends_by_itself() {
    scenario(async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        let mut server = Server::start(Some(cri.pid(&id).await?), V4)?;
        for (form, mut client) in both(&mut cri, &pod_id).await? {
            // The client's side first: the pod hears of it and still has the word.
            echoes(&mut client, server.port, "client first").await.context(form)?;
            // The pod's side first: the client hears of it and is still heard, to its own end.
            let (error, data) = pair(&mut client, server.port, "pod first").await?;
            client.send(data, b"hbefore ").await?;
            let ended = client.outcome(data).await?;
            ensure!(ended.ended && !ended.reset && ended.bytes.is_empty(), "{form}: {ended:?}");
            ensure!(client.outcome(error).await?.ended, "{form}");
            client.send(data, b"and after").await?;
            client.close(data).await?;
            ensure!(server.got().await.context(form)? == ("before and after".into(), true), "{form}");
            // A client that is gone is gone inside.
            let (_, data) = pair(&mut client, server.port, "vanishes").await?;
            client.send(data, b"vlast").await?;
            client.wait(data, "last").await.context(form)?;
            drop(client);
            ensure!(server.got().await.context(form)?.0 == "last", "{form}");
        }
        Ok(())
    });
}

#[test]
fn numbered_channels_carry_a_port_each() {
    scenario(async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        let server = Server::start(Some(cri.pid(&id).await?), V6)?;
        let ports = [server.port, 9, server.port];
        let mut web = Web::connect(&url(&mut cri, &pod_id, &ports).await?, "v4.channel.k8s.io").await?;
        let mut heard = vec![Vec::new(); 6];
        let mut until = async |web: &mut Web, channel: usize, text: &str| -> Result<()> {
            while !String::from_utf8_lossy(&heard[channel]).contains(text) {
                let message = web.message().await?.with_context(|| format!("closed before `{text}`: {heard:?}"))?;
                let of = heard.get_mut(usize::from(message[0])).context("no such channel")?;
                of.extend(&message[1..]);
            }
            Ok(())
        };
        until(&mut web, 3, "connection refused").await?;
        web.say(true, b"\0r").await?;
        until(&mut web, 0, "half").await?;
        web.say(true, b"\x04estill here").await?;
        until(&mut web, 4, "still here").await?;
        // Each channel began with its port, the low byte first.
        for (channel, heard) in heard.iter().enumerate() {
            ensure!(heard[..2] == ports[channel / 2].to_le_bytes(), "{channel}: {heard:?}");
        }
        ensure!(heard[1].len() == 2 && heard[5].len() == 2, "no complaint about those that are served: {heard:?}");
        Ok(())
    });
}
