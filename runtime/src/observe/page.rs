//! The page of numbers: every counter, what the engine has, what the kernel says of this process, in Prometheus' text format.
//! Written on the blocking pool for each scrape, from atomics and memory. Owns the names and help texts.
//! Must never have a label whose values a user, an image or a pod chooses.

use super::{
    Counters, counters,
    exposition::{Kind, Page},
    process::Process,
    stage::Stage,
};
use crate::engine::{Census, Engine};

/// The whole page.
pub(super) fn write(engine: &Engine) -> String {
    let mut page = Page::default();
    let build = [("version", env!("CARGO_PKG_VERSION"))];
    page.family("keelson_build_info", Kind::Gauge, "1, with the version of this build.").sample(&build, 1);
    calls(&mut page, counters());
    let census = engine.census();
    kept(&mut page, &census);
    images(&mut page, &census);
    streams(&mut page, counters());
    process(&mut page);
    page.into_text()
}

/// RPCs, stages, shims, ends.
fn calls(page: &mut Page, now: &Counters) {
    let help = "Time from a CRI request to its answer, by RPC and gRPC code.";
    let mut rpcs = page.family("keelson_rpc_duration_seconds", Kind::Histogram, help);
    for (method, code, reading) in now.rpcs.read() {
        rpcs.histogram(&[("method", method), ("code", code)], &reading);
    }
    let help = "CRI requests that have no answer yet.";
    page.single("keelson_rpc_in_flight", Kind::Gauge, help, now.rpcs.in_flight.get());
    let help =
        "Time that each stage of a pod's start took, failed ones too. Files are written beside namespaces and network.";
    let mut stages = page.family("keelson_pod_start_stage_duration_seconds", Kind::Histogram, help);
    for (stage, histogram) in Stage::ALL.iter().zip(&now.stages) {
        stages.histogram(&[("stage", stage.name())], &histogram.read());
    }
    let help = "Containers that ended, by how.";
    page.family("keelson_container_exits_total", Kind::Counter, help)
        .sample(&[("how", "success")], now.exits_success.get())
        .sample(&[("how", "failure")], now.exits_failure.get())
        .sample(&[("how", "oom_killed")], now.exits_oom.get())
        .sample(&[("how", "start_failed")], now.exits_start_failed.get())
        .sample(&[("how", "lost")], now.exits_lost.get());
    let help = "Containers that the kernel killed for running out of memory.";
    page.single("keelson_oom_kills_total", Kind::Counter, help, now.exits_oom.get());
    let help = "Requests to shims.";
    page.single("keelson_shim_calls_total", Kind::Counter, help, now.shim_calls.get());
    let help =
        "Requests to shims without a good answer: refused with a reason, late, shim gone, answer not understood.";
    page.family("keelson_shim_errors_total", Kind::Counter, help)
        .sample(&[("kind", "refused")], now.shim_refused.get())
        .sample(&[("kind", "deadline")], now.shim_deadline.get())
        .sample(&[("kind", "gone")], now.shim_gone.get())
        .sample(&[("kind", "protocol")], now.shim_protocol.get());
}

/// What the engine has.
fn kept(page: &mut Page, census: &Census) {
    page.family("keelson_sandboxes", Kind::Gauge, "Pod sandboxes, by state.")
        .sample(&[("state", "ready")], census.sandboxes_ready)
        .sample(&[("state", "not_ready")], census.sandboxes_not_ready);
    page.family("keelson_containers", Kind::Gauge, "Containers, by state.")
        .sample(&[("state", "created")], census.containers_created)
        .sample(&[("state", "running")], census.containers_running)
        .sample(&[("state", "exited")], census.containers_exited)
        .sample(&[("state", "unknown")], census.containers_unknown);
    let help = "Teardown work that is begun and not done.";
    page.single("keelson_teardown_pending", Kind::Gauge, help, census.teardown_pending);
    let help = "Kernel and file work that runs on the blocking pool or waits for a thread of it.";
    page.single("keelson_blocking_work", Kind::Gauge, help, counters().blocking.get());
}

/// Images and pulls.
fn images(page: &mut Page, census: &Census) {
    let pulls = &census.pulls;
    page.single("keelson_images", Kind::Gauge, "Images on this node.", census.images);
    let mut results = page.family("keelson_image_pulls_total", Kind::Counter, "Pulls that ended, by result.");
    for (result, count) in &pulls.results {
        results.sample(&[("result", result)], count);
    }
    let help = "Pulls under way.";
    page.single("keelson_image_pulls_in_flight", Kind::Gauge, help, pulls.under_way);
    let help = "Compressed layer bytes taken from registries.";
    page.single("keelson_image_pull_bytes_total", Kind::Counter, help, pulls.bytes);
    let help = "Time that each stage of pulls took: resolve, documents, layers (fetched and unpacked at once), commit.";
    let mut stages = page.family("keelson_image_pull_stage_duration_seconds", Kind::Summary, help);
    for stage in &pulls.stages {
        stages.sum(&[("stage", stage.name)], stage.sum.as_secs_f64(), stage.count);
    }
}

/// Events, streaming, traces.
fn streams(page: &mut Page, now: &Counters) {
    let help = "Records of ended containers and pods that were removed because there were too many.";
    page.single("keelson_records_retired_total", Kind::Counter, help, now.records_retired.get());
    let help = "Subscribers of container events.";
    page.single("keelson_event_subscribers", Kind::Gauge, help, now.event_subscribers.get());
    let help = "Container events handed to subscribers.";
    page.single("keelson_events_sent_total", Kind::Counter, help, now.events_sent.get());
    let help = "Container events that a subscriber did not get because it was too slow.";
    page.single("keelson_events_dropped_total", Kind::Counter, help, now.events_dropped.get());
    let help = "Subscribers of container events that were let go because they were too slow.";
    page.single("keelson_event_subscribers_dropped_total", Kind::Counter, help, now.event_subscribers_dropped.get());
    let help = "Open sessions of exec, attach and port-forward.";
    page.single("keelson_streaming_sessions", Kind::Gauge, help, now.streaming_sessions.get());
    let help = "Sessions of exec, attach and port-forward that were opened.";
    page.single("keelson_streaming_sessions_total", Kind::Counter, help, now.streaming_opened.get());
    let help = "Requests to the streaming server that were refused.";
    page.single("keelson_streaming_refused_total", Kind::Counter, help, now.streaming_refused.get());
    let help = "Trace spans that the collector has taken.";
    page.single("keelson_trace_spans_exported_total", Kind::Counter, help, now.spans_exported.get());
    let help = "Trace spans dropped: the queue was full, or the collector did not take them.";
    page.single("keelson_trace_spans_dropped_total", Kind::Counter, help, now.spans_dropped.get());
}

/// The process metrics that every Prometheus client has, under their usual names.
fn process(page: &mut Page) {
    let Some(now) = Process::read() else { return };
    let gauge = Kind::Gauge;
    page.single("process_resident_memory_bytes", gauge, "Resident memory.", now.resident_bytes);
    page.single("process_virtual_memory_bytes", gauge, "Virtual memory.", now.virtual_bytes);
    page.single("process_cpu_seconds_total", Kind::Counter, "CPU time, user and system.", now.cpu_seconds);
    page.single("process_start_time_seconds", gauge, "Start of the process since the epoch.", now.start_seconds);
    page.single("process_threads", gauge, "Threads.", now.threads);
    page.single("process_open_fds", gauge, "Open file descriptors.", now.open_fds);
    if let Some(max) = now.max_fds {
        page.single("process_max_fds", gauge, "Limit of open file descriptors.", max);
    }
}
