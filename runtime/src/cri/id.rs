//! From the text a caller calls a sandbox or container by, to the thing: a whole id, or the beginning of just one.
//! Answers from the engine's memory, in the task of the RPC. Owns nothing.
//! Must never take a beginning that fits several for an unknown one: stopping "nothing" would then succeed.

use std::sync::Arc;

use keelson_api::{ContainerId, SandboxId};

use super::status::{Failure, invalid};
use crate::{
    container::{ContainerError, ContainerView},
    engine::Engine,
    sandbox::{SandboxError, SandboxView},
};

const SANDBOX: &str = "pod_sandbox_id";
const CONTAINER: &str = "container_id";

/// The sandbox's id, `None` when there is no such sandbox: for verbs that are done when the thing is gone.
pub(super) fn sandbox_if_known(engine: &Engine, text: &str) -> Result<Option<SandboxId>, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(Some(id));
    }
    match engine.find_sandbox(not_empty(SANDBOX, text)?) {
        Some(view) => Ok(Some(view.id.clone())),
        None if engine.sandboxes().iter().any(|view| view.id.as_str().starts_with(text)) => {
            Err(ambiguous(SANDBOX, text))
        }
        None => Ok(None),
    }
}

/// The sandbox as it is now.
pub(super) fn sandbox(engine: &Engine, text: &str) -> Result<Arc<SandboxView>, Failure> {
    engine.find_sandbox(not_empty(SANDBOX, text)?).ok_or_else(|| SandboxError::NotFound { id: cut(text) }.into())
}

/// The container's id, `None` when there is no such container.
pub(super) fn container_if_known(engine: &Engine, text: &str) -> Result<Option<ContainerId>, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(Some(id));
    }
    match engine.find_container(not_empty(CONTAINER, text)?) {
        Some(view) => Ok(Some(view.id.clone())),
        None if engine.containers().iter().any(|view| view.id.as_str().starts_with(text)) => {
            Err(ambiguous(CONTAINER, text))
        }
        None => Ok(None),
    }
}

/// The container as it is now.
pub(super) fn container(engine: &Engine, text: &str) -> Result<Arc<ContainerView>, Failure> {
    engine.find_container(not_empty(CONTAINER, text)?).ok_or_else(|| ContainerError::NotFound { id: cut(text) }.into())
}

fn not_empty<'a>(field: &str, text: &'a str) -> Result<&'a str, Failure> {
    if text.is_empty() { Err(invalid(field, "is empty")) } else { Ok(text) }
}

fn ambiguous(field: &str, text: &str) -> Failure {
    invalid(field, format!("`{}` is the beginning of several ids: give more of it", cut(text)))
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
