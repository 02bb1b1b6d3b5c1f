//! One HTTP exchange: redirects followed by hand, every wait bounded. What is
//! private to a host is not shown to another.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};

use super::{body::Body, tls::HttpClient};
use crate::kind::Kind;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Most of an error's body that is read, in bytes.
const MAX_ERROR_BODY: usize = 8 << 10;
/// Longest answer of a registry that is quoted, in characters.
const MAX_QUOTE: usize = 300;

/// A request: what any host may see, and what only the first may.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    pub uri: Uri,
    pub public: HeaderMap,
    /// Authorization and the headers of `hosts.toml`.
    pub private: HeaderMap,
    pub body: Bytes,
}

/// Why an exchange or a transfer failed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    /// Worth another try at the same host; after this long, if it said so.
    pub retry: Option<Option<Duration>>,
    /// The request was sent, and what came back was not HTTP.
    pub not_http: bool,
}

impl Failure {
    /// One that another try won't change.
    pub fn lasting(kind: Kind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
            retry: None,
            not_http: false,
        }
    }

    /// One that may pass.
    pub fn passing(kind: Kind, message: impl Into<String>) -> Failure {
        Failure {
            retry: Some(None),
            ..Failure::lasting(kind, message)
        }
    }
}

/// An answer, and whether it came from another host than was asked.
#[derive(Debug)]
pub struct Answer {
    pub response: Response<Incoming>,
    pub redirected: bool,
}

/// Sends `ask` and follows redirects of reads. `patience` bounds each wait for
/// an answer's head.
pub async fn exchange(client: &HttpClient, mut ask: Ask, patience: Duration) -> Result<Answer, Failure> {
    let mut redirected = false;
    for _ in 0..=MAX_REDIRECTS {
        let response = send_once(client, &ask, patience).await?;
        let status = response.status();
        let reads = matches!(ask.method, Method::GET | Method::HEAD);
        let moved = matches!(
            status,
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        );
        if !(moved && reads) {
            return Ok(Answer { response, redirected });
        }
        let target = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|location| resolve(&ask.uri, location))
            .ok_or_else(|| {
                Failure::lasting(
                    Kind::Unavailable,
                    format!("{status} without a location that can be followed"),
                )
            })?;
        let (from, to) = (ask.uri.scheme_str(), target.scheme_str());
        if from == Some("https") && to != Some("https") {
            return Err(Failure::lasting(
                Kind::FailedPrecondition,
                format!(
                    "redirects from https to {}, which is not followed",
                    origin(&target)
                ),
            ));
        }
        if origin(&ask.uri) != origin(&target) {
            // For good: also when a later hop comes back (the way between is foreign).
            ask.private.clear();
            redirected = true;
        }
        ask.uri = target;
    }
    Err(Failure::lasting(
        Kind::Unavailable,
        format!("more than {MAX_REDIRECTS} redirects"),
    ))
}

async fn send_once(
    client: &HttpClient,
    ask: &Ask,
    patience: Duration,
) -> Result<Response<Incoming>, Failure> {
    let mut request = Request::new(Full::new(ask.body.clone()));
    *request.method_mut() = ask.method.clone();
    *request.uri_mut() = ask.uri.clone();
    request.headers_mut().extend(ask.public.clone());
    request.headers_mut().extend(ask.private.clone());
    match tokio::time::timeout(patience, client.request(request)).await {
        Err(_) => Err(Failure::passing(
            Kind::Unavailable,
            format!("no answer within {} s", patience.as_secs_f32()),
        )),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(e)) => {
            let connect = e.is_connect();
            let mut failure = Failure::passing(Kind::Unavailable, chain(&e));
            failure.not_http = !connect;
            Err(failure)
        }
    }
}

/// `scheme://host:port`, with the port that is meant.
pub fn origin(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("https");
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    format!(
        "{scheme}://{}:{port}",
        uri.host().unwrap_or_default().to_lowercase()
    )
}

/// The target of a redirect, absolute, `//host/path`, `/path` or relative.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let full = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = full.parse().ok()?;
    let scheme = uri.scheme_str()?;
    (matches!(scheme, "http" | "https") && uri.authority().is_some()).then_some(uri)
}

/// An error and what it stems from, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// The failure that a status other than success is, with the server's own words.
pub async fn refusal(response: Response<Incoming>, patience: Duration) -> Failure {
    let status = response.status();
    let after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| retry_after(text, SystemTime::now()));
    let body = Body::new(response.into_body(), patience.min(Duration::from_secs(5)));
    let said = body.beginning(MAX_ERROR_BODY).await;
    let mut message = format!("HTTP {status}");
    let quote = quote(&said);
    if !quote.is_empty() {
        message = format!("{message}: {quote}");
    }
    let (kind, passes) = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => (Kind::NotFound, false),
        StatusCode::UNAUTHORIZED => (Kind::Unauthenticated, false),
        StatusCode::FORBIDDEN => (Kind::PermissionDenied, false),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (Kind::Unavailable, true),
        status if status.is_server_error() => (Kind::Unavailable, true),
        _ => (Kind::FailedPrecondition, false),
    };
    Failure {
        kind,
        message,
        retry: passes.then_some(after),
        not_http: false,
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3). One that has passed is now.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// What an error's body says: the registry's `errors`, or its text if that is short.
fn quote(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) => {
            let one = |e: &One| format!("{} ({})", e.message, e.code);
            errors.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Err(_) => match std::str::from_utf8(body) {
            Ok(text) if !text.trim_start().starts_with('<') => text.trim().to_owned(),
            _ => String::new(),
        },
    };
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_QUOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y".parse().unwrap();
        for (location, target) in [
            ("https://s.example/b?sig=1#f", "https://s.example/b?sig=1"),
            ("//s.example/b", "https://s.example/b"),
            ("/b?c", "https://r.example:5000/b?c"),
            ("b", "https://r.example:5000/v2/a/blobs/b"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), target);
        }
        for wrong in ["ftp://x/", "file:///etc/passwd", "https://", "http://a b/"] {
            assert!(resolve(&base, wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:49:38 GMT", Some(1)),
            ("Sun Nov  6 08:49:37 1994", Some(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("18446744073709551616", None),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn an_origin_has_its_port() {
        assert_eq!(
            origin(&"https://A.example/x".parse().unwrap()),
            "https://a.example:443"
        );
        assert_ne!(
            origin(&"http://a:80/".parse().unwrap()),
            origin(&"https://a:80/".parse().unwrap())
        );
    }

    #[test]
    fn answers_are_quoted_in_one_line() {
        assert_eq!(
            quote(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown"}]}"#),
            "manifest unknown (MANIFEST_UNKNOWN)"
        );
        assert_eq!(quote(b"<html>nginx"), "");
        assert_eq!(quote(b"no\r\n"), "no");
        assert_eq!(quote(&vec![b'x'; 8000]).len(), MAX_QUOTE);
    }
}
