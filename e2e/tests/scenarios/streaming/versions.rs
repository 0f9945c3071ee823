//! Every version of the channel protocol on both transports, spoken by clients of our own, and URLs that are good once.

use anyhow::{Context as _, Result, ensure};
use keelson_e2e::node::Cri;

use super::{
    exec_url, sleeper,
    wire::{self, Spdy, Web},
};
use crate::scenario;

/// Ends when the terminal has the size that the client says.
const SIZED: &str = r#"until [ "$(stty size)" = "31 97" ]; do sleep 0.05; done; echo sized"#;

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
        let url = exec_url(&mut cri, &id, SIZED, true, true).await?;
        let mut web = Web::connect(&url, "v5.channel.k8s.io").await?;
        web.say(true, b"\x04{\"Width\":97,\"Height\":31}").await?;
        let heard: Vec<u8> = web.hear().await?.iter().flat_map(|message| message[1..].to_vec()).collect();
        ensure!(String::from_utf8_lossy(&heard).contains("sized"), "{:?}", String::from_utf8_lossy(&heard));
        Ok(())
    });
}

/// A session with these streams: the one for the status, then the others.
async fn open(cri: &mut Cri, id: &str, script: &str, protocol: &str, kinds: &[&str]) -> Result<(Spdy, Vec<u32>)> {
    let tty = kinds.contains(&"resize");
    let url = exec_url(cri, id, script, kinds.contains(&"stdin"), tty).await?;
    let mut spdy = Spdy::connect(&url, protocol).await?;
    let mut streams = vec![spdy.open(&[("streamtype", "error")]).await?];
    for kind in kinds {
        streams.push(spdy.open(&[("streamtype", kind)]).await?);
    }
    Ok((spdy, streams))
}

#[test]
fn spdy_clients_of_every_version_are_served() {
    scenario(async |node, mut cri| {
        let (_, id) = sleeper(&mut cri, node).await?;
        for protocol in ["", "channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"] {
            let outputs = ["stdout", "stderr"];
            let (mut spdy, of) = open(&mut cri, &id, "echo out; echo err >&2; exit 6", protocol, &outputs).await?;
            ensure!(spdy.outcome(of[1]).await?.text() == "out\n", "{protocol}");
            ensure!(spdy.outcome(of[2]).await?.text() == "err\n", "{protocol}");
            // Version 4 tells the end as a status, the older ones in words.
            let status = spdy.outcome(of[0]).await?;
            let json = serde_json::from_slice::<serde_json::Value>(&status.bytes).ok();
            let code = json.as_ref().and_then(|json| json["details"]["causes"][0]["message"].as_str());
            ensure!(status.ended && json.is_some() == protocol.starts_with("v4"), "{protocol}: {status:?}");
            ensure!(
                code == json.as_ref().map(|_| "6") && status.text().contains("exit code: 6"),
                "{protocol}: {status:?}"
            );
            // A success is a status as well, and no word at all before it; the end of stdin ends stdin alone.
            let (mut spdy, of) = open(&mut cri, &id, "wc -c", protocol, &["stdin", "stdout", "stderr"]).await?;
            spdy.send(of[1], b"four").await?;
            spdy.close(of[1]).await?;
            ensure!(spdy.outcome(of[2]).await?.text().trim() == "4", "{protocol}");
            let status = spdy.outcome(of[0]).await?.text();
            ensure!(status.contains("Success") == protocol.starts_with("v4"), "{protocol}: {status}");
            ensure!(status.is_empty() != protocol.starts_with("v4"), "{protocol}: {status}");
        }
        for protocol in ["v3.channel.k8s.io", "v4.channel.k8s.io"] {
            let (mut spdy, of) = open(&mut cri, &id, SIZED, protocol, &["stdin", "stdout", "resize"]).await?;
            spdy.send(of[3], b"{\"Width\":97,\"Height\":31}\n").await?;
            ensure!(spdy.outcome(of[2]).await?.text().contains("sized"), "{protocol}");
        }
        // Before version 3 terminals had no size to follow: a stream for it is refused, and the session goes on.
        for protocol in ["channel.k8s.io", "v2.channel.k8s.io"] {
            let (mut spdy, of) = open(&mut cri, &id, "echo terminal", protocol, &["resize", "stdin", "stdout"]).await?;
            ensure!(spdy.outcome(of[1]).await?.reset, "{protocol}");
            ensure!(spdy.outcome(of[3]).await?.text() == "terminal\r\n", "{protocol}");
        }
        Ok(())
    });
}

#[test]
fn a_url_is_good_once_and_on_its_own_path() {
    scenario(async |node, mut cri| {
        let (_, id) = sleeper(&mut cri, node).await?;
        let spdy = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
        let status = async |url: &str, lines: &str| -> Result<String> {
            let (_, answer) = wire::upgrade(url, lines).await?;
            Ok(answer.split(' ').nth(1).context("a status")?.to_owned())
        };
        let url = exec_url(&mut cri, &id, "true", false, false).await?;
        let (mut session, answer) = wire::upgrade(&url, spdy).await?;
        ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        ensure!(status(&url, spdy).await? == "404", "while the session waits for its streams");
        tokio::io::AsyncWriteExt::shutdown(&mut session).await?;
        ensure!(status(&url, spdy).await? == "404", "after it");
        // Used up by a request that came to nothing, too: nobody gets a second guess.
        for (path, lines, want) in [
            ("/attach/", spdy, "404"),
            ("/exec/", "", "400"),
            ("/exec/", "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n", "403"),
        ] {
            let url = exec_url(&mut cri, &id, "true", false, false).await?;
            ensure!(status(&url.replace("/exec/", path), lines).await? == want, "{path} {lines}");
            ensure!(status(&url, spdy).await? == "404", "{path} {lines}");
        }
        Ok(())
    });
}
