//! A connection over an in-memory pipe, with a client played by hand.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    frame::{Decoder, Encoder, Frame},
    *,
};

async fn client() -> (tokio::io::DuplexStream, Session, Encoder) {
    let (client, server) = tokio::io::duplex(4096);
    (client, Session::new(server), Encoder::new().unwrap())
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_and_ends() {
    let (mut client, mut session, mut encoder) = client().await;
    let mut bytes = encoder.open(1, &[("streamtype", "stdin")], false).unwrap();
    bytes.extend(frame::data_head(1, 3, true));
    bytes.extend(b"abc");
    client.write_all(&bytes).await.unwrap();
    let mut stream = session.accept().await.unwrap();
    assert_eq!(stream.header("streamtype"), Some("stdin"));
    assert_eq!(stream.reader.next().await, Input::Data(Bytes::from_static(b"abc")));
    assert_eq!(stream.reader.next().await, Input::End);
    stream.writer.send(Bytes::from_static(b"reply")).await.unwrap();
    stream.writer.finish().await.unwrap();
    drop(stream);
    let mut got = Vec::new();
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::new();
    while got.last() != Some(&Frame::Data { stream: 1, bytes: Bytes::new(), fin: true }) {
        client.read_buf(&mut buffer).await.unwrap();
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            got.push(frame);
        }
    }
    assert_eq!(got[0], Frame::Reply { stream: 1, fin: false });
    assert_eq!(got[1], Frame::Data { stream: 1, bytes: Bytes::from_static(b"reply"), fin: false });
}

#[tokio::test]
async fn a_reset_ends_one_stream_only() {
    let (mut client, mut session, mut encoder) = client().await;
    for id in [1, 3] {
        client.write_all(&encoder.open(id, &[], false).unwrap()).await.unwrap();
    }
    let mut one = session.accept().await.unwrap();
    let mut two = session.accept().await.unwrap();
    client.write_all(&frame::reset(1, 5)).await.unwrap();
    assert_eq!(one.reader.next().await, Input::Reset);
    client.write_all(&frame::data_head(3, 1, false)).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(two.reader.next().await, Input::Data(Bytes::from_static(b"x")));
    drop(client);
    assert_eq!(two.reader.next().await, Input::Reset);
}

/// The next frame that is not ours to skip.
async fn read(client: &mut tokio::io::DuplexStream, decoder: &mut Decoder, buffer: &mut BytesMut) -> Frame {
    loop {
        if let Some(frame) = decoder.decode(buffer).unwrap() {
            return frame;
        }
        assert!(client.read_buf(buffer).await.unwrap() > 0, "the server closed");
    }
}

#[tokio::test]
async fn a_client_that_gives_windows_gets_no_more_than_they_allow() {
    let (mut client, mut session, mut encoder) = client().await;
    client.write_all(&frame::settings(10)).await.unwrap();
    client.write_all(&encoder.open(1, &[], false).unwrap()).await.unwrap();
    let stream = session.accept().await.unwrap();
    let sending = tokio::spawn(async move {
        stream.writer.send(Bytes::from(vec![b'x'; 25])).await.unwrap();
        stream
    });
    let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
    assert_eq!(read(&mut client, &mut decoder, &mut buffer).await, Frame::Reply { stream: 1, fin: false });
    for want in [10, 10, 5] {
        // A frame is given in the pieces it arrives in.
        let mut got = 0;
        while got < want {
            match read(&mut client, &mut decoder, &mut buffer).await {
                Frame::Data { stream: 1, bytes, fin: false } => got += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, want);
        client.write_all(&frame::window(1, 10)).await.unwrap();
    }
    drop(sending.await.unwrap());
    // A window beyond the protocol's limit costs the client that stream, not the connection.
    client.write_all(&encoder.open(3, &[], false).unwrap()).await.unwrap();
    let _stream = session.accept().await.unwrap();
    client.write_all(&frame::window(3, 0x7fff_ffff)).await.unwrap();
    client.write_all(&frame::ping(9)).await.unwrap();
    assert_eq!(read(&mut client, &mut decoder, &mut buffer).await, Frame::Reply { stream: 3, fin: false });
    assert_eq!(read(&mut client, &mut decoder, &mut buffer).await, Frame::Reset { stream: 3, status: 7 });
    assert_eq!(read(&mut client, &mut decoder, &mut buffer).await, Frame::Ping { id: 9 });
}

#[tokio::test]
async fn what_is_consumed_or_thrown_away_is_given_back() {
    let (mut client, mut session, mut encoder) = client().await;
    client.write_all(&encoder.open(1, &[], false).unwrap()).await.unwrap();
    let mut stream = session.accept().await.unwrap();
    let taking = tokio::spawn(async move {
        let mut got = 0;
        while got < 40_000 {
            let Input::Data(bytes) = stream.reader.next().await else { panic!("cut") };
            got += bytes.len();
        }
        // Asking for more says that this much was consumed.
        let next = tokio::time::timeout(Duration::from_millis(300), stream.reader.next()).await;
        assert!(next.is_err(), "{next:?}");
        stream
    });
    client.write_all(&frame::data_head(1, 40_000, false)).await.unwrap();
    client.write_all(&[7; 40_000]).await.unwrap();
    let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
    let mut given = (0, 0);
    while given.0 < 32 * 1024 || given.1 < 32 * 1024 {
        match read(&mut client, &mut decoder, &mut buffer).await {
            Frame::Window { stream: 0, more } => given.0 += more,
            Frame::Window { stream: 1, more } => given.1 += more,
            other => assert_eq!(other, Frame::Reply { stream: 1, fin: false }),
        }
    }
    drop(taking.await.unwrap());
    // Nobody takes these: the connection's window comes back all the same.
    client.write_all(&frame::data_head(1, 40_000, false)).await.unwrap();
    client.write_all(&[7; 40_000]).await.unwrap();
    loop {
        if let Frame::Window { stream: 0, more } = read(&mut client, &mut decoder, &mut buffer).await {
            assert!(more >= 32 * 1024, "{more}");
            break;
        }
    }
}

#[tokio::test]
async fn a_stream_nobody_reads_bounds_what_is_held() {
    let (mut client, mut session, mut encoder) = client().await;
    client.write_all(&encoder.open(1, &[], false).unwrap()).await.unwrap();
    let _stream = session.accept().await.unwrap();
    let mut sent = 0;
    let flood = async {
        loop {
            client.write_all(&frame::data_head(1, 60_000, false)).await.unwrap();
            client.write_all(&[7; 60_000]).await.unwrap();
            sent += 60_000;
        }
    };
    tokio::time::timeout(Duration::from_millis(500), flood).await.unwrap_err();
    assert!(sent <= connection::INPUT_BYTES + 200_000, "{sent}");
}

#[tokio::test]
async fn numbers_that_do_not_grow_are_refused_and_a_close_waits_for_the_client() {
    let (mut client, mut session, mut encoder) = client().await;
    let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
    for (id, accepted) in [(5, true), (5, false), (3, false), (8, false), (7, true)] {
        client.write_all(&encoder.open(id, &[], false).unwrap()).await.unwrap();
        let want =
            if accepted { Frame::Reply { stream: id, fin: false } } else { Frame::Reset { stream: id, status: 1 } };
        assert_eq!(read(&mut client, &mut decoder, &mut buffer).await, want);
        if accepted {
            drop(session.accept().await.unwrap());
        }
    }
    let closing = tokio::spawn(session.close(Duration::from_secs(60)));
    assert_eq!(read(&mut client, &mut decoder, &mut buffer).await, Frame::GoAway);
    assert!(!closing.is_finished());
    drop(client);
    closing.await.unwrap();
}
