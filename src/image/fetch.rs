//! Fetches the layers of one pull, side by side: each is taken from the records,
//! from another pull in flight, or from the registry.

use std::{collections::HashMap, sync::Arc};

use futures_util::stream::{self, StreamExt as _};
use tokio::sync::{mpsc, watch};

use super::{
    Inner,
    digest::Digest,
    error::{Error, Refusal},
    flights::{Fresh, FreshState, Turn},
    layers::Ingest,
    manifest::Descriptor,
    pipeline::{self, Fault},
    registry::Session,
    transfer::{self, Sent},
    unpack::Unpacked,
};
use crate::{
    kind::Kind,
    store::{Store, images as records},
};

/// Brings the layers that the records lack; the answer has those that are not
/// recorded yet. After the first error the others are stopped and waited for, so
/// that nothing is left when this returns.
pub async fn layers(
    inner: &Arc<Inner>,
    session: &Session,
    wanted: Vec<(Descriptor, Digest)>,
) -> Result<HashMap<Digest, Arc<Fresh>>, Error> {
    let (stop, stopped) = watch::channel(false);
    let mut work = stream::iter(wanted.into_iter().map(|(layer, diff_id)| {
        let stopped = stopped.clone();
        async move { (diff_id, one(inner, session, &layer, diff_id, stopped).await) }
    }))
    .buffer_unordered(inner.settings().max_concurrent_layers);
    let mut fetched = HashMap::new();
    let mut failed = None;
    while let Some((diff_id, result)) = work.next().await {
        match result {
            Ok(Some(fresh)) => {
                fetched.insert(diff_id, fresh);
            }
            Ok(None) => {}
            Err(error) => {
                stop.send_replace(true);
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(fetched), Err)
}

/// One layer; `None` when the records have it, or when the pull was stopped.
async fn one(
    inner: &Arc<Inner>,
    session: &Session,
    layer: &Descriptor,
    diff_id: Digest,
    mut stopped: watch::Receiver<bool>,
) -> Result<Option<Arc<Fresh>>, Error> {
    let rows = move |store: &Store| {
        store.read("look for a layer", |c| {
            records::layers_of(c, &diff_id.to_string())
        })
    };
    // Not one that is only said to be there.
    inner.look_at_rows(&session.reference.to_string(), rows).await?;
    let recorded = || -> Result<bool, Error> { Ok(!rows(&inner.store)?.is_empty()) };
    while !*stopped.borrow() {
        if recorded()? {
            return Ok(None);
        }
        match inner.flights.turn(diff_id) {
            Turn::Ready(fresh) => return Ok(Some(fresh)),
            Turn::Wait(mut other) => {
                tokio::select! {
                    _ = other.wait_for(Option::is_some) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            }
            Turn::Yours(flight) => {
                // It may have been recorded between the two looks.
                if recorded()? {
                    return Ok(None);
                }
                let Some((ingest, unpacked)) = fetch(inner, session, layer, diff_id, &mut stopped).await?
                else {
                    return Ok(None);
                };
                let fresh = Fresh::new(Arc::clone(&inner.layers), unpacked, FreshState::Ingested(ingest));
                flight.land(&fresh);
                session.taken.layer();
                return Ok(Some(fresh));
            }
        }
    }
    Ok(None)
}

/// From the registry's hosts, in their order. A host that sends wrong bytes is
/// left for the next one, with a new folder.
async fn fetch(
    inner: &Arc<Inner>,
    session: &Session,
    layer: &Descriptor,
    diff_id: Digest,
    stopped: &mut watch::Receiver<bool>,
) -> Result<Option<(Ingest, Unpacked)>, Error> {
    let object = || format!("layer {} of {}", layer.digest, session.reference);
    let hosts = session.pull_hosts();
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut first = 0;
    let settings = inner.settings();
    loop {
        let (sender, receiver) = mpsc::channel(pipeline::CHANNEL);
        let job = {
            let (inner, layer) = (Arc::clone(inner), layer.clone());
            let settings = Arc::clone(&settings);
            tokio::task::spawn_blocking(move || -> Result<_, Trouble> {
                let ingest = inner.layers.begin().map_err(Error::from)?;
                let unpacked = pipeline::run(receiver, &ingest, &layer, diff_id, &settings.limits)?;
                Ok((ingest, unpacked))
            })
        };
        let sent = tokio::select! {
            sent = transfer::send(session, layer, first, &sender, &mut refusals) => Some(sent),
            _ = stopped.wait_for(|stop| *stop) => None,
        };
        // The end of the stream for the job, which is waited for in every case:
        // its folder is gone, or is the layer.
        drop(sender);
        let outcome = job.await.map_err(|_| Error::Stopped {
            image: session.reference.to_string(),
        })?;
        let host = match sent {
            None => return Ok(None),
            Some(Sent::Failed) => return Err(session.none_left("fetch", object(), refusals)),
            Some(Sent::All(host) | Sent::Unwanted(host)) => host,
        };
        match outcome {
            Ok(done) => return Ok(Some(done)),
            Err(Trouble::Local(error)) => return Err(error),
            Err(Trouble::Fault(Fault::Unpack(source))) => {
                return Err(Error::Unpack {
                    object: object(),
                    source,
                });
            }
            Err(Trouble::Fault(Fault::Image(message))) => {
                return Err(Error::Manifest {
                    object: object(),
                    message,
                });
            }
            Err(Trouble::Fault(Fault::Transfer(message))) => {
                refusals.push(Refusal {
                    host: hosts.get(host).map(|host| host.name()).unwrap_or_default(),
                    kind: Kind::DataLoss,
                    message,
                });
                first = host + 1;
                if first >= hosts.len() {
                    return Err(session.none_left("fetch", object(), refusals));
                }
            }
        }
    }
}

/// What ends the blocking side of a fetch.
enum Trouble {
    Local(Error),
    Fault(Fault),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Local(error)
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Fault(fault)
    }
}
