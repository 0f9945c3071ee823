//! An exec or attach session, whatever carries it: bytes of the client to the process and back, sizes, and how it ended.
//! Async, one task per session; a full pipe or a slow client is waited for, nothing is queued. Owns the process's streams.
//! Must tell the end after all output, and never leave a process when the client is gone: dropping the future ends it.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::future::OptionFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    channel::{Channels, Reader, StatusForm, TerminalSize, Writer},
    life::Life,
    node::{Ended, Process, Resize, Sink, Source},
    spdy::Input,
};

/// Read from a process at once, bytes.
const CHUNK: usize = 32 * 1024;
/// A terminal size is some thirty bytes: more without a whole one is no size.
const SIZE_MAX: usize = 4096;

/// Runs the session to its end, which it tells. `opening` gives the process once the channels are there.
pub(super) async fn run(channels: Channels, opening: impl Future<Output = Result<Process, String>>, life: &Life) {
    let Channels { stdin, resize, stdout, stderr, status, form } = channels;
    let work = async {
        let process = opening.await?;
        // Without a sink the client's bytes are taken all the same: behind them may be its end, or sizes.
        let input = async {
            let stdin = OptionFuture::from(stdin.map(|from| feed(from, process.stdin, life)));
            let sizes = OptionFuture::from(resize.map(|from| follow(from, process.resize)));
            let _ = tokio::join!(stdin, sizes);
            std::future::pending::<()>().await;
        };
        let output = async {
            let stdout = OptionFuture::from(process.stdout.map(|from| drain(from, stdout.as_ref(), life)));
            let stderr = OptionFuture::from(process.stderr.map(|from| drain(from, stderr.as_ref(), life)));
            let _ = tokio::join!(stdout, stderr);
            process.end.await
        };
        tokio::select! {
            ended = output => ended,
            () = input => Err("no end".to_owned()),
        }
    };
    let ended = tokio::select! {
        ended = work => ended,
        over = life.over() => Err(over.to_string()),
    };
    let text = told(form, &ended);
    // Everything below is said to a client that may have gone meanwhile.
    if !text.is_empty() {
        let _ = status.send(Bytes::from(text)).await;
    }
    for writer in [stdout.as_ref(), stderr.as_ref(), Some(&status)].into_iter().flatten() {
        let _ = writer.finish().await;
    }
}

fn told(form: StatusForm, ended: &Result<Ended, String>) -> String {
    match ended {
        Ok(Ended::Exit(code)) => form.exit(*code),
        Ok(Ended::Detached) => form.exit(0),
        Ok(Ended::FellBehind) => form.failure(
            "detached: the client took the output too slowly, and the container does not wait; its log has everything",
        ),
        Err(why) => form.failure(why),
    }
}

/// The client's bytes to the process, until the client ends them; the end reaches the process.
async fn feed(mut from: Reader, mut sink: Option<Sink>, life: &Life) {
    loop {
        match from.next().await {
            Input::Data(bytes) => {
                life.touch();
                // A process that takes no more input still has output.
                if let Some(to) = &mut sink
                    && to.write_all(&bytes).await.is_err()
                {
                    sink = None;
                }
            }
            Input::End | Input::Reset => {
                if let Some(mut to) = sink {
                    let _ = to.shutdown().await;
                }
                return;
            }
        }
    }
}

/// The process's bytes to the client, as fast as the client takes them.
async fn drain(mut from: Source, to: Option<&Writer>, life: &Life) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match from.read_buf(&mut buffer).await {
            Ok(1..) => {}
            // A terminal whose last process has gone says EIO.
            Ok(0) | Err(_) => return,
        }
        life.touch();
        let bytes = buffer.split().freeze();
        let sent = match to {
            Some(writer) => writer.send(bytes).await,
            None => Ok(()),
        };
        if sent.is_err() {
            // The client has closed this stream: the process learns it as from any closed pipe.
            return;
        }
    }
}

/// The client's terminal sizes to the terminal.
async fn follow(mut from: Reader, resize: Option<Resize>) {
    let mut text = BytesMut::new();
    while let Input::Data(bytes) = from.next().await {
        text.extend_from_slice(&bytes);
        for size in sizes(&mut text) {
            if let Some(resize) = &resize
                && let Err(error) = resize(size)
            {
                tracing::debug!(%error, "resize terminal");
            }
        }
    }
}

/// The whole sizes at the front of the text, which are taken from it.
fn sizes(text: &mut BytesMut) -> Vec<TerminalSize> {
    let mut found = Vec::new();
    let mut parsed = serde_json::Deserializer::from_slice(text).into_iter::<TerminalSize>();
    let (mut used, mut bad) = (0, false);
    while let Some(size) = parsed.next() {
        match size {
            Ok(size) => {
                found.push(size);
                used = parsed.byte_offset();
            }
            Err(error) => bad = !error.is_eof(),
        }
    }
    text.advance(used.min(text.len()));
    if bad || text.len() > SIZE_MAX {
        text.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_however_they_are_cut() {
        let all = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":40}\n";
        for step in 1..all.len() {
            let mut text = BytesMut::new();
            let found: Vec<_> = all
                .chunks(step)
                .flat_map(|part| {
                    text.extend_from_slice(part);
                    sizes(&mut text)
                })
                .collect();
            let want = [TerminalSize { width: 80, height: 24 }, TerminalSize { width: 100, height: 40 }];
            assert_eq!(found, want, "{step}");
        }
    }

    #[test]
    fn what_is_no_size_is_thrown_away() {
        for bad in ["nonsense", "{\"Width\":-1,\"Height\":2}", "[1]", &"[".repeat(5000)] {
            let mut text = BytesMut::from(bad);
            assert_eq!(sizes(&mut text), [], "{bad:.20}");
            text.extend_from_slice(b"{\"Width\":1,\"Height\":2}");
            assert_eq!(sizes(&mut text), [TerminalSize { width: 1, height: 2 }], "{bad:.20}");
        }
    }
}
