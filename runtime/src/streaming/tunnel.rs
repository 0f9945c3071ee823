//! Binary WebSocket messages as one byte stream: the connection that a tunnelled SPDY session runs on.
//! Pure polling, in the task of that session. Owns the WebSocket.
//! Must never put more than one write into a message's buffer: what the client does not take holds up the writer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Longest message sent, bytes.
const MESSAGE_MAX: usize = 64 * 1024 + 64;

/// See the module.
pub struct Tunnel<C> {
    socket: WebSocketStream<C>,
    /// What is left of the last message.
    input: Bytes,
}

impl<C> Tunnel<C> {
    /// A stream on this WebSocket.
    pub fn new(socket: WebSocketStream<C>) -> Self {
        Self { socket, input: Bytes::new() }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.input.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.input = bytes,
                Some(Ok(_)) => {}
                // Closed by the client, or gone.
                None | Some(Err(_)) => return Poll::Ready(Ok(())),
            }
        }
        let length = self.input.len().min(buf.remaining());
        buf.put_slice(self.input.get(..length).unwrap_or_default());
        self.input.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let mut message = BytesMut::new();
        for buf in bufs {
            let room = MESSAGE_MAX - message.len();
            message.extend_from_slice(buf.get(..room.min(buf.len())).unwrap_or_default());
        }
        let length = message.len();
        if length > 0 {
            Pin::new(&mut self.socket).start_send(Message::Binary(message.freeze())).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io::Error::other)
    }
}
