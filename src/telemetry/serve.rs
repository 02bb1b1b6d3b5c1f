//! The page that Prometheus reads, over HTTP on a loopback address or a Unix
//! socket. It knows nothing of what is on the page.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

use super::metrics::CONTENT_TYPE;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, such as when descriptors run out.
const PAUSE: Duration = Duration::from_secs(1);

/// Where it is served.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Makes the page.
pub type Page = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Serves until berthd ends.
pub async fn serve(listener: Listener, page: Page) {
    loop {
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(s, _)| connection(s, &page)),
            Listener::Unix(listener) => listener.accept().await.map(|(s, _)| connection(s, &page)),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "accept a client of the metrics");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, page: &Page) {
    let page = page.clone();
    tokio::spawn(async move {
        let service = service_fn(|request| {
            let answer = answer(&request, &page);
            async { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a client of the metrics left");
        }
    });
}

fn answer<B>(request: &Request<B>, page: &Page) -> Response<Full<Bytes>> {
    let (status, kind, text) = if request.uri().path() != "/metrics" {
        (
            StatusCode::NOT_FOUND,
            "text/plain",
            "only /metrics is here\n".to_owned(),
        )
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET and HEAD\n".to_owned(),
        )
    } else {
        match page() {
            Ok(text) => (StatusCode::OK, CONTENT_TYPE, text),
            Err(error) => {
                let text = format!("{error}\n");
                (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", text)
            }
        }
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
