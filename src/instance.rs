//! What a berthd names the kernel objects that it makes.
//!
//! Several berthd run side by side on one machine. What tells them apart is
//! their state folder, so the names of the bridge, the nftables table and the
//! cgroup parent are derived from it.

use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

/// The state folder of a berthd that nobody told otherwise.
pub const DEFAULT_STATE: &str = "/run/berth";

/// The names of one berthd's kernel objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// "berth", or "berth-" and eight hexadecimal digits.
    pub name: String,
    /// The built-in bridge: "berth0", or "br-" and the digits.
    pub bridge: String,
    /// The nftables table (family inet), named as the instance.
    pub table: String,
    /// The digest the digits are from: whatever else has to differ between
    /// instances but stay the same for one is drawn from it.
    pub seed: [u8; 32],
}

impl Instance {
    /// The instance of a state folder. A relative path is taken from the current
    /// folder; links are not followed, so a path names one instance for good.
    pub fn of(state_dir: &Path) -> Instance {
        let path = plain(state_dir);
        let seed: [u8; 32] = Sha256::digest(path.as_os_str().as_encoded_bytes()).into();
        let default = path == Path::new(DEFAULT_STATE);
        let digits: String = seed.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let name = if default {
            "berth".to_owned()
        } else {
            format!("berth-{digits}")
        };
        Instance {
            bridge: if default {
                "berth0".to_owned()
            } else {
                format!("br-{digits}")
            },
            table: name.clone(),
            name,
            seed,
        }
    }

    /// True for the berthd with the default state folder.
    pub fn is_default(&self) -> bool {
        self.name == "berth"
    }
}

/// Absolute, and without "." and doubled or trailing slashes.
fn plain(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_state_folder_has_the_plain_names() {
        for path in ["/run/berth", "/run/berth/", "/run//./berth"] {
            let instance = Instance::of(Path::new(path));
            assert_eq!(instance.bridge, "berth0", "{path}");
            assert_eq!(instance.table, "berth");
            assert!(instance.is_default());
        }
    }

    #[test]
    fn other_state_folders_have_names_of_their_own() {
        let a = Instance::of(Path::new("/run/a"));
        let b = Instance::of(Path::new("/run/b"));
        assert_ne!(a, b);
        assert_eq!(a, Instance::of(Path::new("/run/a/")));
        assert!(
            a.bridge.starts_with("br-") && a.bridge.len() == 11,
            "{}",
            a.bridge
        );
        assert!(!a.is_default());
    }
}
