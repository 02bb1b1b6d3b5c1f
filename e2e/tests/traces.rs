//! Traces, as a collector gets them.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Result, Story, cri};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Generous: the machine may be busy, and berthd sends every few seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    services: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let name = resource.attributes.iter().find(|a| a.key == "service.name");
            let name = name.and_then(|a| text(a.value.as_ref())).unwrap_or_default();
            self.services.lock().expect("unpoisoned").push(name);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().expect("unpoisoned").extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn wait(&self, name: &str) -> Result<Span> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.all(|span| span.name == name).into_iter().next();
            if let Some(span) = found {
                return Ok(span);
            }
            ensure!(Instant::now() < deadline, "no span {name:?} has come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn all(&self, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        let spans = self.spans.lock().expect("unpoisoned");
        spans.iter().filter(|span| wanted(span)).cloned().collect()
    }
}

fn text(value: Option<&AnyValue>) -> Option<String> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|a| a.key == key)?;
    text(found.value.as_ref())
}

#[tokio::test]
async fn calls_and_steps_are_below_the_span_of_the_caller() -> Result {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone());
    let serving = tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let story = Story::begin_with(&format!("[tracing]\nendpoint = \"{endpoint}\"\n")).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server has other settings");
        return story.finish().await;
    }
    let client = &story.client;
    let config = client.pod_config("traced");
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let traced = |request: cri::RunPodSandboxRequest, flags: &str| {
        let mut request = Request::new(request);
        let context = format!("00-{trace}-{parent}-{flags}");
        request
            .metadata_mut()
            .insert("traceparent", context.parse().expect("ascii"));
        request
    };
    let asked = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    };
    let mut runtime = client.runtime.clone();
    let answer = runtime
        .run_pod_sandbox(traced(asked.clone(), "01"))
        .await?
        .into_inner();
    let missing = cri::RunPodSandboxRequest {
        runtime_handler: "none-such".into(),
        ..asked.clone()
    };
    runtime.run_pod_sandbox(traced(missing, "01")).await.unwrap_err();
    // A caller that does not trace is not traced either, nor is one that says nothing.
    let mut other = asked;
    other.config.get_or_insert_default().metadata = Some(cri::PodSandboxMetadata {
        attempt: 7,
        ..config.metadata.clone().context("metadata")?
    });
    let untraced = runtime.run_pod_sandbox(traced(other, "00")).await?.into_inner();
    client.pods(None).await?;

    let method = "runtime.v1.RuntimeService/RunPodSandbox";
    collector.wait(method).await?;
    let deadline = Instant::now() + PATIENCE;
    while collector.all(|span| span.name == method).len() < 2 {
        ensure!(Instant::now() < deadline, "the failed call has not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let calls = collector.all(|span| span.name == method);
    assert_eq!(calls.len(), 2, "{calls:?}");
    let is =
        |bytes: &[u8], hex: &str| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == hex;
    for call in &calls {
        assert!(
            is(&call.trace_id, trace) && is(&call.parent_span_id, parent),
            "{call:?}"
        );
        assert_eq!(call.kind, 2, "a server's: {call:?}");
    }
    let call = calls
        .iter()
        .find(|call| attribute(call, "rpc.grpc.status_code").as_deref() == Some("0"));
    let call = call.context("the call that went well")?;
    let metadata = config.metadata.unwrap_or_default();
    for (key, expected) in [
        ("k8s.pod.name", metadata.name.as_str()),
        ("k8s.pod.uid", &metadata.uid),
        ("k8s.namespace.name", &metadata.namespace),
        ("berth.sandbox.id", &answer.pod_sandbox_id),
    ] {
        assert_eq!(attribute(call, key).as_deref(), Some(expected), "{key}");
    }
    let steps = collector.all(|span| span.parent_span_id == call.span_id);
    for name in ["name", "namespaces", "network"] {
        let step = steps.iter().find(|step| step.name == name);
        let step = step.with_context(|| format!("step {name} in {steps:?}"))?;
        let inside = call.start_time_unix_nano <= step.start_time_unix_nano
            && step.end_time_unix_nano <= call.end_time_unix_nano;
        assert!(inside, "{step:?}");
    }
    let strangers = collector.all(|span| !is(&span.trace_id, trace));
    assert!(strangers.is_empty(), "{strangers:?}");
    assert_eq!(
        collector
            .services
            .lock()
            .expect("unpoisoned")
            .first()
            .map(String::as_str),
        Some("berthd")
    );
    client.stop_pod(&untraced.pod_sandbox_id).await?;
    client.remove_pod(&untraced.pod_sandbox_id).await?;
    let finished = story.finish().await;
    serving.abort();
    finished
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_nobody() -> Result {
    // Nothing listens there: the port was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let settings =
        format!("[tracing]\nendpoint = \"http://{address}\"\nsampling_rate_per_million = 1000000\n");
    let story = Story::begin_with(&settings).await?;
    let pod = story.client.run_pod("away").await?;
    let output = story
        .client
        .run_to_end(&pod, story.script("c", "echo on"))
        .await?;
    assert_eq!(output.stdout, "on\n");
    story.finish().await
}
