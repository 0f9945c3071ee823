//! The channels of one exec or attach session, whatever transport carries them: SPDY streams or WebSocket messages.
//! Plain values used by session tasks. A reader ends when the client closes its channel or goes away.
//! Must keep the two apart: a closed channel is an end of input, a lost connection ends the session.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::spdy::{Closed, Input, ResetStatus, StreamReader, StreamWriter};

/// What a client sends on one channel.
pub enum Reader {
    /// A SPDY stream.
    Spdy(StreamReader),
    /// Messages of one channel number of a WebSocket.
    WebSocket(mpsc::Receiver<Input>),
}

impl Reader {
    /// The next input; [`Input::Reset`] for ever once the client has gone.
    pub async fn next(&mut self) -> Input {
        match self {
            Reader::Spdy(reader) => reader.next().await,
            Reader::WebSocket(messages) => messages.recv().await.unwrap_or(Input::Reset),
        }
    }
}

/// Where bytes for one channel of the client go.
pub enum Writer {
    /// A SPDY stream.
    Spdy(StreamWriter),
    /// Messages of one channel number of a WebSocket.
    WebSocket {
        /// The channel number, the first byte of each message.
        channel: u8,
        /// The connection's writer task.
        messages: mpsc::Sender<(u8, Bytes)>,
    },
}

impl Writer {
    /// Sends bytes; waits while the connection is slow.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn send(&self, bytes: Bytes) -> Result<(), Closed> {
        match self {
            Writer::Spdy(writer) => writer.send(bytes).await,
            Writer::WebSocket { channel, messages } => messages.send((*channel, bytes)).await.map_err(|_| Closed),
        }
    }

    /// Says that nothing more comes on this channel; a WebSocket has no word for it and says it by closing.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn finish(&self) -> Result<(), Closed> {
        match self {
            Writer::Spdy(writer) => writer.finish().await,
            Writer::WebSocket { .. } => Ok(()),
        }
    }
}

impl Writer {
    /// Ends a stream that nobody asked for, or a second of its kind.
    pub(super) async fn refuse(&self) {
        if let Writer::Spdy(writer) = self {
            let _ = writer.reset(ResetStatus::Refused).await;
        }
    }
}

/// How the end of the process is told on the error channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusForm {
    /// Free text, nothing on success (protocol versions before v4).
    Text,
    /// A `metav1.Status` as JSON (v4 and later).
    Json,
}

/// The channels of a session that the client asked for and has opened.
pub struct Channels {
    /// Bytes for the process.
    pub stdin: Option<Reader>,
    /// Terminal sizes as JSON `{"Width":..,"Height":..}`.
    pub resize: Option<Reader>,
    /// The process's output.
    pub stdout: Option<Writer>,
    /// The process's error output; absent with a terminal.
    pub stderr: Option<Writer>,
    /// How it ended.
    pub status: Writer,
    /// In which form.
    pub form: StatusForm,
}

/// A terminal's size as clients send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl StatusForm {
    /// The text that tells an exit code; empty: send nothing.
    #[must_use]
    pub fn exit(self, code: i32) -> String {
        match (self, code) {
            (StatusForm::Text, 0) => String::new(),
            (StatusForm::Text, code) => format!("command terminated with non-zero exit code: {code}"),
            (StatusForm::Json, 0) => r#"{"metadata":{},"status":"Success"}"#.into(),
            (StatusForm::Json, code) => serde_json::json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            })
            .to_string(),
        }
    }

    /// The text that tells why there is no exit code.
    #[must_use]
    pub fn failure(self, why: &str) -> String {
        match self {
            StatusForm::Text => why.to_owned(),
            StatusForm::Json => serde_json::json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500, "message": why,
            })
            .to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_in_both_forms() {
        assert_eq!(StatusForm::Text.exit(0), "");
        assert!(StatusForm::Text.exit(3).ends_with('3'));
        let status: serde_json::Value = serde_json::from_str(&StatusForm::Json.exit(3)).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        assert!(StatusForm::Json.exit(0).contains("Success"));
    }
}
