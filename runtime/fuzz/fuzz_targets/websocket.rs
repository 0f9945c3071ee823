//! Any bytes from the client of a WebSocket, as channels in each form and as a tunnelled SPDY session: no panic, and what was
//! served ends with its client. The first byte says which. How to run it: `fuzz/README.md`.
#![no_main]

use std::time::Duration;

use keelson_runtime::streaming::{
    spdy::{Input, Session},
    tunnel::Tunnel,
    websocket::{Connection, Form, INPUTS, accept},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
};

/// Says back on channel 1 what comes on channel 0, until the client ends it.
async fn channels(connection: DuplexStream, form: Form) {
    let (sender, mut input) = mpsc::channel(INPUTS);
    let (mut connection, messages) = Connection::serve(accept(connection).await, form, vec![(0, sender)]);
    let echo = async {
        while let Some(Input::Data(bytes)) = input.recv().await {
            if messages.send((1, bytes)).await.is_err() {
                break;
            }
        }
        drop(messages);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = echo => {}
        () = connection.gone() => {}
    }
}

/// Takes every stream to its end and says it back.
async fn tunnel(connection: DuplexStream) {
    let mut session = Session::new(Tunnel::new(accept(connection).await));
    while let Some(mut stream) = session.accept().await {
        while let Input::Data(bytes) = stream.reader.next().await {
            if stream.writer.send(bytes).await.is_err() {
                break;
            }
        }
        let _ = stream.writer.finish().await;
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (mut from, mut to) = tokio::io::split(client);
        let served = async {
            match kind % 4 {
                3 => tunnel(server).await,
                form => channels(server, Form { base64: form == 1, close: form == 2 }).await,
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
