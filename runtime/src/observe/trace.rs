//! Traces: the spans of this process as OpenTelemetry has them, sampled, continued from the caller's, and sent to a collector.
//! Made once on the main thread; spans end on any thread and go into a bounded queue; one task of the runtime sends them (`export.rs`).
//! Owns the tracer. Without a configured endpoint nothing of it is linked into the spans' path.
//! Must never block or fail what it traces: what does not fit is dropped and counted.

mod export;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use crate::config::Traces;

/// How long a collector may take to be reached, and to take one batch with the retries.
const CONNECT: Duration = Duration::from_secs(3);
const TAKE: Duration = Duration::from_secs(5);

/// Whether spans are traced at all: one relaxed load keeps everything below out of the way.
static ON: AtomicBool = AtomicBool::new(false);

/// The collector's address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("export traces to `{endpoint}`")]
pub struct TraceError {
    endpoint: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// What makes spans, and the task that sends them.
pub(crate) struct Tracer {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    sender: export::Sender,
}

impl Tracer {
    /// None without an endpoint. Must be called inside the runtime; the collector needs not be there.
    ///
    /// # Errors
    /// The endpoint is no URL that can be connected to.
    pub(crate) fn new(traces: &Traces) -> Result<Option<Self>, TraceError> {
        let Some(endpoint) = &traces.endpoint else { return Ok(None) };
        let failed = |source| TraceError { endpoint: endpoint.clone(), source };
        let mut channel = Endpoint::from_shared(endpoint.clone()).map_err(|error| failed(error.into()))?;
        if endpoint.starts_with("https:") {
            let tls = ClientTlsConfig::new().with_native_roots();
            channel = channel.tls_config(tls).map_err(|error| failed(error.into()))?;
        }
        let channel = channel.connect_timeout(CONNECT).timeout(TAKE).connect_lazy();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(TAKE)
            .build()
            .map_err(|error| failed(error.into()))?;
        let resource = resource();
        let (queue, sender) = export::start(exporter, &resource);
        let ratio = f64::from(traces.sample_per_million) / 1e6;
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource)
            .build();
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Self { tracer: provider.tracer("keelson"), provider, sender }))
    }

    /// The layer that turns this process's spans into traces.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        // Spans of the steps below a call are worth more here than in the log; of events only those that a log has by default.
        let filter = filter_fn(|about| {
            let most = if about.is_span() { Level::DEBUG } else { Level::INFO };
            about.target().starts_with("keelson") && *about.level() <= most
        });
        tracing_opentelemetry::layer()
            .with_tracer(self.tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter)
    }

    /// Sends what has ended so far, within bounds; spans that end later are dropped.
    pub(crate) async fn finish(self) {
        ON.store(false, Ordering::Relaxed);
        self.sender.finish().await;
        // It has no more to give than the queue that was just emptied.
        let _ = self.provider.shutdown_with_timeout(Duration::ZERO);
    }
}

/// Who says all this. `OTEL_RESOURCE_ATTRIBUTES` adds to it.
fn resource() -> Resource {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Resource::builder()
        .with_service_name("keelson")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", node.clone()),
            KeyValue::new("k8s.node.name", node),
        ])
        .build()
}

/// The span goes on with the trace that a caller's headers tell of (W3C `traceparent` and `tracestate`).
pub(crate) fn continue_from<'a>(span: &Span, header: impl Fn(&str) -> Option<&'a str>) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    let parent = context(&Headers { parent: header("traceparent"), state: header("tracestate") });
    if parent.span().span_context().is_valid() {
        // A span that is not traced has no parent either.
        let _ = span.set_parent(parent);
    }
}

/// The span goes on with the current trace, but is not awaited by the current span.
pub(crate) fn behind(span: &Span) {
    if ON.load(Ordering::Relaxed) && !span.is_disabled() {
        let parent = Span::current().context();
        if parent.span().span_context().is_valid() {
            let _ = span.set_parent(parent);
        }
    }
}

/// The current span is an RPC that ends with this gRPC code.
pub(crate) fn rpc_ended(code: i32) {
    if ON.load(Ordering::Relaxed) {
        Span::current().set_attribute(export::CODE, i64::from(code));
    }
}

fn context(headers: &Headers<'_>) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), headers)
}

/// A request's headers, as the propagator reads them.
struct Headers<'a> {
    parent: Option<&'a str>,
    state: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent,
            "tracestate" => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_context_is_read_from_its_headers_and_nothing_from_nonsense() {
        let context = |parent| {
            let found = super::context(&Headers { parent: Some(parent), state: Some("vendor=1") });
            found.span().span_context().clone()
        };
        let found = context("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(found.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(found.span_id().to_string(), "b7ad6b7169203331");
        assert!(found.is_remote() && found.is_sampled());
        assert_eq!(found.trace_state().header(), "vendor=1");
        for nonsense in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "x"] {
            assert!(!context(nonsense).is_valid(), "{nonsense}");
        }
    }
}
