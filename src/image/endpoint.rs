//! One host as a pull talks to it: its client, what it demanded, the tokens that
//! it takes.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper::body::{Bytes, Incoming};
use tokio::sync::Mutex;

use super::{
    auth::{Challenge, Credentials, Token, form},
    body::Body,
    error::Error,
    hosts::Host,
    http_client::{Answer, Ask, Failure, exchange, origin, refusal},
    reference::Reference,
    tls::{self, HttpClient, Roots},
};
use crate::kind::Kind;

const USER_AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));
/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 256 << 10;

/// One host of the session.
#[derive(Debug)]
pub struct Endpoint {
    host: Host,
    client: HttpClient,
    /// Whose images are asked for: registry and path of the reference.
    registry: String,
    repository: String,
    /// Longest wait for an answer.
    stall: Duration,
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

impl Endpoint {
    /// `host` for the images of `reference`. Reads certificates: blocks.
    pub fn new(
        host: Host,
        reference: &Reference,
        credentials: Credentials,
        roots: &Roots,
        stall: Duration,
    ) -> Result<Endpoint, Error> {
        Ok(Endpoint {
            client: tls::client(&host, roots)?,
            registry: reference.host.clone(),
            repository: reference.path.clone(),
            stall,
            credentials,
            https: AtomicBool::new(host.https),
            settled: AtomicBool::new(!host.guessed),
            grant: Mutex::default(),
            host,
        })
    }

    /// May answer for content by digest.
    pub fn may_pull(&self) -> bool {
        self.host.pull
    }

    /// May say what a tag means.
    pub fn may_resolve(&self) -> bool {
        self.host.resolve
    }

    /// Sends a request of the repository (`path` in it), answering demands for
    /// credentials.
    pub async fn send(
        &self,
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
            let (token, serial) = self.token().await?;
            let mut private = self.host.headers.clone();
            if let Some(token) = &token {
                private.insert(header::AUTHORIZATION, sensitive(&token.header)?);
            }
            let answer = self.ask(&method, path, &public, private).await?;
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
            let mut grant = self.grant.lock().await;
            if grant.serial == serial {
                grant.challenge = Some(challenge);
                grant.token = None;
            }
            drop(grant);
            authorised = true;
        }
    }

    /// `https://host:port`, for people.
    pub fn name(&self) -> String {
        let scheme = if self.https.load(Ordering::Relaxed) {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.host.authority)
    }

    /// One exchange; settles whether a loopback host speaks TLS.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        public: &HeaderMap,
        private: HeaderMap,
    ) -> Result<Answer, Failure> {
        let build = |https: bool, private: HeaderMap| -> Result<Ask, Failure> {
            Ok(Ask {
                method: method.clone(),
                uri: self.uri(https, path)?,
                public: public.clone(),
                private,
                body: Bytes::new(),
            })
        };
        let https = self.https.load(Ordering::Relaxed);
        let first = exchange(&self.client, build(https, private.clone())?, self.stall).await;
        let doubtful = match &first {
            Ok(answer) => answer.response.status() == StatusCode::BAD_REQUEST,
            Err(failure) => failure.not_http,
        };
        if https || !doubtful || self.settled.load(Ordering::Relaxed) {
            if first.is_ok() {
                self.settled.store(true, Ordering::Relaxed);
            }
            return first;
        }
        match exchange(&self.client, build(true, private)?, self.stall).await {
            Ok(answer) => {
                self.https.store(true, Ordering::Relaxed);
                self.settled.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Err(_) => first,
        }
    }

    /// `SCHEME://HOST/v2/PATH/WHAT`, with the registry that a mirror stands for.
    fn uri(&self, https: bool, what: &str) -> Result<Uri, Failure> {
        let scheme = if https { "https" } else { "http" };
        let Host { authority, path, .. } = &self.host;
        let registry = self.registry.as_str();
        let own = authority.as_str() == registry
            || (registry == "docker.io" && authority.as_str() == "registry-1.docker.io");
        let query = if own {
            String::new()
        } else {
            format!("?{}", form(&[("ns", registry)]))
        };
        format!("{scheme}://{authority}{path}/{}/{what}{query}", self.repository)
            .parse()
            .map_err(|e| Failure::lasting(Kind::Internal, format!("make a URL: {e}")))
    }

    /// The token to show, fetched when it demanded one, and its serial.
    async fn token(&self) -> Result<(Option<Token>, u64), Failure> {
        let mut grant = self.grant.lock().await;
        if grant.token.as_ref().is_some_and(Token::is_fresh) || grant.challenge.is_none() {
            return Ok((grant.token.clone(), grant.serial));
        }
        let token = match (&grant.challenge, &self.credentials) {
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
            ) => Some(self.fetch_token(realm, service, scope, credentials).await?),
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
        let place = format!("token service {}", origin(&uri));
        if self.https.load(Ordering::Relaxed) && uri.scheme_str() != Some("https") {
            return Err(wrong(format!(
                "{place} is without TLS although the registry has it; not used"
            )));
        }
        let own = format!("repository:{}:pull", self.repository);
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
        let patience = self.stall;
        let answer = exchange(&self.client, ask, patience).await.map_err(at_service)?;
        if answer.response.status() != StatusCode::OK {
            let mut failure = refusal(answer.response, patience).await;
            // 400 is how some answer to wrong credentials; 404 is not about the image.
            if matches!(failure.kind, Kind::FailedPrecondition | Kind::NotFound) {
                failure.kind = Kind::Unauthenticated;
            }
            return Err(at_service(failure));
        }
        let body = Body::new(answer.response.into_body(), patience);
        let body = body.whole(MAX_TOKEN).await.map_err(at_service)?;
        Token::parse(&body).ok_or_else(|| wrong(format!("{place} answered without a token")))
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
