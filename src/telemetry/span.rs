//! The spans of traces: one for each call of the interface, below that of its caller,
//! and one for each step of it. Nobody looks at them unless traces are configured; then
//! making one costs a look at an atomic.

use http::HeaderMap;
use tracing::{Span, field::Empty, trace_span};

/// The target of all spans that are traced. They are of the lowest level, so that they
/// are not a part of the lines of the log.
pub const TARGET: &str = "berth::trace";

/// The span of a call. `path` is that of gRPC, "/runtime.v1.RuntimeService/Version", and
/// must be of a method that there is; `headers` may carry the span of the caller
/// (W3C trace context). The names of its fields are OpenTelemetry's conventions.
pub fn call(path: &str, headers: &HeaderMap) -> Span {
    let name = path.trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    let span = trace_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        k8s.pod.name = Empty,
        k8s.pod.uid = Empty,
        k8s.namespace.name = Empty,
        berth.sandbox.id = Empty,
        container.id = Empty,
    );
    super::trace::continue_from(&span, headers);
    span
}

/// How a call has ended; only what is the server's fault is an error, by convention.
pub fn answered(span: &Span, code: tonic::Code) {
    use tonic::Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    span.record("rpc.grpc.status_code", i64::from(i32::from(code)));
    if matches!(
        code,
        DataLoss | DeadlineExceeded | Internal | Unavailable | Unimplemented | Unknown
    ) {
        span.record("otel.status_code", "ERROR");
    }
}

/// Whether there is a trace of the call under way.
pub fn is_traced() -> bool {
    !Span::current().is_disabled()
}

/// Says what the call under way is about.
pub fn is_about(field: &'static str, value: &str) {
    Span::current().record(field, value);
}

/// The span of a step of the call under way; it ends when it is dropped.
pub fn step(name: &'static str) -> Span {
    trace_span!(target: TARGET, "step", otel.name = name)
}
