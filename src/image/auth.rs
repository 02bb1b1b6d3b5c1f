//! Who pulls: the credentials of a request, the challenges of a registry, and
//! the tokens between them.
//!
//! No type of this file shows a secret in `Debug`.

use std::{
    fmt,
    time::{Duration, Instant},
};

use base64::Engine as _;
use serde::Deserialize;

use super::error::Error;

/// Credentials of a pull, as the CRI gives them. At most one of the forms is
/// used, in this order: registry token, user and password, identity token, `auth`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct AuthConfig {
    pub username: String,
    pub password: String,
    /// Base64 of `user:password`.
    pub auth: String,
    /// The host that they are for, with or without scheme; empty: whichever
    /// host asks while this image is pulled.
    pub server_address: String,
    /// A refresh token of the registry's token service.
    pub identity_token: String,
    /// A bearer token for the registry itself.
    pub registry_token: String,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// What is shown to a host that asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    /// Exchanged at the token service.
    Identity(String),
    /// Shown to the registry as it is.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Password { .. } => "Password",
            Credentials::Identity(_) => "Identity",
            Credentials::Token(_) => "Token",
        })
    }
}

impl AuthConfig {
    /// What `host` (with port, if it was named) gets to see.
    pub fn for_host(&self, host: &str) -> Result<Credentials, Error> {
        if !self.server_address.is_empty() && !same_host(&self.server_address, host) {
            return Ok(Credentials::Anonymous);
        }
        Ok(if !self.registry_token.is_empty() {
            Credentials::Token(self.registry_token.clone())
        } else if !self.username.is_empty() {
            Credentials::Password {
                user: self.username.clone(),
                password: self.password.clone(),
            }
        } else if !self.identity_token.is_empty() {
            Credentials::Identity(self.identity_token.clone())
        } else if !self.auth.is_empty() {
            let (user, password) = decode(&self.auth)?;
            Credentials::Password { user, password }
        } else {
            Credentials::Anonymous
        })
    }

    /// Whether `text` holds one of the secrets, so that it must not be shown.
    pub fn taints(&self, text: &str) -> bool {
        let decoded = decode(&self.auth)
            .map(|(_, password)| password)
            .unwrap_or_default();
        [
            &self.password,
            &self.auth,
            &self.identity_token,
            &self.registry_token,
            &decoded,
        ]
        .into_iter()
        .any(|secret| !secret.is_empty() && text.contains(secret.as_str()))
    }
}

fn decode(auth: &str) -> Result<(String, String), Error> {
    let wrong = |message: &str| Error::Credentials {
        message: message.to_owned(),
    };
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let bytes = engine
        .decode(auth.trim())
        .map_err(|_| wrong("\"auth\" is not base64 of user:password"))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("\"auth\" does not decode to text"))?;
    let (user, password) = text
        .split_once(':')
        .ok_or_else(|| wrong("\"auth\" decodes to a text without a colon between user and password"))?;
    Ok((user.to_owned(), password.trim_matches('\0').to_owned()))
}

/// Whether a server address as Docker's config files write it
/// (`https://index.docker.io/v1/`, `r.example:5000`) is `host`.
fn same_host(address: &str, host: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let named = rest.split('/').next().unwrap_or_default();
    let hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    named.eq_ignore_ascii_case(host) || (hub(named) && hub(host))
}

/// One demand of a `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: String,
        /// As the registry wrote it; empty when it named none.
        scope: String,
        /// `invalid_token`, `insufficient_scope`; empty on the first demand.
        error: String,
    },
}

impl Challenge {
    /// The challenge to answer of all the headers of a response: bearer before basic.
    pub fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let mut basic = None;
        for header in headers {
            for (scheme, params) in challenges(header) {
                let param = |name: &str| {
                    let found = params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone()).unwrap_or_default()
                };
                if scheme.eq_ignore_ascii_case("bearer") && !param("realm").is_empty() {
                    return Some(Challenge::Bearer {
                        realm: param("realm"),
                        service: param("service"),
                        scope: param("scope"),
                        error: param("error"),
                    });
                }
                if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Challenge::Basic);
                }
            }
        }
        basic
    }
}

/// Reads `scheme key=value, key="quoted, \"value\"", scheme2 ...` (RFC 9110, 11.6.1).
fn challenges(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let after = after.trim_start_matches([' ', '\t']);
        let Some(value) = after.strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = read_value(value.trim_start_matches([' ', '\t']));
        if let Some((_, params)) = found.last_mut() {
            params.push((word.to_owned(), value));
        }
        rest = after;
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A quoted string or a bare word, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

/// An `Authorization` header that worked, and until when.
#[derive(Clone)]
pub struct Token {
    pub header: String,
    expires: Option<Instant>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// `Basic`, which does not expire.
    pub fn basic(user: &str, password: &str) -> Token {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        Token {
            header: format!("Basic {pair}"),
            expires: None,
        }
    }

    /// A bearer token given as it is.
    pub fn bearer(token: &str) -> Token {
        Token {
            header: format!("Bearer {token}"),
            expires: None,
        }
    }

    /// Reads a token service's answer. Without `expires_in` it is good for 60
    /// seconds (distribution's token specification).
    pub fn parse(body: &[u8]) -> Option<Token> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
            #[serde(default)]
            expires_in: Option<u64>,
        }
        let answer: Answer = serde_json::from_slice(body).ok()?;
        let token = [answer.access_token, answer.token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())?;
        let seconds = answer.expires_in.unwrap_or(60).clamp(1, 86_400);
        // A little early, for the way to the registry.
        let margin = (seconds / 10).min(10);
        Some(Token {
            header: format!("Bearer {token}"),
            expires: Some(Instant::now() + Duration::from_secs(seconds - margin)),
        })
    }

    pub fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|at| Instant::now() < at)
    }
}

/// `application/x-www-form-urlencoded` of pairs, for query strings and forms.
pub fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte))
                }
                other => text.push_str(&format!("%{other:02X}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_credentials() {
        let auth = AuthConfig {
            auth: "dXNlcjpwYTpzcw==".into(),
            ..AuthConfig::default()
        };
        let expected = Credentials::Password {
            user: "user".into(),
            password: "pa:ss".into(),
        };
        assert_eq!(auth.for_host("r.example").unwrap(), expected);
        for wrong in ["%%%", "dXNlcg==", "//79"] {
            let auth = AuthConfig {
                auth: wrong.into(),
                ..AuthConfig::default()
            };
            assert!(auth.for_host("r.example").is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_for_the_host_they_name() {
        for (address, host, shown) in [
            ("r.example:5000", "r.example:5000", true),
            ("https://r.example:5000/v2/", "r.example:5000", true),
            ("r.example", "r.example:5000", false),
            ("evil.example", "r.example", false),
            ("https://index.docker.io/v1/", "registry-1.docker.io", true),
            ("", "r.example", true),
        ] {
            let auth = AuthConfig {
                username: "u".into(),
                server_address: address.into(),
                ..AuthConfig::default()
            };
            let seen = auth.for_host(host).unwrap() != Credentials::Anonymous;
            assert_eq!(seen, shown, "{address} {host}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let auth = AuthConfig {
            username: "u".into(),
            password: "hidden1".into(),
            auth: "hidden2".into(),
            identity_token: "hidden3".into(),
            registry_token: "hidden4".into(),
            ..AuthConfig::default()
        };
        let shown = format!(
            "{auth:?} {:?} {:?}",
            auth.for_host("x").unwrap(),
            Token::bearer("hidden5")
        );
        assert!(!shown.contains("hidden"), "{shown}");
        assert!(auth.taints("xhidden3x") && !auth.taints("u"));
    }

    #[test]
    fn challenges_are_read() {
        let parse = |text: &str| Challenge::parse([text].into_iter());
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.into(),
                scope: scope.into(),
                error: String::new(),
            })
        };
        assert_eq!(
            parse(r#"Bearer realm="https://a/t",service="s, \"x\"",scope="repository:a/b:pull,push""#),
            bearer("https://a/t", "s, \"x\"", "repository:a/b:pull,push")
        );
        assert_eq!(
            parse("bearer realm=http://a/t , service=s"),
            bearer("http://a/t", "s", "")
        );
        assert_eq!(parse(r#"Basic realm="x", Bearer realm="y""#), bearer("y", "", ""));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(parse("Negotiate"), None);
        assert_eq!(parse("Bearer"), None);
    }

    #[test]
    fn a_token_answer_is_read() {
        assert_eq!(Token::parse(br#"{"token":"a"}"#).unwrap().header, "Bearer a");
        assert_eq!(
            Token::parse(br#"{"token":null,"access_token":"b"}"#)
                .unwrap()
                .header,
            "Bearer b"
        );
        assert!(Token::parse(br#"{"token":""}"#).is_none());
        assert!(Token::parse(b"<html>").is_none());
    }

    proptest! {
        #[test]
        fn any_header_is_read(text in "\\PC{0,80}") {
            let _ = Challenge::parse([text.as_str()].into_iter());
        }
    }
}
