//! A WebSocket connection as numbered channels: the first byte of each message says which one it belongs to.
//! One tokio task per connection, owned by [`Connection`], reads and writes it through bounded queues. Owns the connection.
//! Must bound messages and queues, and notice a client that is gone while its input waits: a ping finds out.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::spdy::Input;

/// Longest message taken, bytes. Clients copy in pieces of 32 KiB.
const MESSAGE_MAX: usize = 1 << 20;
/// Messages that may wait for one channel.
pub const INPUTS: usize = 4;
/// Messages that may wait for the connection.
const OUTPUTS: usize = 8;
/// Between two pings.
const PING: Duration = Duration::from_secs(10);
/// The channel on which version 5 closes another.
const CLOSE: u8 = 255;

/// How messages look.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Text: the channel as a digit, the rest in base64.
    pub base64: bool,
    /// A message on channel 255 ends the channel it names.
    pub close: bool,
}

/// The server's end of an upgraded connection.
pub async fn accept<C: AsyncRead + AsyncWrite + Unpin>(connection: C) -> WebSocketStream<C> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MESSAGE_MAX);
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// The task of a connection. Dropping it closes the connection at once.
pub struct Connection {
    task: JoinSet<()>,
}

/// Where messages for the client go: channel and bytes.
pub type Messages = mpsc::Sender<(u8, Bytes)>;

impl Connection {
    /// Serves channels on a connection. When the last [`Messages`] is dropped a close follows what was sent.
    pub fn serve<C>(socket: WebSocketStream<C>, form: Form, inputs: Vec<(u8, mpsc::Sender<Input>)>) -> (Self, Messages)
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (messages, outputs) = mpsc::channel(OUTPUTS);
        let (sink, stream) = socket.split();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let reading = read(stream, form, inputs);
            tokio::pin!(reading);
            let said = tokio::select! {
                () = &mut reading => false,
                said = write(sink, form, outputs) => said,
            };
            if said {
                // The client closes when it has read everything.
                reading.await;
            }
        });
        (Self { task }, messages)
    }

    /// Waits until the connection is over. Cancel-safe.
    pub async fn gone(&mut self) {
        while self.task.join_next().await.is_some() {}
    }

    /// Leaves it to the client to close after the last message, but no longer than `patience`.
    pub async fn close(mut self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.gone()).await;
    }
}

/// Hands each message to its channel, until the client closes or is gone.
async fn read<C: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<C>>,
    form: Form,
    mut inputs: Vec<(u8, mpsc::Sender<Input>)>,
) {
    while let Some(message) = stream.next().await {
        let bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => Bytes::from(text),
            // Answered, and told by the end of the stream, by the library.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => continue,
            Err(error) => {
                tracing::debug!(%error, "end websocket");
                return;
            }
        };
        let Some((channel, bytes)) = decode(form, bytes) else { continue };
        let (channel, input) = match (channel, bytes.first()) {
            (CLOSE, Some(named)) if form.close => (*named, Input::End),
            // Some clients greet every channel with an empty message.
            (_, None) => continue,
            (channel, Some(_)) => (channel, Input::Data(bytes)),
        };
        let ends = input == Input::End;
        if let Some((_, sender)) = inputs.iter().find(|(number, _)| *number == channel) {
            // Who does not read any more discards it.
            let _ = sender.send(input).await;
        }
        if ends {
            inputs.retain(|(number, _)| *number != channel);
        }
    }
}

fn decode(form: Form, mut bytes: Bytes) -> Option<(u8, Bytes)> {
    let channel = *bytes.first()?;
    let _ = bytes.split_to(1);
    if !form.base64 {
        return Some((channel, bytes));
    }
    Some((channel.checked_sub(b'0')?, STANDARD.decode(&bytes).ok()?.into()))
}

fn encode(form: Form, channel: u8, bytes: &[u8]) -> Message {
    if form.base64 {
        let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
        text.push(char::from(b'0'.saturating_add(channel)));
        STANDARD.encode_string(bytes, &mut text);
        return Message::text(text);
    }
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// Writes what the channels send, then a close; false when the connection broke.
async fn write<C: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<C>, Message>,
    form: Form,
    mut outputs: mpsc::Receiver<(u8, Bytes)>,
) -> bool {
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            output = outputs.recv() => match output {
                Some((channel, bytes)) => encode(form, channel, &bytes),
                None => break,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return false;
        }
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(close))).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lab(
        form: Form,
    ) -> (WebSocketStream<tokio::io::DuplexStream>, Connection, Messages, mpsc::Receiver<Input>) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let (sender, input) = mpsc::channel(INPUTS);
        let (connection, messages) = Connection::serve(accept(server).await, form, vec![(0, sender)]);
        (client, connection, messages, input)
    }

    #[tokio::test]
    async fn channels_carry_bytes_and_version_five_closes_one() {
        let (mut client, connection, messages, mut input) = lab(Form { base64: false, close: true }).await;
        client.send(Message::Binary(Bytes::from_static(b"\0in"))).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(b"\x09nobody's"))).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.unwrap();
        assert_eq!(input.recv().await, Some(Input::Data(Bytes::from_static(b"in"))));
        assert_eq!(input.recv().await, Some(Input::End));
        assert_eq!(input.recv().await, None);
        messages.send((1, Bytes::from_static(b"out"))).await.unwrap();
        drop(messages);
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"\x01out")));
        assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
        assert!(client.next().await.is_none_or(|end| end.is_err()));
        drop(client);
        connection.close(Duration::from_secs(60)).await;
    }

    #[tokio::test]
    async fn base64_is_text_both_ways() {
        let (mut client, _connection, messages, mut input) = lab(Form { base64: true, close: false }).await;
        client.send(Message::text("0aGk=")).await.unwrap();
        client.send(Message::text("0not base64!")).await.unwrap();
        client.send(Message::text("0eW8=")).await.unwrap();
        assert_eq!(input.recv().await, Some(Input::Data(Bytes::from_static(b"hi"))));
        assert_eq!(input.recv().await, Some(Input::Data(Bytes::from_static(b"yo"))));
        messages.send((2, Bytes::from_static(b"err"))).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text("2ZXJy"));
    }

    #[tokio::test]
    async fn a_client_that_goes_and_one_that_says_too_much_end_it() {
        let (client, mut connection, _messages, mut input) = lab(Form { base64: false, close: false }).await;
        drop(client);
        assert_eq!(input.recv().await, None);
        connection.gone().await;
        let (mut client, mut connection, _messages, _input) = lab(Form { base64: false, close: false }).await;
        let flood = async {
            let _ = client.send(Message::Binary(vec![0; MESSAGE_MAX + 1].into())).await;
            while client.next().await.is_some_and(|message| message.is_ok()) {}
        };
        tokio::join!(flood, connection.gone());
    }
}
