//! A registry that does not behave: it stands before the real one and fails as told.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{AUTHORIZATION, CONTENT_LENGTH, HOST, WWW_AUTHENTICATE},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    Registry, Result, http,
    registry::{PASSWORD, USER},
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: requests are only counted.
    None,
    /// Every request for a blob is answered 503.
    Unavailable,
    /// Bodies of blobs end in their middle, every time.
    Truncate,
    /// As Truncate, but a request with a range, or a later one, gets the rest.
    TruncateOnce,
    /// One byte of each blob is another one.
    CorruptBlob,
    /// Manifests have a blank more than their digest allows.
    CorruptManifest,
    /// Bodies of blobs stop in their middle and the connection stays open.
    Stall,
    /// A token from /token is needed, which asks for the password, or takes
    /// [`IDENTITY`] in its stead.
    Token,
    /// As Token, and the token is for everybody.
    AnonymousToken,
}

const TOKEN: &str = "e2e-token";

/// A refresh token that is worth a token.
pub const IDENTITY: &str = "e2e-identity";

/// Serves until the value is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    blobs: Mutex<HashMap<String, usize>>,
    requests: AtomicUsize,
}

impl Proxy {
    /// Stands before `registry` with this fault.
    pub async fn start(registry: &Registry, fault: Fault) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let counts = Arc::new(Counts::default());
        let state = Arc::new(Upstream {
            origin: registry.host(),
            own: address.clone(),
            fault,
            counts: counts.clone(),
            client: http::client(),
        });
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Proxy {
            address,
            counts,
            task,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.address
    }

    /// The same reference, by way of this proxy.
    pub fn instead(&self, reference: &str) -> String {
        let rest = reference.split_once('/').map_or(reference, |(_, rest)| rest);
        format!("{}/{rest}", self.address)
    }

    /// How often blobs were fetched, all together.
    pub fn fetches(&self) -> usize {
        let blobs = self.counts.blobs.lock().expect("not poisoned");
        blobs.values().sum()
    }

    /// The greatest number of GET requests that one blob had.
    pub fn most_fetches_of_a_blob(&self) -> usize {
        let blobs = self.counts.blobs.lock().expect("not poisoned");
        blobs.values().copied().max().unwrap_or_default()
    }

    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Upstream {
    origin: String,
    own: String,
    fault: Fault,
    counts: Arc<Counts>,
    client: http::HttpClient,
}

async fn answer(state: Arc<Upstream>, request: Request<Incoming>) -> Result<Response<Served>, Infallible> {
    state.counts.requests.fetch_add(1, Ordering::SeqCst);
    Ok(match forward(&state, request).await {
        Ok(response) => response,
        Err(error) => plain(StatusCode::BAD_GATEWAY, error.to_string()),
    })
}

async fn forward(state: &Upstream, mut request: Request<Incoming>) -> Result<Response<Served>> {
    let path = request.uri().path().to_owned();
    if path == "/token" && request.method() == "POST" && state.fault == Fault::Token {
        return exchange(request).await;
    }
    if let Some(refusal) = demand_token(state, &request) {
        return Ok(refusal);
    }
    let blob = path.contains("/blobs/") && request.method() == "GET";
    let fetches = if blob { count(state, &path) } else { 0 };
    let whole = !request.headers().contains_key("range");
    if blob && state.fault == Fault::Unavailable {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "come back later".into()));
    }
    let rest = request.uri().path_and_query().map_or("/", |p| p.as_str());
    *request.uri_mut() = format!("http://{}{rest}", state.origin).parse()?;
    request.headers_mut().insert(HOST, state.origin.parse()?);
    request.headers_mut().remove(AUTHORIZATION);
    let get = request.method() == "GET";
    let (parts, body) = request.into_parts();
    let body = Full::new(body.collect().await?.to_bytes());
    let upstream = state.client.request(Request::from_parts(parts, body)).await?;
    let (mut parts, body) = upstream.into_parts();
    let mut bytes = body.collect().await?.to_bytes().to_vec();
    let mut ending = Ending::Whole;
    let manifest = path.contains("/manifests/") && get && parts.status.is_success();
    match state.fault {
        Fault::CorruptBlob if blob => {
            if let Some(byte) = bytes.get_mut(20) {
                *byte ^= 0x55;
            }
        }
        Fault::CorruptManifest if manifest => {
            bytes.push(b' ');
            parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
        }
        Fault::Truncate if blob => ending = Ending::Cut,
        Fault::TruncateOnce if blob && whole && fetches == 1 => ending = Ending::Cut,
        Fault::Stall if blob => ending = Ending::Stall,
        _ => {}
    }
    Ok(Response::from_parts(parts, Served::new(bytes, ending, get)))
}

fn count(state: &Upstream, path: &str) -> usize {
    let mut blobs = state.counts.blobs.lock().expect("not poisoned");
    let fetches = blobs.entry(path.to_owned()).or_default();
    *fetches += 1;
    *fetches
}

/// The bearer dance of registries: 401 with a realm, a token from there.
fn demand_token(state: &Upstream, request: &Request<Incoming>) -> Option<Response<Served>> {
    let header = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let anonymous = match state.fault {
        Fault::Token => false,
        Fault::AnonymousToken => true,
        _ => return None,
    };
    if request.uri().path() == "/token" {
        let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        if anonymous || header == Some(&basic) {
            return Some(plain(StatusCode::OK, format!("{{\"token\":\"{TOKEN}\"}}")));
        }
        return Some(plain(StatusCode::UNAUTHORIZED, "{}".into()));
    }
    if header == Some(&format!("Bearer {TOKEN}")) {
        return None;
    }
    let mut refusal = plain(StatusCode::UNAUTHORIZED, "{}".into());
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"e2e\",scope=\"repository:any:pull\"",
        state.own
    );
    if let Ok(value) = challenge.parse() {
        refusal.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    Some(refusal)
}

/// A refresh token for a token, as OAuth2 has it.
async fn exchange(request: Request<Incoming>) -> Result<Response<Served>> {
    let body = request.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    let said = |pair: &str| body.split('&').any(|given| given == pair);
    let right = said("grant_type=refresh_token") && said(&format!("refresh_token={IDENTITY}"));
    Ok(if right && said("service=e2e") {
        plain(StatusCode::OK, format!("{{\"access_token\":\"{TOKEN}\"}}"))
    } else {
        plain(StatusCode::UNAUTHORIZED, "{}".into())
    })
}

fn plain(status: StatusCode, text: String) -> Response<Served> {
    let mut response = Response::new(Served::new(text.into_bytes(), Ending::Whole, true));
    *response.status_mut() = status;
    response
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    /// The connection is closed after half of the body.
    Cut,
    /// Nothing comes after half of the body.
    Stall,
}

/// A body that says its true length and may not keep it.
#[derive(Debug)]
struct Served {
    length: u64,
    next: Option<Bytes>,
    ending: Ending,
    /// Answers to HEAD have the length but no body.
    with_body: bool,
}

impl Served {
    fn new(bytes: Vec<u8>, ending: Ending, with_body: bool) -> Served {
        let length = bytes.len();
        let sent = if ending == Ending::Whole {
            length
        } else {
            length / 2
        };
        let sent = Bytes::from(bytes).slice(..sent);
        Served {
            length: length as u64,
            next: (with_body && !sent.is_empty()).then_some(sent),
            ending,
            with_body,
        }
    }
}

impl Body for Served {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(bytes) = self.next.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match self.ending {
            Ending::Whole => Poll::Ready(None),
            Ending::Cut => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
            Ending::Stall => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.with_body {
            SizeHint::with_exact(self.length)
        } else {
            SizeHint::default()
        }
    }
}
