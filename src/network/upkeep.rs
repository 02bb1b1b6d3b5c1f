//! What is done for CNI networks besides pods' coming and going: GC, and CHECK of
//! the pods that are there.

use std::sync::PoisonError;

use super::{
    Error, Network,
    cni::Conflist,
    netns,
    record::{Record, Via},
};

impl Network {
    /// Tells the plugins of every network that knows GC which pods are attached, so
    /// that they give back what belongs to no other (addresses, rules). Nothing is
    /// told while no pod of the network is recorded: then the records say too
    /// little, for they may be new on a node where another runtime has pods in the
    /// same network. All errors are returned.
    pub async fn collect_garbage(&self) -> Vec<Error> {
        let cni = &self.inner.cni;
        let mut errors = Vec::new();
        for list in cni.with_garbage() {
            let alone = match cni.alone(&list).await {
                Ok(alone) => alone,
                Err(e) => {
                    errors.push(e.into());
                    continue;
                }
            };
            match self.attached_to(&list) {
                Ok(valid) if valid.is_empty() => {}
                Ok(valid) => {
                    tracing::debug!(network = list.name, attached = valid.len(), "CNI GC");
                    let failed = cni.collect(&alone, &list, &valid).await;
                    errors.extend(failed.into_iter().map(Error::from));
                }
                // One that cannot be read could be of this network.
                Err(e) => errors.push(e),
            }
        }
        errors
    }

    /// The sandboxes that are in the network, half-made ones too: those end by DEL.
    fn attached_to(&self, list: &Conflist) -> Result<Vec<String>, Error> {
        let mut valid = Vec::new();
        for id in self.inner.store.network_sandboxes()? {
            if let Some(record) = Record::read(&self.inner.store, &id)?
                && matches!(&record.via, Via::Cni(of) if of.name == list.name)
            {
                valid.push(id);
            }
        }
        Ok(valid)
    }

    /// Asks the plugins, one pod after the other, whether the networks of the pods
    /// are still as they were made. What they say is logged and kept, see
    /// [`Network::broken`]. A network whose plugins take too long is left alone.
    pub async fn check_pods(&self) -> Result<(), Error> {
        let mut slow: Option<String> = None;
        for id in self.inner.store.network_sandboxes()? {
            // One that is coming or going is not to be looked at.
            let busy = self.inner.busy(&id);
            let Ok(_alone) = busy.try_lock() else {
                continue;
            };
            let Some(record) = Record::read(&self.inner.store, &id)? else {
                continue;
            };
            let (Via::Cni(list), Some(result)) = (&record.via, record.result()) else {
                continue;
            };
            if slow.as_ref() == Some(&list.name) || !netns::is_namespace(&record.pod.netns) {
                continue;
            }
            match self.inner.cni.check(list, &record.pod, result).await {
                Ok(()) => self.inner.forget_check(&id),
                Err(error) => {
                    let pod = format!("{}/{}", record.pod.namespace, record.pod.name);
                    tracing::warn!(sandbox = id, pod, %error, "the pod's network is not as it was made");
                    if error.timed_out() {
                        slow = Some(list.name.clone());
                    }
                    let mut broken = self.inner.broken.lock().unwrap_or_else(PoisonError::into_inner);
                    broken.insert(id, error.to_string());
                }
            }
        }
        Ok(())
    }

    /// What CHECK found wrong with the sandbox's network, when it was asked last.
    pub fn broken(&self, id: &str) -> Option<String> {
        let broken = self.inner.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.get(id).cloned()
    }
}

impl super::Inner {
    pub(super) fn forget_check(&self, id: &str) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.remove(id);
    }
}
