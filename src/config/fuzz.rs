//! Configurations.

use std::path::PathBuf;

use super::{Config, SHIPPED};

/// A configuration that is taken reads back as it is shown, after the shipped one or
/// alone; an error names the file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let own = (PathBuf::from("/etc/berth/config.d/it.toml"), text.to_owned());
    let shipped = (PathBuf::from("/etc/berth/config.toml"), SHIPPED.to_owned());
    for files in [vec![own.clone()], vec![shipped, own]] {
        match Config::of(&files) {
            Ok(loaded) => {
                let shown = loaded.show().expect("a configuration can be written");
                let file = (PathBuf::from("/shown"), shown.clone());
                let again = Config::of(&[file]).unwrap_or_else(|e| panic!("{e}: {shown}"));
                let table = |config: &Config| toml::Table::try_from(config).expect("it can be written");
                assert_eq!(table(&loaded.config), table(&again.config), "{shown}");
            }
            Err(error) => {
                assert!(error.to_string().contains("/etc/berth/") || error.to_string().contains("default"))
            }
        }
    }
}
