//! A collector of traces for tests and benchmarks: OTLP over gRPC on a loopback port, keeping what it is sent.
//! On a thread and a runtime of its own, which end when it is dropped. Owns the spans it was sent.
//! Must never be slower than what it looks at.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
};
use tonic::{Request, Response, Status};

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    /// In hexadecimal.
    pub trace: String,
    pub id: String,
    /// Empty: none.
    pub parent: String,
    pub state: String,
    pub nanos: u64,
    attributes: Vec<(String, String)>,
}

impl Span {
    /// The value of an attribute.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether a span of this name is above it, at any distance.
    pub fn has_ancestor(&self, all: &[Span], name: &str) -> bool {
        let above = all.iter().find(|span| span.trace == self.trace && span.id == self.parent);
        above.is_some_and(|span| span.name == name || span.has_ancestor(all, name))
    }
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Span>,
    resource: Vec<(String, String)>,
}

/// A running collector; ends when dropped.
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Collector {
    /// On a free port.
    pub fn start() -> Result<Collector> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let service = TraceServiceServer::new(Service(kept.clone()));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Ok(Collector { address, kept, runtime: Some(runtime) })
    }

    /// Where it takes spans.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).spans.clone()
    }

    /// An attribute of whoever sent the spans.
    pub fn resource(&self, key: &str) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.resource.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Also inside another runtime, where waiting is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service(Arc<Mutex<Kept>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            kept.resource = pairs(resource.resource.unwrap_or_default().attributes);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.spans.push(Span {
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    state: span.trace_state,
                    nanos: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                    attributes: pairs(span.attributes),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pairs(attributes: Vec<KeyValue>) -> Vec<(String, String)> {
    let text = |value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |one: &KeyValue| one.value.clone().and_then(|value| value.value).map(text).unwrap_or_default();
    attributes.into_iter().map(|one| (one.key.clone(), value(&one))).collect()
}
