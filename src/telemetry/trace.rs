//! Traces to a collector by OTLP (gRPC). Spans go out in batches on a thread of their
//! own; when the collector is away they are dropped, and nothing waits for it.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use super::span::TARGET;
use crate::config::Tracing;

/// How long one batch may take to reach the collector.
const LIMIT: Duration = Duration::from_secs(5);

pub type Tracer = opentelemetry_sdk::trace::SdkTracer;

/// The way of spans to the collector.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// None when no endpoint is configured. Needs a runtime, to send in; the collector
    /// may come later.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn begin(config: &Tracing) -> Result<Option<Traces>, String> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.endpoint)
            .with_timeout(LIMIT)
            .build()
            .map_err(|e| format!("tracing.endpoint {:?}: {e}", config.endpoint))?;
        let kept = f64::from(config.sampling_rate_per_million) / 1e6;
        let resource = Resource::builder()
            .with_service_name("berthd")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            // The caller has decided for its own calls.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(kept))))
            .with_resource(resource)
            .build();
        Ok(Some(Traces(provider)))
    }

    /// What makes spans.
    pub fn tracer(&self) -> Tracer {
        self.0.tracer("berthd")
    }

    /// Sends what has not been sent. Blocks for at most the limit of a batch.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LIMIT) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Takes the spans of this program's traces, and no others.
pub fn layer<S>(tracer: Tracer) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|metadata| metadata.target() == TARGET))
}

/// Puts the span below the one that the headers name, if they do.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let caller = TraceContextPropagator::new().extract(&Headers(headers));
    // Only a span that has been entered cannot have a parent any more.
    let _ = span.set_parent(caller);
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
