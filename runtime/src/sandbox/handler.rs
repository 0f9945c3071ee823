//! Runtime handlers: which OCI runtime makes the containers of a sandbox. No name, and `native`, are keelson's own launcher.
//! Pure functions over the configuration, in any task. Owns nothing.
//! Must never take one handler for another: a name that is not configured is refused, and the known ones are named.

use std::collections::BTreeMap;

use super::{
    SandboxError,
    check::{cut, invalid},
    spec::{NetworkMode, SandboxSpec},
};
use crate::engine::HandlerConfig;

/// The built-in launcher's name.
pub(crate) const NATIVE: &str = "native";

/// The configured handlers by name.
pub(crate) type Handlers = BTreeMap<String, HandlerConfig>;

/// The runtime of this name; none for keelson's own launcher, and for a name that is configured no more.
pub(crate) fn find<'a>(handlers: &'a Handlers, name: &str) -> Option<&'a HandlerConfig> {
    handlers.get(name)
}

/// Whether keelson's own launcher is meant.
pub(crate) fn is_native(name: &str) -> bool {
    matches!(name, "" | NATIVE)
}

/// The runtime of this sandbox, when it is one that puts the whole of it into a sandbox of its own.
pub(crate) fn sandboxed<'a>(handlers: &'a Handlers, spec: &SandboxSpec) -> Option<&'a HandlerConfig> {
    find(handlers, &spec.handler).filter(|handler| handler.sandboxed)
}

/// Refuses an unknown handler, and what another runtime is not asked to do.
pub(crate) fn check(handlers: &Handlers, spec: &SandboxSpec) -> Result<(), SandboxError> {
    if is_native(&spec.handler) {
        return Ok(());
    }
    let Some(config) = find(handlers, &spec.handler) else {
        let known: Vec<String> =
            [NATIVE].into_iter().chain(handlers.keys().map(String::as_str)).map(|name| format!("`{name}`")).collect();
        let name = cut(&spec.handler);
        let reason = format!(
            "`{name}` is not a runtime handler of this node, which has {}: correct the RuntimeClass, or add \
             `[runtimes.{name}]` to the configuration",
            known.join(", ")
        );
        return Err(invalid("runtime_handler", reason));
    };
    if spec.user_namespace.is_some() && spec.namespaces.network == NetworkMode::Host {
        let reason =
            format!("with the host's network they are made by the handler `{NATIVE}` alone, not by `{}`", spec.handler);
        return Err(SandboxError::Unsupported { field: "namespace_options.userns_options".into(), reason });
    }
    if spec.user_namespace.is_some() && config.sandboxed {
        let reason = format!(
            "the handler `{}` puts the pod into a sandbox of its own, which has no such namespace",
            spec.handler
        );
        return Err(SandboxError::Unsupported { field: "namespace_options.userns_options".into(), reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_handler_is_refused_with_the_known_ones() {
        let handlers: Handlers = ["runc", "crun"]
            .map(|name| {
                (name.to_owned(), HandlerConfig { program: "/x".into(), options: Vec::new(), sandboxed: false })
            })
            .into();
        let of = |handler: &str| SandboxSpec { handler: handler.into(), ..SandboxSpec::default() };
        for known in ["", "native", "runc", "crun"] {
            assert!(check(&handlers, &of(known)).is_ok(), "{known}");
        }
        let refused = check(&handlers, &of("kata")).unwrap_err().to_string();
        for word in ["`kata`", "`native`", "`crun`", "`runc`", "[runtimes.kata]"] {
            assert!(refused.contains(word), "{refused}");
        }
    }
}
