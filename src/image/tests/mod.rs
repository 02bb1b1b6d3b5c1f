//! Pulls from registries that behave, misbehave and lie.

mod access;
mod check;
mod faults;
mod hostile;
mod mirrors;
mod real;
mod registry;
mod sharing;
mod store;

use std::{path::Path, sync::Arc, time::Duration};

use super::{AuthConfig, Error, Images, Settings, registry::Patience};
use crate::{config::Config, store::Store};

pub use registry::{Layer, Registry, Reply, file, gzip, tar};

/// Images in a folder of their own.
pub struct Node {
    pub images: Arc<Images>,
    pub config: Config,
    pub root: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Node {
        Node::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Node {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        change(&mut config);
        config.registry.config_path = root.path().join("certs.d");
        Node::start(root, config)
    }

    fn start(root: tempfile::TempDir, config: Config) -> Node {
        let store = Arc::new(Store::open(&root.path().join("berth.db")).unwrap());
        let patience = Patience {
            stall: Duration::from_millis(400),
            tries: 4,
            backoff: Duration::from_millis(5),
            longest_pause: Duration::from_secs(2),
        };
        let settings = Settings {
            patience,
            ..Settings::of(&config)
        };
        let images = Images::open_with(root.path(), store, settings).unwrap();
        let node = Node {
            images: Arc::new(images),
            config,
            root,
        };
        // The sweep of the start takes its turn.
        std::thread::sleep(Duration::from_millis(20));
        node
    }

    /// As after a restart of berthd.
    pub fn restart(self) -> Node {
        let Node { images, config, root } = self;
        drop(images);
        Node::start(root, config)
    }

    pub async fn pull(&self, reference: &str) -> Result<String, Error> {
        Ok(self.images.pull(reference, None).await?.id)
    }

    pub async fn pull_as(&self, reference: &str, auth: AuthConfig) -> Result<String, Error> {
        Ok(self.images.pull(reference, Some(auth)).await?.id)
    }

    pub fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.root.path().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn layers(&self) -> Vec<String> {
        self.names("layers")
    }

    /// No folder, blob or image is there.
    pub fn assert_empty(&self) {
        assert_eq!(self.layers(), [""; 0]);
        assert_eq!(self.names("blobs/sha256"), [""; 0]);
        assert!(self.images.list().unwrap().is_empty());
        assert!(self.images.inner.flights.held().is_empty());
    }

    /// The content of a file in an image's uppermost layer that has it.
    pub fn read(&self, id: &str, path: &str) -> Option<Vec<u8>> {
        let user = format!("test-{path}");
        let layers = self.images.use_layers(id, &user).unwrap();
        self.images.release_layers(&user).unwrap();
        layers
            .iter()
            .find_map(|layer| std::fs::read(layer.join(path)).ok())
    }

    pub fn mirror(&self, registry: &str, text: &str) {
        let dir = self.config.registry.config_path.join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
