//! The streaming server with a certificate: the stock crictl over TLS, for everything that streams.

use std::fs;

use anyhow::{Result, ensure};

use super::{
    TRANSPORTS, crictl, forward, said,
    server::{Server, V4},
    sleeper,
};
use crate::scenario_with;

/// A certificate for `localhost`, which is whom crictl asks for, signed by itself, and its key; one that nobody has: PEM files.
fn certificates(folder: &std::path::Path) -> Result<()> {
    let make = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = make()?;
    fs::write(folder.join("cert.pem"), made.cert.pem())?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(fs::write(folder.join("other.pem"), make()?.cert.pem())?)
}

#[test]
fn everything_streams_over_tls_and_nothing_without() {
    let folder = tempfile::Builder::new().prefix("keelson-tls-").tempdir_in("/var/tmp").expect("a folder");
    certificates(folder.path()).expect("certificates");
    let pem = |name: &str| folder.path().join(name).display().to_string();
    let config = format!("[streaming]\ntls_cert = \"{}\"\ntls_key = \"{}\"\n", pem("cert.pem"), pem("key.pem"));
    scenario_with(&config, async |node, mut cri| {
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        let url = super::exec_url(&mut cri, &id, "true", false, false).await?;
        ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
        ensure!(super::wire::upgrade(&url, "Upgrade: SPDY/3.1\r\n").await.is_err(), "not without TLS");
        // crictl wants a certificate of its own named too, which the server does not ask for.
        let (cert, key) = (pem("cert.pem"), pem("key.pem"));
        for transport in TRANSPORTS {
            let with = |verb: &'static str| {
                let trust = ["--tls-ca", &cert, "--tls-cert", &cert, "--tls-key", &key];
                [&[verb, "--transport", transport][..], &trust].concat()
            };
            let output =
                crictl(node, &[with("exec"), vec!["-i", &id, "sh", "-c", "wc -c; exit 4"]].concat(), "seven b")?;
            ensure!(
                said(&output).0.trim() == "7" && said(&output).1.contains("exit code 4"),
                "{transport}: {output:?}"
            );
            // Who trusts somebody else does not talk to this server.
            let other = pem("other.pem");
            let trust = ["--tls-ca", &other, "--tls-cert", &cert, "--tls-key", &key];
            let misled = [&["exec", "--transport", transport][..], &trust, &[&id, "echo", "secret"]].concat();
            let output = crictl(node, &misled, "")?;
            ensure!(!output.status.success() && said(&output).0.is_empty(), "{transport}: {output:?}");
            ensure!(said(&output).1.contains("certificate"), "{transport}: {output:?}");
            let name = format!("cat-{transport}");
            let cat = super::cat(node, &mut cri, &pod_id, &name).await?;
            let output = crictl(node, &[with("attach"), vec!["-i", &cat]].concat(), "to the container\n")?;
            ensure!(said(&output).0.contains("to the container"), "{transport}: {output:?}");
            let server = Server::start(Some(cri.pid(&id).await?), V4)?;
            let arguments = [with("port-forward"), vec![pod_id.as_str()]].concat();
            let client = forward::Crictl::start(node, &arguments, &[server.port])?;
            ensure!(client.echo(server.port, "over TLS").await? == "over TLSbye", "{transport}");
            client.stop()?;
        }
        Ok(())
    });
}
