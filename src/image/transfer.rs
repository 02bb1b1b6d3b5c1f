//! A layer's bytes from the registry's hosts into a channel, each byte once and
//! in order, over however many connections it takes.
//!
//! A broken connection, a short body or a stall is resumed with a range from
//! where it broke, into the same channel; a server without ranges sends the
//! beginning again, which is skipped. Waiting for the channel (a slow disk) is
//! not a stall: only the wait for the network is bounded.

use hyper::body::Bytes;
use tokio::{sync::mpsc, time::sleep};

use super::{
    endpoint::Endpoint, error::Refusal, http_client::Failure, manifest::Descriptor, registry::Session,
};
use crate::kind::Kind;

/// Progress after which an endpoint's tries are counted anew, in bytes: a
/// connection that breaks every now and then is lived with, one that breaks
/// after every few bytes is not.
const PROGRESS: u64 = 1 << 20;

/// How a transfer ended.
#[derive(Debug)]
pub enum Sent {
    /// Every byte was passed on; the last came from this host (index of
    /// [`Session::pull_hosts`]).
    All(usize),
    /// The receiver has stopped; so did the transfer, at this host.
    Unwanted(usize),
    /// No host is left; what each said was added to the refusals.
    Failed,
}

/// Sends the blob into `channel`, asking the hosts from `first` on.
pub async fn send(
    session: &Session,
    blob: &Descriptor,
    first: usize,
    channel: &mpsc::Sender<Bytes>,
    refusals: &mut Vec<Refusal>,
) -> Sent {
    let mut offset = 0;
    for (index, endpoint) in session.pull_hosts().into_iter().enumerate().skip(first) {
        let mut tries = 0;
        let mut counted_from = offset;
        loop {
            tries += 1;
            let failure = match connection(session, endpoint, blob, &mut offset, channel).await {
                Ok(true) => return Sent::All(index),
                Ok(false) => return Sent::Unwanted(index),
                Err(failure) => failure,
            };
            if offset - counted_from >= PROGRESS {
                tries = 1;
                counted_from = offset;
            }
            let Some(pause) = session.patience.pause(&failure, tries) else {
                refusals.push(session.refused(endpoint, at(failure, offset, blob.size)));
                break;
            };
            tracing::debug!(
                layer = %blob.digest, host = endpoint.name(), offset, reason = failure.message,
                "transfer broke off and is resumed"
            );
            sleep(pause).await;
        }
    }
    Sent::Failed
}

/// One connection: from `offset` to the end of the blob. `Ok(false)` when the
/// receiver is gone.
async fn connection(
    session: &Session,
    endpoint: &Endpoint,
    blob: &Descriptor,
    offset: &mut u64,
    channel: &mpsc::Sender<Bytes>,
) -> Result<bool, Failure> {
    if *offset == blob.size {
        return Ok(true);
    }
    let mut from = session.blob(endpoint, blob.digest, *offset).await?;
    let mut position = from.start;
    while let Some(mut bytes) = from.body.next().await? {
        let length = bytes.len() as u64;
        session.taken.bytes(length);
        // Bytes that were already passed on.
        let known = offset.saturating_sub(position).min(length);
        position += length;
        if position > blob.size {
            let message = format!("sends more than the {} bytes that the manifest names", blob.size);
            return Err(Failure::lasting(Kind::DataLoss, message));
        }
        let _ = bytes.split_to(usize::try_from(known).unwrap_or(bytes.len()));
        if bytes.is_empty() {
            continue;
        }
        let sent = bytes.len() as u64;
        if channel.send(bytes).await.is_err() {
            return Ok(false);
        }
        *offset += sent;
        if *offset == blob.size {
            return Ok(true);
        }
    }
    Err(Failure::passing(Kind::DataLoss, "the body ended early"))
}

/// The failure with how far the transfer had come.
fn at(mut failure: Failure, offset: u64, size: u64) -> Failure {
    if offset > 0 {
        failure.message = format!("{} (at byte {offset} of {size})", failure.message);
    }
    failure
}
