//! From ended spans to a collector: a bounded queue, and one task that sends what is in it in batches.
//! Spans are put in on whatever thread they end, without waiting; the task runs on the daemon's workers.
//! Owns the queue and the connection. Must never hold more than the queue, nor say more than one line when the collector goes away.

use std::time::Duration;

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::observe::counters;

/// Ended spans that wait: some hundred pod starts, about 2 MB at worst.
const QUEUE: usize = 4096;
/// Spans in one message.
const BATCH: usize = 512;
/// How long the first span of a batch waits for company.
const LINGER: Duration = Duration::from_secs(1);
/// How long the rest may take to be sent at the daemon's end.
const FLUSH: Duration = Duration::from_secs(2);

/// The attribute of an RPC's span that holds its gRPC code.
pub(super) const CODE: &str = "rpc.grpc.status_code";

/// The end of the queue that spans are put in.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            counters().spans_dropped.one();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
pub(super) struct Sender {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Sender {
    /// Sends what is queued, and ends.
    pub(super) async fn finish(self) {
        // It may have ended by a panic: then nothing is left to stop.
        let _ = self.stop.send(());
        if tokio::time::timeout(FLUSH, self.task).await.is_err() {
            tracing::warn!(seconds = FLUSH.as_secs(), "the last spans were not taken in time");
        }
    }
}

/// A queue, and the task that empties it into the exporter.
pub(super) fn start(mut exporter: impl SpanExporter + 'static, resource: &Resource) -> (Queue, Sender) {
    exporter.set_resource(resource);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (stop, stopped) = oneshot::channel();
    (Queue(sender), Sender { stop, task: tokio::spawn(send(receiver, exporter, stopped)) })
}

async fn send(mut queue: mpsc::Receiver<SpanData>, exporter: impl SpanExporter, mut stopped: oneshot::Receiver<()>) {
    let mut well = true;
    let mut stopping = false;
    while !stopping {
        let mut batch = Vec::new();
        tokio::select! {
            count = queue.recv_many(&mut batch, BATCH) => stopping = count == 0,
            _ = &mut stopped => stopping = true,
        }
        if !stopping && batch.len() < BATCH {
            let company = async { while batch.len() < BATCH && queue.recv_many(&mut batch, BATCH).await != 0 {} };
            tokio::select! {
                () = company => {}
                () = tokio::time::sleep(LINGER) => {}
                _ = &mut stopped => stopping = true,
            }
        }
        if stopping {
            queue.close();
            while let Ok(span) = queue.try_recv() {
                batch.push(span);
            }
        }
        if !batch.is_empty() {
            well = hand_over(&exporter, batch, well).await;
        }
    }
}

/// Sends one batch; tells once that it fails, and once that it works again.
async fn hand_over(exporter: &impl SpanExporter, mut batch: Vec<SpanData>, well: bool) -> bool {
    let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
    batch.iter_mut().for_each(dress);
    match exporter.export(batch).await {
        Ok(()) => {
            counters().spans_exported.add(count);
            if !well {
                tracing::info!("the trace collector takes spans again");
            }
            true
        }
        Err(error) => {
            counters().spans_dropped.add(count);
            if well {
                tracing::warn!(%error, "the trace collector does not take spans: they are dropped and counted until it does");
            }
            false
        }
    }
}

/// A span as people look for it: called by what it does, an RPC as the server's side of a call with its outcome.
fn dress(span: &mut SpanData) {
    let text = |span: &SpanData, key: &str| {
        span.attributes.iter().find(|one| one.key.as_str() == key).map(|one| one.value.as_str().into_owned())
    };
    match span.name.as_ref() {
        "rpc" => {
            if let Some(name) = text(span, "rpc") {
                span.attributes.push(KeyValue::new("rpc.system", "grpc"));
                span.attributes.push(KeyValue::new("rpc.method", name.clone()));
                span.name = name.into();
            }
            span.span_kind = SpanKind::Server;
            let code = span.attributes.iter().find(|one| one.key.as_str() == CODE).map(|one| one.value.clone());
            // As the semantic conventions have it: the server's failures, not what it refused.
            span.status = match code {
                Some(Value::I64(2 | 4 | 12 | 13 | 14 | 15)) => Status::error("failed"),
                _ => Status::Unset,
            };
        }
        "stage" => {
            if let Some(name) = text(span, "stage") {
                span.name = name.into();
            }
        }
        "shim" => {
            if let Some(act) = text(span, "act") {
                span.name = format!("shim: {act}").into();
            }
            span.span_kind = SpanKind::Client;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::{error::OTelSdkError, trace::SdkTracerProvider};

    use super::*;

    /// Takes spans, or fails, or does not answer.
    #[derive(Debug, Clone)]
    struct Collector {
        took: Arc<Mutex<Vec<SpanData>>>,
        answer: Answer,
    }

    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Takes,
        Fails,
        Never,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            match self.answer {
                Answer::Takes => {
                    self.took.lock().unwrap().extend(batch);
                    Ok(())
                }
                Answer::Fails => Err(OTelSdkError::InternalFailure("no".into())),
                Answer::Never => std::future::pending().await,
            }
        }
    }

    fn collector(answer: Answer) -> (Collector, SdkTracerProvider, Sender) {
        let collector = Collector { took: Arc::default(), answer };
        let (queue, sender) = start(collector.clone(), &Resource::builder_empty().build());
        (collector, SdkTracerProvider::builder().with_span_processor(queue).build(), sender)
    }

    fn spans(provider: &SdkTracerProvider, count: usize) {
        let tracer = provider.tracer("test");
        for _ in 0..count {
            let rpc = KeyValue::new("rpc", "Version");
            drop(tracer.build(tracer.span_builder("rpc").with_attributes([rpc, KeyValue::new(CODE, 13)])));
        }
    }

    #[tokio::test]
    async fn what_has_ended_is_sent_at_the_end_under_its_name() {
        let (collector, provider, sender) = collector(Answer::Takes);
        spans(&provider, BATCH + 3);
        sender.finish().await;
        let took = collector.took.lock().unwrap();
        assert_eq!(took.len(), BATCH + 3);
        assert_eq!((took[0].name.as_ref(), &took[0].span_kind), ("Version", &SpanKind::Server));
        assert_eq!(took[0].status, Status::error("failed"));
    }

    #[tokio::test]
    async fn a_collector_that_fails_or_hangs_costs_spans_and_nothing_else() {
        let before = counters().spans_dropped.get();
        let (_, provider, sender) = collector(Answer::Fails);
        spans(&provider, 5);
        sender.finish().await;
        assert!(counters().spans_dropped.get() >= before + 5);

        let before = counters().spans_dropped.get();
        let (_, provider, sender) = collector(Answer::Never);
        let begun = std::time::Instant::now();
        spans(&provider, QUEUE + 100);
        assert!(counters().spans_dropped.get() >= before + 100);
        tokio::time::pause();
        sender.finish().await;
        assert!(begun.elapsed() < FLUSH * 10);
    }
}
