//! Streaming sessions of a real node: the stock crictl over both transports, and clients of our own for what it does not do.

mod forward;
mod leaks;
mod server;
mod tls;
mod versions;
pub(crate) mod wire;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, eventually, pod};

use crate::scenario;
pub(crate) use forward::page;

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

/// A container that gives back its input, and ends with 5 a moment after it.
async fn cat(node: &Node, cri: &mut Cri, pod_id: &str, name: &str) -> Result<String> {
    let mut cat = container(name, "busybox:latest", "cat; echo ended; sleep 1; exit 5");
    (cat.stdin, cat.stdin_once) = (true, true);
    cri.run(pod_id, cat, &pod(node, "pod")).await
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
    let script = format!("{script} || true");
    let says = async || cri.shell(id, &script).await.is_ok_and(|said| said.trim() == want).then_some(());
    eventually(&format!("`{script}` says {want}"), says).await
}

#[test]
fn crictl_attaches_over_both_transports() {
    scenario(async |node, mut cri| {
        let (pod_id, _) = sleeper(&mut cri, node).await?;
        for transport in TRANSPORTS {
            let cat = cat(node, &mut cri, &pod_id, &format!("cat-{transport}")).await?;
            // The end of crictl's input is that of the container's.
            let output = crictl(node, &["attach", "--transport", transport, "-i", &cat], "to the container\n")?;
            ensure!(said(&output).0.contains("to the container"), "{transport}: {output:?}");
            ensure!(cri.wait_exit(&cat).await?.exit_code == 5, "{transport}: the end of stdin reaches it");
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
