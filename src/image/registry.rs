//! The client of the registries' HTTP API (OCI distribution 1.1): one
//! [`Session`] per pull, over the hosts that may answer ([`Endpoint`]).

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use http::{Method, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    auth::AuthConfig,
    body::Body,
    digest::Digest,
    endpoint::Endpoint,
    error::{Error, Refusal},
    hosts,
    http_client::{Failure, refusal},
    manifest::{ACCEPT, Descriptor, MAX_CONFIG, MAX_MANIFEST},
    reference::{Reference, Version},
    tls::Roots,
};
use crate::{kind::Kind, telemetry::metrics::metrics};

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
    pub taken: Taken,
    auth: AuthConfig,
    endpoints: Vec<Endpoint>,
}

/// What a session took from registries so far.
#[derive(Debug, Default)]
pub struct Taken {
    bytes: AtomicU64,
    layers: AtomicU64,
}

impl Taken {
    /// Bytes of a layer have come.
    pub fn bytes(&self, count: u64) {
        self.bytes.fetch_add(count, Relaxed);
        metrics().pulled_bytes.inc_by(count);
    }

    /// A layer is here whole.
    pub fn layer(&self) {
        self.layers.fetch_add(1, Relaxed);
    }

    /// Bytes and layers.
    pub fn so_far(&self) -> (u64, u64) {
        (self.bytes.load(Relaxed), self.layers.load(Relaxed))
    }
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
    pub body: Body,
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
                let credentials = auth.for_host(host.authority.as_str())?;
                Endpoint::new(host, &reference, credentials, roots, patience.stall)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Session {
            reference,
            patience,
            taken: Taken::default(),
            auth,
            endpoints,
        })
    }

    /// The hosts that may serve content by digest.
    pub fn pull_hosts(&self) -> Vec<&Endpoint> {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.may_pull())
            .collect()
    }

    /// What the tag means now, by HEAD; `None` when no host says so (the
    /// manifest is then fetched, and tells why).
    pub async fn head(&self) -> Option<Digest> {
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.may_resolve()) {
            let path = format!("manifests/{}", self.reference.version);
            let response = endpoint.send(Method::HEAD, &path, ACCEPT, None).await.ok()?;
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
            Some(_) => endpoint.may_pull(),
            None => endpoint.may_resolve(),
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
        let response = endpoint.send(Method::GET, path, accept, None).await?;
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
        let body = Body::new(response.into_body(), self.patience.stall)
            .whole(limit)
            .await?;
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
        let response = endpoint.send(Method::GET, &path, "*/*", range).await?;
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
            body: Body::new(response.into_body(), self.patience.stall),
            start,
        })
    }
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
