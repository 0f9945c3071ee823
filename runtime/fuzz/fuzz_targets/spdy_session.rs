//! Any bytes from the client of a SPDY session: no panic, and the session ends when the client is gone.
#![no_main]

use std::time::Duration;

use keelson_runtime::streaming::spdy::{Input, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (mut from, mut to) = tokio::io::split(client);
        let mut session = Session::new(server);
        let served = async {
            while let Some(mut stream) = session.accept().await {
                while let Input::Data(bytes) = stream.reader.next().await {
                    if stream.writer.send(bytes).await.is_err() {
                        break;
                    }
                }
                let _ = stream.writer.finish().await;
            }
        };
        let said = async {
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
            let mut answers = Vec::new();
            let _ = from.read_to_end(&mut answers).await;
        };
        let both = async { tokio::join!(served, said) };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("the session ends with its client");
    });
});
