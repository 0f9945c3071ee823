//! The pod of `keelson try`: pulled, run, looked at, executed in and removed, all over the CRI socket.
//! Async, in the tool's runtime. Owns nothing: the daemon has the pod, and `remove_all` takes whatever it has.
//! Must never use anything that kubelet or crictl could not use.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use keelson_cri::v1;

use super::{
    super::{CliError, client::Client, out},
    Step, broken, payload, short,
};

const LOG_LINES: usize = 12;
/// How long the pod may take to say something.
const LOG_WAIT: Duration = Duration::from_secs(3);

pub(super) async fn pull(client: &mut Client, image: &str) -> Result<(), CliError> {
    let step = Step::begin(format_args!("Pull {image}"));
    let spec = Some(v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() });
    let request = v1::PullImageRequest { image: spec.clone(), ..v1::PullImageRequest::default() };
    client.image.pull_image(request).await.map_err(CliError::rpc("PullImage"))?;
    let status = client.image.image_status(v1::ImageStatusRequest { image: spec, verbose: false });
    let found = status.await.map_err(CliError::rpc("ImageStatus"))?.into_inner().image.unwrap_or_default();
    step.done(format_args!("{}, {}", short(&found.id), out::bytes(found.size)));
    Ok(())
}

/// Runs it and shows it. `made` gets the ids of what was made.
pub(super) async fn run(client: &mut Client, image: &str, logs: &Path, made: &mut Vec<String>) -> Result<(), CliError> {
    let sandbox_config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "first".to_owned(),
            namespace: "try".to_owned(),
            uid: format!("try-{}", std::process::id()),
            attempt: 0,
        }),
        hostname: "first".to_owned(),
        log_directory: logs.display().to_string(),
        ..v1::PodSandboxConfig::default()
    };
    let step = Step::begin("Run a pod: RunPodSandbox, CreateContainer, StartContainer");
    let request = v1::RunPodSandboxRequest { config: Some(sandbox_config.clone()), runtime_handler: String::new() };
    let sandbox = client.runtime.run_pod_sandbox(request).await.map_err(CliError::rpc("RunPodSandbox"))?;
    let sandbox = sandbox.into_inner().pod_sandbox_id;
    made.push(sandbox.clone());
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container_config(image)),
        sandbox_config: Some(sandbox_config),
    };
    let container = client.runtime.create_container(request).await.map_err(CliError::rpc("CreateContainer"))?;
    let container = container.into_inner().container_id;
    made.push(container.clone());
    let request = v1::StartContainerRequest { container_id: container.clone() };
    client.runtime.start_container(request).await.map_err(CliError::rpc("StartContainer"))?;
    step.done(format_args!("pod {}, container {}", short(&sandbox), short(&container)));

    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status = client.runtime.pod_sandbox_status(request).await.map_err(CliError::rpc("PodSandboxStatus"))?;
    let network = status.into_inner().status.unwrap_or_default().network.unwrap_or_default();
    let mut addresses = vec![network.ip];
    addresses.extend(network.additional_ips.into_iter().map(|address| address.ip));
    addresses.retain(|address| !address.is_empty());
    if addresses.is_empty() {
        return Err(broken("look at the pod", "it has no address"));
    }
    out::line(format_args!("\n==> Its address\n    {}", addresses.join(", ")));
    show_log(client, &container).await?;
    exec(client, &container, image).await?;
    usage(client, &container).await
}

fn container_config(image: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() }),
        log_path: "main.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig {
            resources: None,
            security_context: Some(v1::LinuxContainerSecurityContext {
                seccomp: Some(v1::SecurityProfile::default()),
                no_new_privs: true,
                ..v1::LinuxContainerSecurityContext::default()
            }),
        }),
        ..v1::ContainerConfig::default()
    }
}

async fn status(client: &mut Client, container: &str) -> Result<v1::ContainerStatus, CliError> {
    let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
    let status = client.runtime.container_status(request).await.map_err(CliError::rpc("ContainerStatus"))?;
    Ok(status.into_inner().status.unwrap_or_default())
}

/// Waits for the first lines of the log (or the end of the container) and prints them.
async fn show_log(client: &mut Client, container: &str) -> Result<(), CliError> {
    let deadline = Instant::now() + LOG_WAIT;
    let (text, path) = loop {
        let status = status(client, container).await?;
        let text = std::fs::read_to_string(&status.log_path).unwrap_or_default();
        let ended = status.state() != v1::ContainerState::ContainerRunning;
        if !text.is_empty() || ended || Instant::now() > deadline {
            break (text, status.log_path);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    out::line(format_args!("\n==> Its log: {path}"));
    for line in text.lines().take(LOG_LINES) {
        out::line(format_args!("    {line}"));
    }
    match text.lines().count() {
        0 => out::line("    (nothing so far)"),
        count if count > LOG_LINES => out::line(format_args!("    .. and {} lines more", count - LOG_LINES)),
        _ => {}
    }
    Ok(())
}

async fn exec(client: &mut Client, container: &str, image: &str) -> Result<(), CliError> {
    let status = status(client, container).await?;
    if status.state() != v1::ContainerState::ContainerRunning {
        let end = format_args!("it ended already: code {}, {}", status.exit_code, status.reason).to_string();
        out::line(format_args!(
            "\n==> Execute a program in it\n    {end}; an image whose program goes on can be executed in"
        ));
        return Ok(());
    }
    let words: &[&str] = if image == payload::NAME {
        &[payload::PROGRAM, "hello", "id"]
    } else {
        &["/bin/sh", "-c", "id; hostname; cat /etc/os-release | head -2"]
    };
    let step = Step::begin(format_args!("Execute a program in it: {}", words.join(" ")));
    let cmd = words.iter().map(|&word| word.to_owned()).collect();
    let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 10 };
    let answer = match client.runtime.exec_sync(request).await {
        Ok(answer) => answer.into_inner(),
        // An image without a shell is a good image.
        Err(refused) if image != payload::NAME => {
            step.done(refused.message());
            return Ok(());
        }
        Err(status) => return Err(CliError::rpc("ExecSync")(status)),
    };
    for line in String::from_utf8_lossy(&answer.stdout).lines().chain(String::from_utf8_lossy(&answer.stderr).lines()) {
        out::line(format_args!("    {line}"));
    }
    step.done(format_args!("exit code {}", answer.exit_code));
    Ok(())
}

async fn usage(client: &mut Client, container: &str) -> Result<(), CliError> {
    let request = v1::ContainerStatsRequest { container_id: container.to_owned() };
    let Ok(answer) = client.runtime.container_stats(request).await else {
        // It may have ended by itself.
        return Ok(());
    };
    let stats = answer.into_inner().stats.unwrap_or_default();
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value);
    let disk = stats.writable_layer.and_then(|layer| layer.used_bytes).map_or(0, |bytes| bytes.value);
    out::line(format_args!(
        "\n==> What it uses\n    {} of memory, {} written to disk",
        out::bytes(memory),
        out::bytes(disk)
    ));
    Ok(())
}

/// Stops and removes every container and sandbox this daemon has: all of them are ours.
pub(super) async fn remove_all(client: &mut Client) -> Result<(), CliError> {
    let step = Step::begin("Stop and remove it: StopContainer, StopPodSandbox, RemovePodSandbox");
    let containers = client.runtime.list_containers(v1::ListContainersRequest::default());
    for container in containers.await.map_err(CliError::rpc("ListContainers"))?.into_inner().containers {
        let request = v1::StopContainerRequest { container_id: container.id, timeout: 5 };
        client.runtime.stop_container(request).await.map_err(CliError::rpc("StopContainer"))?;
    }
    let sandboxes = client.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default());
    let sandboxes = sandboxes.await.map_err(CliError::rpc("ListPodSandbox"))?.into_inner().items;
    for sandbox in &sandboxes {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        client.runtime.stop_pod_sandbox(request).await.map_err(CliError::rpc("StopPodSandbox"))?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        client.runtime.remove_pod_sandbox(request).await.map_err(CliError::rpc("RemovePodSandbox"))?;
    }
    let images = client.image.list_images(v1::ListImagesRequest::default());
    for image in images.await.map_err(CliError::rpc("ListImages"))?.into_inner().images {
        let image = Some(v1::ImageSpec { image: image.id, ..v1::ImageSpec::default() });
        client.image.remove_image(v1::RemoveImageRequest { image }).await.map_err(CliError::rpc("RemoveImage"))?;
    }
    step.done("gone, and its image too");
    Ok(())
}
