//! RestorePod: a new sandbox and its containers, created as the request says, each with the memory and the changed files that the
//! archive has under its name. StartContainer lets them go on.
//! Decodes in the task of the RPC; sandbox and containers are the engine's, made as by RunPodSandbox and CreateContainer.
//! Owns the unpacked archive. Must never leave a sandbox of a request that failed, nor take a configuration from the archive.

use keelson_cri::v1;

use super::{
    Cri, container_checkpoint, container_create,
    rpc::{Call, about_sandbox},
    sandbox_spec,
    status::{Failure, invalid},
};

pub(super) async fn handle(cri: &Cri, call: Call<v1::RestorePodRequest>) -> Result<v1::RestorePodResponse, Failure> {
    let v1::RestorePodRequest { checkpoint_path, config, runtime_handler, options, container_configs } = call.message;
    if let Some(name) = options.keys().min() {
        return Err(invalid("options", format!("`{}` is none of this runtime", name.escape_debug())));
    }
    let path = container_checkpoint::place("checkpoint_path", checkpoint_path)?;
    let spec = sandbox_spec::decode(config, runtime_handler)?;
    let archive = cri.engine.open_pod_checkpoint(path).await?;
    let mut wanted = Vec::new();
    for (name, path) in &archive.containers {
        let named = |config: &&v1::ContainerConfig| config.metadata.as_ref().is_some_and(|it| it.name == *name);
        let mut configs = container_configs.iter().filter(named);
        let (Some(config), None) = (configs.next(), configs.next()) else {
            let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
            let reason = format!(
                "want one for container `{shown}` of the checkpoint: nothing but memory and files is taken from it"
            );
            return Err(invalid("container_configs", reason));
        };
        let mut config = config.clone();
        config.image.get_or_insert_default().image = path.to_string_lossy().into_owned();
        wanted.push((name.clone(), container_create::decode(cri, Some(config))?));
    }
    if wanted.len() != container_configs.len() {
        return Err(invalid("container_configs", "there are more than the checkpoint has containers"));
    }
    let sandbox = cri.engine.run_sandbox(spec).await?;
    about_sandbox(sandbox.as_str());
    let mut restored_containers = Vec::new();
    for (name, spec) in wanted {
        match cri.engine.create_container(&sandbox, spec).await {
            Ok(id) => restored_containers.push(v1::RestoredContainer { name, container_id: id.to_string() }),
            Err(error) => {
                if let Err(left) = cri.engine.remove_sandbox(&sandbox).await {
                    tracing::warn!(%sandbox, error = %left, "remove sandbox of a restore that failed");
                }
                return Err(error.into());
            }
        }
    }
    tracing::info!(containers = restored_containers.len(), "sandbox is restored");
    Ok(v1::RestorePodResponse { pod_sandbox_id: sandbox.to_string(), restored_containers })
}
