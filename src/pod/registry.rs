//! All sandboxes and containers of the node, by id. Lists are snapshots; nobody
//! holds the table while working on an object.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{Container, Error, Sandbox, now};
use crate::telemetry::span;

/// The tables.
#[derive(Debug, Default)]
pub struct Pods {
    sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    containers: RwLock<HashMap<String, Arc<Container>>>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The call under way is about this pod.
fn trace_sandbox(sandbox: &Sandbox) {
    if !span::is_traced() {
        return;
    }
    span::is_about("berth.sandbox.id", &sandbox.id);
    if let Some(pod) = &sandbox.config().metadata {
        span::is_about("k8s.pod.name", &pod.name);
        span::is_about("k8s.pod.uid", &pod.uid);
        span::is_about("k8s.namespace.name", &pod.namespace);
    }
}

/// The object whose id is `id`, or the only one whose id begins with it.
fn find<T>(what: &'static str, table: &HashMap<String, Arc<T>>, id: &str) -> Result<Arc<T>, Error> {
    let missing = || Error::NotFound {
        what,
        id: id.to_owned(),
    };
    if id.is_empty() {
        return Err(missing());
    }
    if let Some(found) = table.get(id) {
        return Ok(found.clone());
    }
    let mut matches = table.iter().filter(|(key, _)| key.starts_with(id));
    let first = matches.next().ok_or_else(missing)?;
    match matches.count() {
        0 => Ok(first.1.clone()),
        more => Err(Error::Ambiguous {
            what,
            id: id.to_owned(),
            count: more + 1,
        }),
    }
}

/// Now, or just after the last of those that have the name but for its last `attempts` parts.
fn later<'a>(all: impl Iterator<Item = (&'a str, i64)>, name: &str, attempts: usize) -> i64 {
    let of = |name: &'a str| name.rsplitn(attempts + 1, '_').nth(attempts);
    let own = name.rsplitn(attempts + 1, '_').nth(attempts);
    let earlier = all.filter(|(name, _)| of(name) == own).map(|(_, at)| at + 1);
    earlier.fold(now(), i64::max)
}

impl Pods {
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        find("sandbox", &read(&self.sandboxes), id).inspect(|sandbox| trace_sandbox(sandbox))
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find("container", &read(&self.containers), id).inspect(|container| self.trace_container(container))
    }

    /// The call under way is about this container.
    fn trace_container(&self, container: &Container) {
        if !span::is_traced() {
            return;
        }
        span::is_about("container.id", &container.id);
        if let Some(sandbox) = read(&self.sandboxes).get(&container.sandbox) {
            trace_sandbox(sandbox);
        }
    }

    pub fn sandbox_named(&self, name: &str) -> Option<Arc<Sandbox>> {
        read(&self.sandboxes).values().find(|s| s.name == name).cloned()
    }

    pub fn container_named(&self, name: &str) -> Option<Arc<Container>> {
        read(&self.containers).values().find(|c| c.name == name).cloned()
    }

    /// When a sandbox of that name that is made now is created: after the pod's earlier
    /// ones. The kubelet takes the one created last for the pod's, and clocks are set back.
    pub fn sandbox_creation(&self, name: &str) -> i64 {
        let table = read(&self.sandboxes);
        later(table.values().map(|s| (&*s.name, s.created_at())), name, 1)
    }

    /// Likewise a container, after those of its name in its pod.
    pub fn container_creation(&self, name: &str) -> i64 {
        let table = read(&self.containers);
        // The attempts of the pod and of the container.
        later(table.values().map(|c| (&*c.name, c.created_at())), name, 2)
    }

    pub fn add_sandbox(&self, sandbox: Arc<Sandbox>) {
        trace_sandbox(&sandbox);
        write(&self.sandboxes).insert(sandbox.id.clone(), sandbox);
    }

    pub fn add_container(&self, container: Arc<Container>) {
        self.trace_container(&container);
        write(&self.containers).insert(container.id.clone(), container);
    }

    pub fn forget_sandbox(&self, id: &str) {
        write(&self.sandboxes).remove(id);
    }

    pub fn forget_container(&self, id: &str) {
        write(&self.containers).remove(id);
    }

    /// All sandboxes, the newest first.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = read(&self.sandboxes).values().cloned().collect();
        all.sort_by_key(|s| std::cmp::Reverse(s.created_at()));
        all
    }

    /// All containers, the newest first.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = read(&self.containers).values().cloned().collect();
        all.sort_by_key(|c| std::cmp::Reverse(c.created_at()));
        all
    }

    /// The containers of one sandbox, in no order.
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        read(&self.containers)
            .values()
            .filter(|c| c.sandbox == sandbox)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_attempts_are_created_later_whatever_the_clock_says() {
        let ahead = now() + 3_600_000_000_000;
        let all = || [("a_ns_u_0", ahead), ("a_ns_u_1", 5), ("b_ns_u_0", ahead + 9)].into_iter();
        assert_eq!(later(all(), "a_ns_u_2", 1), ahead + 1);
        assert!(later(all(), "a_ns_v_2", 1) < ahead);
        let containers = || [("c_a_ns_u_0_7", ahead), ("d_a_ns_u_0_0", ahead + 9)].into_iter();
        assert_eq!(later(containers(), "c_a_ns_u_1_0", 2), ahead + 1);
        assert!(later(containers(), "c_a_ns_v_1_0", 2) < ahead);
    }

    #[test]
    fn an_unique_beginning_of_an_id_is_enough() {
        let table: HashMap<String, Arc<u8>> = [("abc1", 1), ("abd2", 2)]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), Arc::new(v)))
            .collect();
        assert_eq!(*find("x", &table, "abc1").unwrap(), 1);
        assert_eq!(*find("x", &table, "abd").unwrap(), 2);
        assert!(matches!(
            find("x", &table, "ab"),
            Err(Error::Ambiguous { count: 2, .. })
        ));
        assert!(matches!(find("x", &table, "zz"), Err(Error::NotFound { .. })));
        assert!(matches!(find("x", &table, ""), Err(Error::NotFound { .. })));
    }
}
