//! Asking the shims: who still runs, and how did the others end.
//! Runs on tokio, all shims at once, each question with a deadline.
//! Owns the new connections until the sandboxes' tasks take them. Must never take silence for life.

use std::sync::Arc;

use keelson_api::shim::Phase;

use crate::{
    container::{
        create::Watch,
        state::{Event, State},
        view::Exit,
    },
    dirs::ContainerDir,
    engine::shared::{Shared, blocking},
    shim_client::{ShimClient, record as exit_record},
    store::record::ContainerRecord,
};

/// A container as it was found.
pub(super) struct Found {
    pub(super) record: ContainerRecord,
    pub(super) shim: Option<Arc<ShimClient>>,
    pub(super) watch: Option<Watch>,
}

/// Finds out what became of a container while no daemon watched.
pub(super) async fn probe(shared: &Arc<Shared>, mut record: ContainerRecord) -> Found {
    if !record.state.alive() {
        return Found { record, shim: None, watch: None };
    }
    let dir = shared.state.container(&record.id);
    if let Some((shim, mut watch)) = connect(&dir, record.id.as_str()).await {
        let answer = tokio::select! {
            answer = shim.state() => Some(answer),
            () = &mut watch => None,
        };
        match answer {
            Some(Ok(Ok(state))) => {
                match Phase::try_from(state.phase) {
                    Ok(Phase::Running) => {
                        record.state = record.state.after(&Event::Started { started_at: state.started_at })
                    }
                    // The start was recorded, the shim never heard of it: it can be asked for again.
                    Ok(Phase::Created) => {
                        if let State::Starting { pid } = record.state {
                            record.state = State::Created { pid };
                        }
                    }
                    // It says how it ended in a moment, by its exit record and its end.
                    Ok(Phase::Stopped | Phase::Empty) | Err(_) => {}
                }
                save(shared, &record);
                return Found { record, shim: Some(shim), watch: Some(watch) };
            }
            Some(Ok(Err(exit))) => {
                record.state = record.state.after(&Event::Exited(Exit::of(&exit_record(&exit))));
                save(shared, &record);
                // Not its shim any more, but a child of nobody: only its socket is read to the end.
                return Found { record, shim: None, watch: Some(watch) };
            }
            Some(Err(error)) => tracing::warn!(container = %record.id, %error, "shim does not answer"),
            None => {}
        }
    }
    let path = dir.exit();
    let left = blocking(move || super::read_exit(&path)).await;
    record.state = match left {
        Some(left) => record.state.after(&Event::Exited(Exit::of(&left))),
        None => {
            tracing::warn!(container = %record.id, "its shim is gone without an exit record: killing what is left");
            record.state.after(&Event::Lost)
        }
    };
    save(shared, &record);
    Found { record, shim: None, watch: None }
}

/// A connection to the shim in this directory; none when nobody listens.
pub(super) async fn connect(dir: &ContainerDir, id: &str) -> Option<(Arc<ShimClient>, Watch)> {
    let stream = ShimClient::connect(dir).await.ok()?;
    let (client, read) = ShimClient::attach(id, stream);
    Some((client, Box::pin(read)))
}

/// Ends the shim in this directory and its container, if there is one.
pub(super) async fn end(dir: &ContainerDir, id: &str) {
    if let Some((client, watch)) = connect(dir, id).await {
        tokio::select! {
            result = client.delete() => {
                if let Err(error) = result {
                    tracing::warn!(id, %error, "end shim of a half-made container");
                }
            }
            () = watch => {}
        }
    }
}

fn save(shared: &Shared, record: &ContainerRecord) {
    if let Err(error) = shared.store.put_container(record) {
        tracing::warn!(container = %record.id, %error, "record container");
    }
}
