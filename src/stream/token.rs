//! One-time tokens: the secret part of a streaming URL. Whoever has the URL may
//! use it once, within a minute, for the request it was made for.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{AttachRequest, Error, ExecRequest, PortForwardRequest};

/// How long a token may wait for its use.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that wait at the same time.
pub(super) const LIMIT: usize = 1000;
/// Random bytes of a token: not to be guessed within its minute.
const BYTES: usize = 16;

/// What a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    /// The first segment of its URL's path.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Request::Exec(_) => "exec",
            Request::Attach(_) => "attach",
            Request::PortForward(_) => "portforward",
        }
    }
}

/// The tokens that wait for their use.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    waiting: Mutex<HashMap<String, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    expires: Instant,
}

impl Tokens {
    /// Makes a token for the request.
    pub(super) fn insert(&self, request: Request, now: Instant) -> Result<String, Error> {
        let mut random = [0; BYTES];
        getrandom::fill(&mut random).map_err(Error::Random)?;
        let token = URL_SAFE_NO_PAD.encode(random);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= LIMIT {
            waiting.retain(|_, entry| entry.expires > now);
        }
        if waiting.len() >= LIMIT {
            return Err(Error::TooManyTokens {
                limit: LIMIT,
                seconds: LIFETIME.as_secs(),
            });
        }
        let expires = now + LIFETIME;
        waiting.insert(token.clone(), Waiting { request, expires });
        Ok(token)
    }

    /// Takes the token's request out; None when there is none, when it is too old,
    /// or when it was made for another verb (the token is spent all the same).
    pub(super) fn consume(&self, verb: &str, token: &str, now: Instant) -> Option<Request> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = waiting.remove(token)?;
        (entry.expires > now && entry.request.verb() == verb).then_some(entry.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::PortForward(PortForwardRequest {
            sandbox: "s".into(),
            ports: Vec::new(),
        })
    }

    #[test]
    fn a_token_is_used_once() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.insert(request(), now).unwrap();
        assert_eq!(token.len(), 22);
        assert_eq!(tokens.consume("portforward", &token, now), Some(request()));
        assert_eq!(tokens.consume("portforward", &token, now), None);
    }

    #[test]
    fn a_token_is_for_one_verb_and_one_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.insert(request(), now).unwrap();
        assert_eq!(tokens.consume("exec", &token, now), None);
        let token = tokens.insert(request(), now).unwrap();
        assert_eq!(tokens.consume("portforward", &token, now + LIFETIME), None);
    }

    #[test]
    fn the_limit_counts_only_what_is_alive() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..LIMIT {
            tokens.insert(request(), now).unwrap();
        }
        assert!(matches!(
            tokens.insert(request(), now),
            Err(Error::TooManyTokens { .. })
        ));
        tokens.insert(request(), now + LIFETIME).unwrap();
        assert_eq!(tokens.waiting.lock().unwrap().len(), 1);
    }
}
