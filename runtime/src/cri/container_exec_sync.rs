//! ExecSync: runs a program in a running container to its end and returns what it wrote: probes and hooks.
//! Decodes in the task of the RPC; the container's shim does the work.
//! Owns nothing. Must never leave a program behind that nobody waits for: the caller's deadline bounds it too.

use std::time::Duration;

use keelson_cri::{MAX_MESSAGE_BYTES, v1};

use super::{
    Cri, id,
    rpc::{Call, about_container},
    status::{Failure, invalid},
};

/// What a message needs beside the output.
const OVERHEAD: usize = 1024;

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
    let mut output = cri.engine.exec_sync(&container.id, cmd, limit).await?;
    fit(&mut output.stdout, &mut output.stderr, MAX_MESSAGE_BYTES - OVERHEAD);
    Ok(v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}

/// Cuts both so that together they fit in a message; neither takes more than half from the other.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>, budget: usize) {
    let half = budget / 2;
    let (out, err) = (stdout.len(), stderr.len());
    if out + err > budget {
        stdout.truncate(half.max(budget.saturating_sub(err)));
        stderr.truncate((budget - half).max(budget.saturating_sub(out)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_fairly() {
        for (out, err, want) in
            [(3, 4, (3, 4)), (10, 0, (10, 0)), (20, 0, (10, 0)), (2, 20, (2, 8)), (20, 20, (5, 5)), (8, 3, (7, 3))]
        {
            let (mut stdout, mut stderr) = (vec![b'o'; out], vec![b'e'; err]);
            fit(&mut stdout, &mut stderr, 10);
            assert_eq!((stdout.len(), stderr.len()), want, "{out} {err}");
        }
    }
}
