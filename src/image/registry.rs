//! The client of the registries' HTTP API (OCI distribution 1.1): one
//! [`Session`] per pull, which knows the hosts, what they demanded and the
//! tokens they take.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper::body::{Bytes, Incoming};
use tokio::sync::Mutex;

use super::{
    auth::{AuthConfig, Challenge, Credentials, Token, form},
    digest::Digest,
    error::{Error, Refusal},
    hosts::{self, Host},
    http_client::{Answer, Ask, Failure, exchange, read_body, refusal},
    manifest::{ACCEPT, Descriptor, MAX_CONFIG, MAX_MANIFEST},
    reference::{Reference, Version},
    tls::{self, HttpClient, Roots},
};
use crate::kind::Kind;

const USER_AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));
/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 256 << 10;

/// How patient a session is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest wait for the next byte.
    pub stall: Duration,
    /// Tries of one step at one host; a transfer that moves starts counting anew.
    pub tries: u32,
    /// Pause before the second try; it doubles from then on.
    pub backoff: Duration,
    /// Longest pause that a registry may ask for (`Retry-After`).
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            stall: Duration::from_secs(60),
            tries: 4,
            backoff: Duration::from_millis(200),
            longest_pause: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// The pause before try `next` (from 1), or `None` to give up.
    pub fn pause(&self, failure: &Failure, next: u32) -> Option<Duration> {
        let asked = failure.retry?;
        if next >= self.tries || asked.is_some_and(|asked| asked > self.longest_pause) {
            return None;
        }
        let own = self.backoff.saturating_mul(1 << (next - 1).min(8));
        Some(asked.unwrap_or(own).min(self.longest_pause))
    }
}

/// A registry as one pull sees it.
#[derive(Debug)]
pub struct Session {
    pub reference: Reference,
    pub patience: Patience,
    auth: AuthConfig,
    endpoints: Vec<Endpoint>,
}

/// One host of the session.
#[derive(Debug)]
pub struct Endpoint {
    host: Host,
    client: HttpClient,
    credentials: Credentials,
    /// TLS or not, as far as is known.
    https: AtomicBool,
    /// The scheme is known to be right.
    settled: AtomicBool,
    /// What this host demanded and takes. Locked while a token is fetched, so
    /// that four layers fetch one.
    grant: Mutex<Grant>,
}

#[derive(Debug, Default)]
struct Grant {
    challenge: Option<Challenge>,
    token: Option<Token>,
    /// Counts tokens: whoever was refused with an older one just takes the newer.
    serial: u64,
}

/// A manifest or index with what the server called it.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub body: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

/// A blob's body, from `start` on (0 when the server knows no ranges).
#[derive(Debug)]
pub struct BlobBody {
    pub body: Incoming,
    pub start: u64,
}

impl Session {
    /// Reads `hosts.toml` and certificates: blocks.
    pub fn open(
        reference: Reference,
        auth: Option<AuthConfig>,
        config_path: &Path,
        roots: &Roots,
        patience: Patience,
    ) -> Result<Session, Error> {
        let auth = auth.unwrap_or_default();
        let endpoints = hosts::load(config_path, &reference.host)?
            .into_iter()
            .map(|host| {
                Ok(Endpoint {
                    client: tls::client(&host, roots)?,
                    credentials: auth.for_host(host.authority.as_str())?,
                    https: AtomicBool::new(host.https),
                    settled: AtomicBool::new(!host.guessed),
                    grant: Mutex::default(),
                    host,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Session {
            reference,
            patience,
            auth,
            endpoints,
        })
    }

    /// The hosts that may serve content by digest.
    pub fn pull_hosts(&self) -> Vec<&Endpoint> {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.host.pull)
            .collect()
    }

    /// What the tag means now, by HEAD; `None` when no host says so (the
    /// manifest is then fetched, and tells why).
    pub async fn head(&self) -> Option<Digest> {
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.host.resolve) {
            let path = format!("manifests/{}", self.reference.version);
            let response = self
                .send(endpoint, Method::HEAD, &path, ACCEPT, None)
                .await
                .ok()?;
            if response.status() == StatusCode::OK {
                return content_digest(&response)?.parse().ok();
            }
        }
        None
    }

    /// Fetches a manifest or index, bounded, its digest verified.
    pub async fn manifest(&self, version: &Version, size: Option<u64>) -> Result<Fetched, Error> {
        let (step, expected) = match version {
            Version::Tag(_) => ("resolve", None),
            Version::Digest(digest) => ("fetch manifest", Some(*digest)),
        };
        let object = match version {
            Version::Tag(_) => self.reference.to_string(),
            Version::Digest(digest) => self.reference.with_digest(*digest).to_string(),
        };
        let may = |endpoint: &&Endpoint| match expected {
            Some(_) => endpoint.host.pull,
            None => endpoint.host.resolve,
        };
        let path = format!("manifests/{version}");
        let limit = size.unwrap_or(MAX_MANIFEST);
        if limit > MAX_MANIFEST {
            return Err(Error::Unsupported {
                object,
                message: format!("is a manifest of {limit} bytes; at most {MAX_MANIFEST} are read"),
            });
        }
        let mut refusals = Vec::new();
        for endpoint in self.endpoints.iter().filter(may) {
            match self.read(endpoint, &path, ACCEPT, limit, expected).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => refusals.push(self.refused(endpoint, failure)),
            }
        }
        Err(self.none_left(step, object, refusals))
    }

    /// Fetches a config blob, bounded, size and digest verified.
    pub async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let object = format!("config {} of {}", descriptor.digest, self.reference);
        if descriptor.size > MAX_CONFIG {
            return Err(Error::Unsupported {
                object,
                message: format!("has {} bytes; at most {MAX_CONFIG} are read", descriptor.size),
            });
        }
        let path = format!("blobs/{}", descriptor.digest);
        let mut refusals = Vec::new();
        for endpoint in self.pull_hosts() {
            let read = self.read(endpoint, &path, "*/*", descriptor.size, Some(descriptor.digest));
            match read.await {
                Ok(fetched) => return Ok(fetched.body),
                Err(failure) => refusals.push(self.refused(endpoint, failure)),
            }
        }
        Err(self.none_left("fetch", object, refusals))
    }

    /// The error of a step that every host refused, or none could be asked for.
    pub fn none_left(&self, step: &'static str, object: String, refusals: Vec<Refusal>) -> Error {
        if refusals.is_empty() {
            return Error::NoHost {
                step,
                object,
                registry: self.reference.host.clone(),
            };
        }
        Error::Registry {
            step,
            object,
            refusals,
        }
    }

    /// One host's failure as part of an error.
    pub fn refused(&self, endpoint: &Endpoint, failure: Failure) -> Refusal {
        let message = if self.auth.taints(&failure.message) {
            "refused; its answer repeats the credentials and is not shown".into()
        } else {
            failure.message
        };
        Refusal {
            host: endpoint.name(),
            kind: failure.kind,
            message,
        }
    }

    /// Reads one small object from one host, trying again where that may help.
    async fn read(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &'static str,
        limit: u64,
        expected: Option<Digest>,
    ) -> Result<Fetched, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.read_once(endpoint, path, accept, limit, expected).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => match self.patience.pause(&failure, tries) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(failure),
                },
            }
        }
    }

    async fn read_once(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &'static str,
        limit: u64,
        expected: Option<Digest>,
    ) -> Result<Fetched, Failure> {
        let response = self.send(endpoint, Method::GET, path, accept, None).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response, self.patience.stall).await);
        }
        let said = content_digest(&response).map(str::to_owned);
        let media_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let body = read_body(response.into_body(), limit, self.patience.stall).await?;
        let digest = Digest::of(&body);
        if let Some(expected) = expected
            && digest != expected
        {
            let message = format!("sent content of digest {digest} instead of {expected}");
            return Err(Failure::lasting(Kind::DataLoss, message));
        }
        // Digests of other algorithms are not ours to check.
        if let Some(Ok(said)) = said.map(|said| said.parse::<Digest>())
            && said != digest
        {
            let message = format!("sent content of digest {digest}, its header says {said}");
            return Err(Failure::lasting(Kind::DataLoss, message));
        }
        Ok(Fetched {
            body,
            media_type,
            digest,
        })
    }

    /// Opens a blob at `offset`; one try.
    pub async fn blob(&self, endpoint: &Endpoint, digest: Digest, offset: u64) -> Result<BlobBody, Failure> {
        let path = format!("blobs/{digest}");
        let range = (offset > 0).then_some(offset);
        let response = self.send(endpoint, Method::GET, &path, "*/*", range).await?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if offset > 0 && range_start(&response) == Some(offset) => offset,
            StatusCode::PARTIAL_CONTENT => {
                return Err(Failure::lasting(
                    Kind::DataLoss,
                    "sent another range than was asked for",
                ));
            }
            _ => return Err(refusal(response, self.patience.stall).await),
        };
        Ok(BlobBody {
            body: response.into_body(),
            start,
        })
    }

    /// Sends a request of the repository, answering demands for credentials.
    async fn send(
        &self,
        endpoint: &Endpoint,
        method: Method,
        path: &str,
        accept: &'static str,
        offset: Option<u64>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut public = HeaderMap::new();
        public.insert(header::ACCEPT, HeaderValue::from_static(accept));
        public.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        // The digest is that of the bytes as they are stored.
        public.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(offset) = offset {
            let value = HeaderValue::try_from(format!("bytes={offset}-"))
                .map_err(|e| Failure::lasting(Kind::Internal, e.to_string()))?;
            public.insert(header::RANGE, value);
        }
        let mut authorised = false;
        loop {
            let (token, serial) = self.token(endpoint).await?;
            let mut private = endpoint.host.headers.clone();
            if let Some(token) = &token {
                private.insert(header::AUTHORIZATION, sensitive(&token.header)?);
            }
            let answer = self.ask(endpoint, &method, path, &public, private).await?;
            if answer.response.status() != StatusCode::UNAUTHORIZED || answer.redirected || authorised {
                return Ok(answer.response);
            }
            let headers = answer.response.headers().get_all(header::WWW_AUTHENTICATE);
            let challenge = Challenge::parse(headers.iter().filter_map(|value| value.to_str().ok()));
            let Some(challenge) = challenge else {
                return Ok(answer.response);
            };
            if token.is_some() && !matches!(challenge, Challenge::Bearer { .. }) {
                return Ok(answer.response);
            }
            let mut grant = endpoint.grant.lock().await;
            if grant.serial == serial {
                grant.challenge = Some(challenge);
                grant.token = None;
            }
            drop(grant);
            authorised = true;
        }
    }

    /// One exchange; settles whether a loopback host speaks TLS.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        path: &str,
        public: &HeaderMap,
        private: HeaderMap,
    ) -> Result<Answer, Failure> {
        let build = |https: bool, private: HeaderMap| -> Result<Ask, Failure> {
            Ok(Ask {
                method: method.clone(),
                uri: self.uri(endpoint, https, path)?,
                public: public.clone(),
                private,
                body: Bytes::new(),
            })
        };
        let https = endpoint.https.load(Ordering::Relaxed);
        let first = exchange(
            &endpoint.client,
            build(https, private.clone())?,
            self.patience.stall,
        )
        .await;
        let doubtful = match &first {
            Ok(answer) => answer.response.status() == StatusCode::BAD_REQUEST,
            Err(failure) => failure.not_http,
        };
        if https || !doubtful || endpoint.settled.load(Ordering::Relaxed) {
            if first.is_ok() {
                endpoint.settled.store(true, Ordering::Relaxed);
            }
            return first;
        }
        match exchange(&endpoint.client, build(true, private)?, self.patience.stall).await {
            Ok(answer) => {
                endpoint.https.store(true, Ordering::Relaxed);
                endpoint.settled.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Err(_) => first,
        }
    }

    /// `SCHEME://HOST/v2/PATH/WHAT`, with the registry that a mirror stands for.
    fn uri(&self, endpoint: &Endpoint, https: bool, what: &str) -> Result<Uri, Failure> {
        let scheme = if https { "https" } else { "http" };
        let Host { authority, path, .. } = &endpoint.host;
        let registry = self.reference.host.as_str();
        let own = authority.as_str() == registry
            || (registry == "docker.io" && authority.as_str() == "registry-1.docker.io");
        let query = if own {
            String::new()
        } else {
            format!("?{}", form(&[("ns", registry)]))
        };
        format!(
            "{scheme}://{authority}{path}/{}/{what}{query}",
            self.reference.path
        )
        .parse()
        .map_err(|e| Failure::lasting(Kind::Internal, format!("make a URL: {e}")))
    }

    /// The token to show to `endpoint`, fetched when it demanded one, and its serial.
    async fn token(&self, endpoint: &Endpoint) -> Result<(Option<Token>, u64), Failure> {
        let mut grant = endpoint.grant.lock().await;
        if grant.token.as_ref().is_some_and(Token::is_fresh) || grant.challenge.is_none() {
            return Ok((grant.token.clone(), grant.serial));
        }
        let token = match (&grant.challenge, &endpoint.credentials) {
            (_, Credentials::Token(token)) => Some(Token::bearer(token)),
            (Some(Challenge::Basic), Credentials::Password { user, password }) => {
                Some(Token::basic(user, password))
            }
            (Some(Challenge::Basic), Credentials::Identity(_)) => {
                return Err(Failure::lasting(
                    Kind::Unauthenticated,
                    "demands a user and password; an identity token was given",
                ));
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                    ..
                }),
                credentials,
            ) => Some(
                self.fetch_token(endpoint, realm, service, scope, credentials)
                    .await?,
            ),
            // Anonymous against basic: the refusal is the registry's to say.
            _ => None,
        };
        grant.token.clone_from(&token);
        grant.serial += 1;
        Ok((token, grant.serial))
    }

    /// Asks the token service (distribution's token and OAuth2 specifications).
    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: &str,
        scope: &str,
        credentials: &Credentials,
    ) -> Result<Token, Failure> {
        let wrong = |message: String| Failure::lasting(Kind::Unauthenticated, message);
        let uri: Uri = realm
            .parse()
            .ok()
            .filter(|uri: &Uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
            })
            .ok_or_else(|| wrong("names a token service that is not a URL".into()))?;
        let place = format!("token service {}", super::http_client::origin(&uri));
        if endpoint.https.load(Ordering::Relaxed) && uri.scheme_str() != Some("https") {
            return Err(wrong(format!(
                "{place} is without TLS although the registry has it; not used"
            )));
        }
        let own = format!("repository:{}:pull", self.reference.path);
        let scope = if scope.is_empty() { own.as_str() } else { scope };
        let mut ask = Ask {
            method: Method::GET,
            uri,
            public: HeaderMap::new(),
            private: HeaderMap::new(),
            body: Bytes::new(),
        };
        ask.public
            .insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Credentials::Identity(identity) = credentials {
            ask.method = Method::POST;
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            ask.public.insert(header::CONTENT_TYPE, kind);
            let fields = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("client_id", "berth"),
                ("scope", scope),
                ("refresh_token", identity),
            ];
            ask.body = form(&fields).into();
        } else {
            let mut pairs: Vec<(&str, &str)> = scope.split(' ').map(|scope| ("scope", scope)).collect();
            if !service.is_empty() {
                pairs.insert(0, ("service", service));
            }
            let joint = if ask.uri.query().is_some() { '&' } else { '?' };
            ask.uri = format!("{}{joint}{}", ask.uri, form(&pairs))
                .parse()
                .map_err(|e| wrong(format!("{place}: {e}")))?;
            if let Credentials::Password { user, password } = credentials {
                let basic = Token::basic(user, password);
                ask.private
                    .insert(header::AUTHORIZATION, sensitive(&basic.header)?);
            }
        }
        let at_service = |mut failure: Failure| {
            failure.message = format!("{place}: {}", failure.message);
            failure
        };
        let patience = self.patience.stall;
        let answer = exchange(&endpoint.client, ask, patience)
            .await
            .map_err(at_service)?;
        if answer.response.status() != StatusCode::OK {
            let mut failure = refusal(answer.response, patience).await;
            // 400 is how some answer to wrong credentials; 404 is not about the image.
            if matches!(failure.kind, Kind::FailedPrecondition | Kind::NotFound) {
                failure.kind = Kind::Unauthenticated;
            }
            return Err(at_service(failure));
        }
        let body = read_body(answer.response.into_body(), MAX_TOKEN, patience)
            .await
            .map_err(at_service)?;
        Token::parse(&body).ok_or_else(|| wrong(format!("{place} answered without a token")))
    }
}

impl Endpoint {
    /// `https://host:port`, for people.
    pub fn name(&self) -> String {
        let scheme = if self.https.load(Ordering::Relaxed) {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.host.authority)
    }
}

fn sensitive(value: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        Failure::lasting(
            Kind::InvalidArgument,
            "the credentials hold characters that HTTP cannot send",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn content_digest(response: &Response<Incoming>) -> Option<&str> {
    response.headers().get("docker-content-digest")?.to_str().ok()
}

/// N of `Content-Range: bytes N-M/SIZE`.
fn range_start(response: &Response<Incoming>) -> Option<u64> {
    let value = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    value
        .trim()
        .strip_prefix("bytes")?
        .trim_start()
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}
