//! What every RPC has around it: a span with ids, the caller's deadline, and one log line when it fails.
//! Runs in the task that tonic gives the RPC. Owns the count of calls.
//! Must never cancel work of the engine: what a handler awaits is owned elsewhere and goes on without it.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, Span, field::Empty};

use super::status::Failure;
use crate::observe::{self, counters};

/// A request and how long its caller will wait.
pub(super) struct Call<T> {
    pub(super) message: T,
    pub(super) deadline: Option<Duration>,
}

static CALLS: AtomicU64 = AtomicU64::new(1);

/// Runs a handler. `rpc` is the RPC's name in the protocol.
pub(super) async fn serve<Q, A, F>(
    rpc: &'static str,
    request: Request<Q>,
    handler: impl FnOnce(Call<Q>) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<A, Failure>>,
{
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let span = tracing::info_span!("rpc", rpc, call, sandbox = Empty, container = Empty, image = Empty);
    observe::trace::continue_from(&span, |name| request.metadata().get(name)?.to_str().ok());
    let deadline = deadline(request.metadata());
    let work = handler(Call { message: request.into_inner(), deadline });
    async move {
        let began = std::time::Instant::now();
        let in_flight = counters().rpcs.in_flight.hold();
        let answer = match deadline {
            None => work.await,
            Some(limit) => tokio::time::timeout(margin(limit), work)
                .await
                .unwrap_or(Err(Failure::Deadline { rpc, seconds: limit.as_secs_f64() })),
        };
        let took = began.elapsed();
        let ms = (took.as_secs_f64() * 1e6).round() / 1e3;
        drop(in_flight);
        match answer {
            Ok(answer) => {
                ended(rpc, Code::Ok, took);
                tracing::debug!(ms, "done");
                Ok(Response::new(answer))
            }
            Err(failure) => {
                let status = Status::from(failure);
                ended(rpc, status.code(), took);
                log(&status, ms);
                Err(status)
            }
        }
    }
    .instrument(span)
    .await
}

/// For the page and for the trace.
fn ended(rpc: &'static str, code: Code, took: Duration) {
    counters().rpcs.ended(rpc, code.into(), took);
    observe::trace::rpc_ended(code.into());
}

/// Puts the sandbox the call is about into its span.
pub(super) fn about_sandbox(id: &str) {
    Span::current().record("sandbox", short(id));
}

/// Puts the container the call is about into its span.
pub(super) fn about_container(id: &str) {
    Span::current().record("container", short(id));
}

/// Puts the image the call is about into its span.
pub(super) fn about_image(name: &str) {
    Span::current().record("image", name.get(..name.floor_char_boundary(256)).unwrap_or_default());
}

/// What identifies an id to a person; a caller's text is never logged whole.
fn short(id: &str) -> &str {
    id.get(..id.floor_char_boundary(13)).unwrap_or_default()
}

/// The host's failures and refused requests are worth a line; questions about what is gone are everyday.
fn log(status: &Status, ms: f64) {
    let (code, error) = (status.code(), status.message());
    match code {
        Code::Internal | Code::Unknown | Code::DataLoss => tracing::error!(?code, ms, error, "failed"),
        Code::NotFound | Code::Unimplemented => tracing::debug!(?code, ms, error, "refused"),
        _ => tracing::warn!(?code, ms, error, "refused"),
    }
}

/// Ends just before the transport would: that one says CANCELLED, which no client takes for a deadline.
fn margin(limit: Duration) -> Duration {
    limit.saturating_sub((limit / 20).min(Duration::from_millis(50)))
}

/// `grpc-timeout`: at most eight digits and a unit. A malformed one is no deadline, as the specification has it.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Option<Duration> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().ok()?);
        deadline(&metadata)
    }

    #[test]
    fn the_deadline_header_is_read_as_the_specification_has_it() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("150m", Some(Duration::from_millis(150))),
            ("7u", Some(Duration::from_micros(7))),
            ("8n", Some(Duration::from_nanos(8))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1.5S", None),
            ("1s", None),
        ] {
            assert_eq!(header(text), want, "{text}");
        }
    }

    #[tokio::test]
    async fn a_deadline_that_passes_names_the_call_and_is_no_cancellation() {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
        let never = |_: Call<()>| std::future::pending::<Result<(), Failure>>();
        let status = serve("RunPodSandbox", request, never).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().starts_with("RunPodSandbox: the caller's deadline of 0.2 s passed"), "{status}");
    }

    #[tokio::test]
    async fn a_call_without_a_deadline_waits_for_its_answer() {
        let answer = serve("Version", Request::new(7), |call| async move {
            assert_eq!(call.deadline, None);
            Ok::<_, Failure>(call.message + 1)
        });
        assert_eq!(answer.await.unwrap().into_inner(), 8);
    }
}
