//! PortForward: prepares a session with the ports of a ready sandbox and answers the URL where its client finds it.
//! Answers from memory in the task of the RPC; connections are made when the client asks for them.
//! Owns nothing. Must refuse what could not work now: the client that comes later is told less well.

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_sandbox},
    status::{Failure, invalid},
};
use crate::{sandbox::SandboxPhase, streaming::Ask};

pub(super) async fn handle(cri: &Cri, call: Call<v1::PortForwardRequest>) -> Result<v1::PortForwardResponse, Failure> {
    let v1::PortForwardRequest { pod_sandbox_id, port } = call.message;
    about_sandbox(&pod_sandbox_id);
    let ports = port.into_iter().map(|port| match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(invalid("port", format!("{port}: want 1 to 65535"))),
    });
    let ports = ports.collect::<Result<Vec<u16>, Failure>>()?;
    let sandbox = id::sandbox(&cri.engine, &pod_sandbox_id)?;
    if sandbox.phase != SandboxPhase::Ready {
        return Err(Failure::NotReady { act: "port-forward to", sandbox: sandbox.id.clone() });
    }
    let url = cri.streaming.url(Ask::PortForward { sandbox: sandbox.id.clone(), ports })?;
    Ok(v1::PortForwardResponse { url })
}
