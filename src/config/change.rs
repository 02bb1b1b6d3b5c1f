//! What differs between two configurations, and what a running berthd takes over.

use std::collections::BTreeMap;

use super::{Config, read::dotted};

impl Config {
    /// Takes over what can change while berthd runs; the rest needs a restart.
    pub fn adopt(&mut self, new: &Config) {
        self.log.level.clone_from(&new.log.level);
        self.registry.clone_from(&new.registry);
        self.image.clone_from(&new.image);
    }

    /// Keys that have another value in `new`.
    pub fn changes(&self, new: &Config) -> Vec<String> {
        let (old, new) = (flat(self), flat(new));
        let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        keys.retain(|key| old.get(*key) != new.get(*key));
        keys.into_iter().cloned().collect()
    }
}

/// Every value by its dotted key.
fn flat(config: &Config) -> BTreeMap<String, toml::Value> {
    fn walk(name: &str, table: toml::Table, found: &mut BTreeMap<String, toml::Value>) {
        for (key, value) in table {
            let key = dotted(name, &key);
            match value {
                toml::Value::Table(inner) => walk(&key, inner, found),
                value => drop(found.insert(key, value)),
            }
        }
    }
    let mut found = BTreeMap::new();
    // A configuration is made of what TOML has.
    walk("", toml::Table::try_from(config).unwrap_or_default(), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_adopted_differs_no_more() {
        let old = Config::default();
        let mut new = old.clone();
        new.log.level = "debug".into();
        new.image.pinned = vec!["a:1".into()];
        new.registry.stall_timeout = 1;
        new.grpc.group = Some(7);
        new.network.mtu = 9000;
        new.runtimes.insert("other".into(), Default::default());
        let all = [
            "grpc.group",
            "image.pinned",
            "log.level",
            "network.mtu",
            "registry.stall_timeout",
            "runtimes.other",
        ];
        let changes = |old: &Config, new: &Config| {
            let mut keys = old.changes(new);
            keys.iter_mut()
                .filter(|key| key.starts_with("runtimes.other."))
                .for_each(|key| {
                    *key = "runtimes.other".to_owned();
                });
            keys.dedup();
            keys
        };
        assert_eq!(changes(&old, &new), all);
        let mut running = old.clone();
        running.adopt(&new);
        assert_eq!(
            changes(&running, &new),
            ["grpc.group", "network.mtu", "runtimes.other"]
        );
        assert_eq!(
            old.changes(&running),
            ["image.pinned", "log.level", "registry.stall_timeout"]
        );
        assert!(new.changes(&new).is_empty());
    }
}
