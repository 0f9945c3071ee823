//! Attach: prepares a session with the first process of a running container and answers the URL where its client finds it.
//! Answers from memory in the task of the RPC; the container is joined when the client has come.
//! Owns nothing. Must refuse what could not work now: the client that comes later is told less well.

use keelson_cri::v1;

use super::{
    Cri, container_exec, id,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};
use crate::streaming::{Ask, node::Streams};

pub(super) async fn handle(cri: &Cri, call: Call<v1::AttachRequest>) -> Result<v1::AttachResponse, Failure> {
    let v1::AttachRequest { container_id, stdin, tty, stdout, stderr } = call.message;
    about_container(&container_id);
    let streams = container_exec::streams(Streams { terminal: tty, stdin, stdout, stderr })?;
    let container = id::container(&cri.engine, &container_id)?;
    cri.engine.check_running(&container.id, "attach to")?;
    if tty != container.spec.terminal {
        let has = if container.spec.terminal { "has a terminal: ask with tty" } else { "has no terminal: ask without" };
        return Err(invalid("tty", format!("the container {has}")));
    }
    let url = cri.streaming.url(Ask::Attach { container: container.id.clone(), streams })?;
    Ok(v1::AttachResponse { url })
}
