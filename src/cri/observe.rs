//! Counts every call: its method, its code, how long it took until the last of its
//! answer, and how many are under way.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use tonic::{Code, server::NamedService};
use tower_service::Service;
use tracing::{Instrument, Span};

use crate::telemetry::{
    metrics::{Answer, Method, metrics},
    span,
};

/// The methods there are; a test holds them against the interface.
const METHODS: &str = "\
    Version RunPodSandbox StopPodSandbox RemovePodSandbox PodSandboxStatus ListPodSandbox \
    StreamPodSandboxes CreateContainer StartContainer StopContainer RemoveContainer ListContainers \
    StreamContainers ContainerStatus UpdateContainerResources ReopenContainerLog ExecSync Exec \
    Attach PortForward ContainerStats ListContainerStats StreamContainerStats PodSandboxStats \
    ListPodSandboxStats StreamPodSandboxStats UpdateRuntimeConfig Status CheckpointContainer \
    CheckpointPod RestorePod GetContainerEvents ListMetricDescriptors ListPodSandboxMetrics \
    StreamPodSandboxMetrics RuntimeConfig UpdatePodSandboxResources ListImages StreamImages \
    ImageStatus PullImage RemoveImage ImageFsInfo";

/// A service of gRPC whose calls are counted.
#[derive(Clone, Debug)]
pub struct Observed<S>(pub S);

impl<S: NamedService> NamedService for Observed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B, A> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    A: Body + Unpin,
{
    type Response = Response<Counted<A>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Anybody may ask for any path: only methods that there are get a name of
        // their own, or a client could fill the memory with them.
        let mut call = Call::begin(request.uri().path(), request.headers());
        let answer = call
            .span
            .in_scope(|| self.0.call(request))
            .instrument(call.span.clone());
        Box::pin(async move {
            let response = answer.await?;
            // An error is told in the headers, when there is no answer to send.
            call.hear(response.headers());
            Ok(response.map(|body| Counted { body, call }))
        })
    }
}

/// One call, counted when it is dropped: with its answer, or with the client that
/// does not wait for it any more.
#[derive(Debug)]
struct Call {
    method: Method,
    begin: Instant,
    code: Option<Code>,
    span: Span,
}

impl Call {
    fn begin(path: &str, headers: &HeaderMap) -> Call {
        let name = path.rsplit('/').next().unwrap_or_default();
        let known = METHODS.split_whitespace().any(|known| known == name);
        let span = if known {
            span::call(path, headers)
        } else {
            Span::none()
        };
        let method = Method {
            method: if known { name } else { "unknown" }.to_owned(),
        };
        metrics().rpcs_in_flight.get_or_create(&method).inc();
        Call {
            method,
            begin: Instant::now(),
            code: None,
            span,
        }
    }

    fn hear(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let all = metrics();
        all.rpcs_in_flight.get_or_create(&self.method).dec();
        all.rpc_seconds
            .get_or_create(&self.method)
            .observe(self.begin.elapsed().as_secs_f64());
        let code = self.code.unwrap_or(Code::Cancelled);
        span::answered(&self.span, code);
        let code = name(code);
        let method = self.method.method.clone();
        all.rpcs.get_or_create(&Answer { method, code }).inc();
    }
}

/// An answer on its way.
#[derive(Debug)]
pub struct Counted<A> {
    body: A,
    call: Call,
}

impl<A: Body + Unpin> Body for Counted<A> {
    type Data = A::Data;
    type Error = A::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<A::Data>, A::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.hear(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The words that Go's gRPC has for the codes, and dashboards know.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_interface_is_known() {
        let interface = include_str!("../../proto/cri.proto");
        let methods: Vec<_> = interface
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
            .collect();
        assert!(methods.len() > 40);
        assert_eq!(METHODS.split_whitespace().collect::<Vec<_>>(), methods);
    }
}
