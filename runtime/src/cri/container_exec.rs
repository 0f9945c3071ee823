//! Exec: prepares a session with a program in a running container and answers the URL where its client finds it.
//! Answers from memory in the task of the RPC; the program starts when the client has come.
//! Owns nothing. Must refuse what could not work now: the client that comes later is told less well.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};
use crate::streaming::{Ask, node::Streams};

pub(super) async fn handle(cri: &Cri, call: Call<v1::ExecRequest>) -> Result<v1::ExecResponse, Failure> {
    let v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = call.message;
    about_container(&container_id);
    if cmd.first().is_none_or(String::is_empty) {
        return Err(invalid("cmd", "is empty: name a program to run"));
    }
    if cmd.iter().any(|word| word.contains('\0')) {
        return Err(invalid("cmd", "has a NUL"));
    }
    let streams = streams(Streams { terminal: tty, stdin, stdout, stderr })?;
    let container = id::container(&cri.engine, &container_id)?;
    cri.engine.check_running(&container.id, "exec in")?;
    let url = cri.streaming.url(Ask::Exec { container: container.id.clone(), args: cmd, streams })?;
    Ok(v1::ExecResponse { url })
}

/// The rules of the protocol for the streams of exec and attach.
pub(super) fn streams(streams: Streams) -> Result<Streams, Failure> {
    if streams.terminal && streams.stderr {
        return Err(invalid("stderr", "a terminal has no error output of its own: with tty ask for stdout alone"));
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(invalid("stdin, stdout, stderr", "none is asked for: want at least one"));
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_cannot_be_are_refused() {
        for (terminal, stdin, stdout, stderr, good) in [
            (true, true, true, false, true),
            (false, false, false, true, true),
            (true, true, true, true, false),
            (true, false, false, false, false),
            (false, false, false, false, false),
        ] {
            let asked = Streams { terminal, stdin, stdout, stderr };
            assert_eq!(streams(asked).is_ok(), good, "{asked:?}");
        }
    }
}
