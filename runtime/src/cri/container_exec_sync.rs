//! ExecSync: runs a program in a running container to its end and returns what it wrote: probes and hooks.
//! Decodes in the task of the RPC; the container's shim does the work.
//! Owns nothing. Must never leave a program behind that nobody waits for: the caller's deadline bounds it too.

use std::time::Duration;

use keelson_cri::v1;

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};

pub(super) async fn handle(cri: &Cri, call: Call<v1::ExecSyncRequest>) -> Result<v1::ExecSyncResponse, Failure> {
    let v1::ExecSyncRequest { container_id, cmd, timeout } = call.message;
    about_container(&container_id);
    if cmd.first().is_none_or(String::is_empty) {
        return Err(invalid("cmd", "is empty: name a program to run"));
    }
    let seconds =
        u64::try_from(timeout).map_err(|_| invalid("timeout", format!("{timeout}: want seconds, 0 is none")))?;
    let asked = Some(Duration::from_secs(seconds)).filter(|timeout| !timeout.is_zero());
    let limit = asked.into_iter().chain(call.deadline).min();
    let container = id::container(&cri.engine, &container_id)?;
    let output = cri.engine.exec_sync(&container.id, cmd, limit).await?;
    Ok(v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}
