//! A body as it comes from a registry: the wait for it is bounded, its length too,
//! and a sender that drips is as good as one that has stopped.

use std::{
    error::Error as _,
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};

use super::http_client::Failure;
use crate::kind::Kind;

/// Bytes that must come for each second of waiting, on average over the patience: far
/// below any link that a node could be run on.
const PACE: u128 = 1024;

/// A body being read.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    patience: Duration,
    /// Since the pace was last kept. Only waiting counts: what the reader does with
    /// the bytes in between (a slow disk) is not the sender's fault.
    waited: Duration,
    came: u128,
}

impl Body {
    /// Waits no longer than `patience` for the first bytes, and for enough more of them.
    pub fn new(incoming: Incoming, patience: Duration) -> Body {
        Body {
            incoming,
            patience,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let begin = Instant::now();
            let left = self.patience.saturating_sub(self.waited);
            let frame = tokio::time::timeout(left, self.incoming.frame()).await;
            self.waited += begin.elapsed();
            match frame {
                Err(_) => return Err(self.stalled()),
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    // Trailers are nothing to us.
                    let Ok(bytes) = frame.into_data() else { continue };
                    self.came += bytes.len() as u128;
                    if self.came >= PACE * self.patience.as_millis() / 1000 {
                        self.waited = Duration::ZERO;
                        self.came = 0;
                    }
                    return Ok(Some(bytes));
                }
                Ok(Some(Err(e))) => {
                    let cause = e
                        .source()
                        .map_or_else(|| e.to_string(), |source| source.to_string());
                    return Err(Failure::passing(
                        Kind::Unavailable,
                        format!("the connection broke during the transfer: {cause}"),
                    ));
                }
            }
        }
    }

    fn stalled(&self) -> Failure {
        let seconds = self.patience.as_secs_f32();
        let message = match self.came {
            0 => format!("the transfer stalled: no byte for {seconds} s"),
            came => format!("the transfer stalled: {came} bytes in {seconds} s"),
        };
        Failure::passing(Kind::Unavailable, message)
    }

    /// All of it, an error when that is more than `limit` bytes.
    pub async fn whole(mut self, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(more) = self.next().await? {
            if (bytes.len() + more.len()) as u64 > limit {
                return Err(Failure::lasting(
                    Kind::DataLoss,
                    format!("the answer is larger than {limit} bytes"),
                ));
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    /// Its beginning, at most `most` bytes, as far as it comes.
    pub async fn beginning(mut self, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < most {
            match self.next().await {
                Ok(Some(more)) => bytes.extend_from_slice(&more),
                _ => break,
            }
        }
        bytes.truncate(most);
        bytes
    }
}
