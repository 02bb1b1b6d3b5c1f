//! From an HTTP request to a protocol: which transport the client asks for, and
//! which of its protocols we take (the first of the client's that we know: it lists
//! them by preference).

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
        UPGRADE,
    },
};

use super::{status::StatusForm, websocket::Codec, websocket::accept_key};

const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What the connection carries after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// SPDY/3.1; the version of the remote command protocol, if it is one.
    Spdy { version: u8 },
    /// WebSocket with channels.
    WebSocket { codec: Codec, form: StatusForm },
    /// WebSocket with SPDY/3.1 inside.
    Tunnel,
}

/// The SPDY protocols of exec and attach.
const COMMAND_VERSIONS: &[(&str, u8)] = &[
    ("v4.channel.k8s.io", 4),
    ("v3.channel.k8s.io", 3),
    ("v2.channel.k8s.io", 2),
    ("channel.k8s.io", 1),
];
/// The SPDY protocols of port-forward.
const FORWARD_VERSIONS: &[(&str, u8)] = &[("portforward.k8s.io", 1)];

const BINARY: Codec = Codec::Binary { closes: false };
const V4: Protocol = Protocol::WebSocket {
    codec: BINARY,
    form: StatusForm::Object,
};
const V4_BASE64: Protocol = Protocol::WebSocket {
    codec: Codec::Base64,
    form: StatusForm::Object,
};
const V1: Protocol = Protocol::WebSocket {
    codec: BINARY,
    form: StatusForm::Text,
};
const V1_BASE64: Protocol = Protocol::WebSocket {
    codec: Codec::Base64,
    form: StatusForm::Text,
};
const V5: Protocol = Protocol::WebSocket {
    codec: Codec::Binary { closes: true },
    form: StatusForm::Object,
};

/// The WebSocket protocols of exec and attach; "" is a client that names none.
const COMMAND_CHANNELS: &[(&str, Protocol)] = &[
    ("v5.channel.k8s.io", V5),
    ("v4.channel.k8s.io", V4),
    ("v4.base64.channel.k8s.io", V4_BASE64),
    ("v3.channel.k8s.io", V1),
    ("v2.channel.k8s.io", V1),
    ("channel.k8s.io", V1),
    ("base64.channel.k8s.io", V1_BASE64),
    ("", V1),
];
/// The WebSocket protocols of port-forward.
const FORWARD_CHANNELS: &[(&str, Protocol)] = &[
    ("SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
    ("v4.channel.k8s.io", V4),
    ("v4.base64.channel.k8s.io", V4_BASE64),
    ("", V4),
];

/// An answer without a body, or with a line of text.
pub(super) type Answer = Response<String>;

/// An answer that says why not; boxed, for it is rare and large.
pub(super) type Refusal = Box<Answer>;

/// The protocol and the 101 that confirms it, or the answer that says why not.
pub(super) fn negotiate<B>(verb: &str, request: &Request<B>) -> Result<(Protocol, Answer), Refusal> {
    let headers = request.headers();
    if !values(headers, &CONNECTION).any(|value| value.eq_ignore_ascii_case("upgrade")) {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: no upgrade was asked for",
        ));
    }
    let mut upgrades = values(headers, &UPGRADE);
    match upgrades.find_map(|value| match value.to_ascii_lowercase().as_str() {
        "websocket" => Some(true),
        "spdy/3.1" => Some(false),
        _ => None,
    }) {
        Some(true) => websocket(verb, request),
        Some(false) => spdy(verb, headers),
        None => Err(refusal(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: only SPDY/3.1 and websocket are served",
        )),
    }
}

fn spdy(verb: &str, headers: &HeaderMap) -> Result<(Protocol, Answer), Refusal> {
    let known = if verb == "portforward" {
        FORWARD_VERSIONS
    } else {
        COMMAND_VERSIONS
    };
    let mut asked = values(headers, &VERSION).peekable();
    if asked.peek().is_none() {
        let message = "unable to upgrade: header X-Stream-Protocol-Version is missing or empty";
        return Err(refusal(StatusCode::BAD_REQUEST, message));
    }
    let Some((name, version)) = asked.find_map(|name| known.iter().find(|(have, _)| *have == name)) else {
        let message = "unable to upgrade: none of the client's stream protocol versions is known";
        let mut answer = refusal(StatusCode::FORBIDDEN, message);
        for (name, _) in known {
            answer
                .headers_mut()
                .append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(answer);
    };
    let mut answer = switching("SPDY/3.1");
    answer
        .headers_mut()
        .insert(VERSION, HeaderValue::from_static(name));
    Ok((Protocol::Spdy { version: *version }, answer))
}

fn websocket<B>(verb: &str, request: &Request<B>) -> Result<(Protocol, Answer), Refusal> {
    let headers = request.headers();
    if request.method() != http::Method::GET {
        return Err(refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "a websocket is opened with GET",
        ));
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version.as_bytes() != b"13")
    {
        let mut answer = refusal(StatusCode::UPGRADE_REQUIRED, "websocket version 13 is needed");
        answer
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|key| accept_key(key.to_str().ok()?.trim()));
    let Some(key) = key.and_then(|key| HeaderValue::try_from(key).ok()) else {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Key is missing or malformed",
        ));
    };
    let known = if verb == "portforward" {
        FORWARD_CHANNELS
    } else {
        COMMAND_CHANNELS
    };
    let mut asked = values(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    let chosen = match asked.peek() {
        None => known.iter().find(|(have, _)| have.is_empty()),
        Some(_) => asked.find_map(|name| known.iter().find(|(have, _)| *have == name)),
    };
    let Some((name, protocol)) = chosen else {
        let message = "none of the client's websocket protocols is known";
        return Err(refusal(StatusCode::FORBIDDEN, message));
    };
    let mut answer = switching("websocket");
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, key);
    if !name.is_empty() {
        answer
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((*protocol, answer))
}

/// The members of a header's comma separated lists, without empty ones.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lists = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

fn switching(to: &'static str) -> Answer {
    let mut answer = Response::new(String::new());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

/// An answer that says why a request is not served.
pub(super) fn refusal(status: StatusCode, message: &str) -> Refusal {
    let mut answer = Response::new(format!("{message}\n"));
    *answer.status_mut() = status;
    Box::new(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &'static str)]) -> Request<()> {
        let mut builder = Request::get("/exec/x");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn spdy_with(versions: &'static str) -> Result<(Protocol, Answer), Refusal> {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", versions),
        ];
        negotiate("exec", &request(&headers))
    }

    fn websocket_with(verb: &str, protocols: &'static str) -> Result<(Protocol, Answer), Refusal> {
        let headers = [
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", protocols),
        ];
        negotiate(verb, &request(&headers))
    }

    #[test]
    fn the_first_known_version_of_the_client_is_taken() {
        let (protocol, answer) = spdy_with("v9.channel.k8s.io, v4.channel.k8s.io,channel.k8s.io").unwrap();
        assert_eq!(protocol, Protocol::Spdy { version: 4 });
        assert_eq!(answer.headers()[VERSION], "v4.channel.k8s.io");
        assert_eq!(
            spdy_with("channel.k8s.io").unwrap().0,
            Protocol::Spdy { version: 1 }
        );
    }

    #[test]
    fn unknown_versions_are_answered_with_the_known_ones() {
        let answer = spdy_with("v9.channel.k8s.io").unwrap_err();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(answer.headers().get_all(ACCEPTED_VERSIONS).iter().count(), 4);
        assert_eq!(spdy_with("").unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn websocket_protocols() {
        let cases = [
            (
                "exec",
                "v5.channel.k8s.io,v4.channel.k8s.io",
                V5,
                "v5.channel.k8s.io",
            ),
            (
                "exec",
                "v4.base64.channel.k8s.io",
                V4_BASE64,
                "v4.base64.channel.k8s.io",
            ),
            (
                "attach",
                "base64.channel.k8s.io",
                V1_BASE64,
                "base64.channel.k8s.io",
            ),
            ("attach", "", V1, ""),
            (
                "portforward",
                "SPDY/3.1+portforward.k8s.io",
                Protocol::Tunnel,
                "SPDY/3.1+portforward.k8s.io",
            ),
            ("portforward", "", V4, ""),
        ];
        for (verb, asked, expected, named) in cases {
            let (protocol, answer) = websocket_with(verb, asked).unwrap();
            assert_eq!(protocol, expected, "{asked}");
            let answered = answer
                .headers()
                .get(SEC_WEBSOCKET_PROTOCOL)
                .map_or("", |v| v.to_str().unwrap());
            assert_eq!(answered, named);
        }
        let refused = websocket_with("portforward", "v5.channel.k8s.io").unwrap_err();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn a_plain_request_is_refused() {
        let answer = negotiate("exec", &request(&[])).unwrap_err();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
}
