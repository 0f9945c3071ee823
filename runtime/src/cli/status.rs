//! `keelson status`: what a running daemon says of itself, over its CRI socket.
//! Async on a small runtime of its own; asks and prints. Owns nothing.
//! Must never guess: when no daemon answers, that is the answer.

use std::{collections::BTreeMap, process::ExitCode};

use keelson_cri::v1;
use serde_json::{Value, json};

use super::{
    CliError, Place,
    client::{self, Client},
    out,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Everything asked.
struct Answer {
    version: v1::VersionResponse,
    conditions: Vec<v1::RuntimeCondition>,
    config: Value,
    sandboxes: BTreeMap<&'static str, usize>,
    containers: BTreeMap<&'static str, usize>,
    images: usize,
    image_bytes: u64,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let socket = args.place.load()?.socket;
    let answer = client::runtime()?.block_on(async { ask(&mut Client::connect(&socket).await?).await })?;
    let ready = answer.conditions.iter().all(|condition| condition.status);
    if args.json {
        out::line(json(&answer));
    } else {
        let version = &answer.version;
        out::line(format_args!(
            "{} {} serves CRI {} on unix://{}",
            version.runtime_name,
            version.runtime_version,
            version.runtime_api_version,
            socket.display()
        ));
        print(&answer);
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(client: &mut Client) -> Result<Answer, CliError> {
    let version = client.runtime.version(v1::VersionRequest::default()).await.map_err(CliError::rpc("Version"))?;
    let status = client.runtime.status(v1::StatusRequest { verbose: true }).await.map_err(CliError::rpc("Status"))?;
    let sandboxes = client.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default());
    let sandboxes = sandboxes.await.map_err(CliError::rpc("ListPodSandbox"))?.into_inner().items;
    let containers = client.runtime.list_containers(v1::ListContainersRequest::default());
    let containers = containers.await.map_err(CliError::rpc("ListContainers"))?.into_inner().containers;
    let images = client.image.list_images(v1::ListImagesRequest::default());
    let images = images.await.map_err(CliError::rpc("ListImages"))?.into_inner().images;
    let disk = client.image.image_fs_info(v1::ImageFsInfoRequest {}).await.map_err(CliError::rpc("ImageFsInfo"))?;
    let status = status.into_inner();
    Ok(Answer {
        version: version.into_inner(),
        conditions: status.status.unwrap_or_default().conditions,
        config: status.info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
        sandboxes: count(sandboxes.iter().map(|sandbox| match sandbox.state() {
            v1::PodSandboxState::SandboxReady => "ready",
            v1::PodSandboxState::SandboxNotready => "not ready",
        })),
        containers: count(containers.iter().map(|container| match container.state() {
            v1::ContainerState::ContainerCreated => "created",
            v1::ContainerState::ContainerRunning => "running",
            v1::ContainerState::ContainerExited => "exited",
            v1::ContainerState::ContainerUnknown => "unknown",
        })),
        images: images.len(),
        image_bytes: disk
            .into_inner()
            .image_filesystems
            .iter()
            .filter_map(|usage| usage.used_bytes.as_ref())
            .map(|bytes| bytes.value)
            .sum(),
    })
}

fn count(states: impl Iterator<Item = &'static str>) -> BTreeMap<&'static str, usize> {
    states.fold(BTreeMap::new(), |mut counts, state| {
        *counts.entry(state).or_default() += 1;
        counts
    })
}

fn print(answer: &Answer) {
    for condition in &answer.conditions {
        let yes = if condition.status { "yes".to_owned() } else { format!("no: {}", condition.message) };
        out::pair(&condition.r#type, yes);
    }
    let sum = |counts: &BTreeMap<&str, usize>| {
        let states: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let total: usize = counts.values().sum();
        if states.is_empty() { total.to_string() } else { format!("{total} ({})", states.join(", ")) }
    };
    out::pair("sandboxes", sum(&answer.sandboxes));
    out::pair("containers", sum(&answer.containers));
    out::pair("images", format_args!("{}, {}", answer.images, out::bytes(answer.image_bytes)));
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let cgroup = answer.config.get("cgroup").cloned().unwrap_or_default();
    let word = |value: &Value, key: &str| value.get(key).map(text).unwrap_or_default();
    out::pair("cgroups", format_args!("{} driver, {}", word(&cgroup, "driver"), word(&cgroup, "mode")));
    out::pair("root", word(&answer.config, "rootDir"));
    out::pair("state", word(&answer.config, "stateDir"));
    out::pair("kernel", word(&answer.config, "kernel"));
}

fn json(answer: &Answer) -> Value {
    let conditions: BTreeMap<&str, Value> = answer
        .conditions
        .iter()
        .map(|it| (it.r#type.as_str(), json!({ "status": it.status, "reason": it.reason, "message": it.message })))
        .collect();
    json!({
        "version": answer.version.runtime_version,
        "cri": answer.version.runtime_api_version,
        "conditions": conditions,
        "sandboxes": answer.sandboxes,
        "containers": answer.containers,
        "images": { "count": answer.images, "bytes": answer.image_bytes },
        "config": answer.config,
    })
}
