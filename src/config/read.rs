//! Reads the files, and remembers where each value came from.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{Config, Error};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    File {
        path: PathBuf,
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// A configuration that was read and found right.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
    origins: Origins,
}

/// By dotted key.
type Origins = BTreeMap<String, Origin>;

impl Config {
    /// Reads `path` and the `config.d` folder beside it. A missing file is an
    /// error only when it is `required` (that is, named by the user).
    pub fn load(path: &Path, required: bool) -> Result<Loaded, Error> {
        let mut files = Vec::new();
        let mut paths = parts(path)?;
        paths.insert(0, path.to_owned());
        for (index, path) in paths.into_iter().enumerate() {
            match fs::read_to_string(&path) {
                Ok(text) => files.push((path, text)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && index == 0 && !required => {}
                Err(source) => return Err(Error::Read { path, source }),
            }
        }
        Config::of(&files)
    }

    /// The configuration of files with these texts, in their order.
    pub(super) fn of(files: &[(PathBuf, String)]) -> Result<Loaded, Error> {
        let mut table = toml::Table::new();
        let mut origins = Origins::new();
        for (path, text) in files {
            merge(&mut table, parse(path, text)?);
            locate(path, text, &mut origins);
        }
        // Each is right by itself, so together they are.
        let config: Config = table.try_into().map_err(|e: toml::de::Error| Error::Parse {
            path: files.last().map(|(path, _)| path.clone()).unwrap_or_default(),
            message: e.to_string(),
        })?;
        config.check().map_err(|(key, message)| Error::Value {
            origin: origin(&origins, &key),
            key,
            message,
        })?;
        Ok(Loaded {
            config,
            files: files.iter().map(|(path, _)| path.clone()).collect(),
            origins,
        })
    }
}

impl Loaded {
    /// The configuration as TOML, each value with where it came from.
    pub fn show(&self) -> Result<String, toml::ser::Error> {
        let mut text = String::new();
        self.show_table(&mut text, "", &toml::Table::try_from(&self.config)?);
        Ok(text)
    }

    fn show_table(&self, text: &mut String, name: &str, table: &toml::Table) {
        let (tables, values): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
        if !name.is_empty() && (!values.is_empty() || tables.is_empty()) {
            let gap = if text.is_empty() { "" } else { "\n" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{gap}[{name}]");
        }
        for (key, value) in values {
            let origin = origin(&self.origins, &dotted(name, key));
            let _ = writeln!(text, "{} = {value}  # {origin}", dotted("", key));
        }
        for (key, value) in tables {
            if let Some(table) = value.as_table() {
                self.show_table(text, &dotted(name, key), table);
            }
        }
    }
}

fn origin(origins: &Origins, key: &str) -> Origin {
    origins.get(key).cloned().unwrap_or(Origin::Default)
}

/// "table.key", quoted where TOML wants it.
pub(super) fn dotted(table: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let key = if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        toml::Value::from(key).to_string()
    };
    if table.is_empty() {
        key
    } else {
        format!("{table}.{key}")
    }
}

/// Notes the line of every key of a file, which is known to be right.
fn locate(path: &Path, text: &str, origins: &mut Origins) {
    if let Ok(table) = DeTable::parse(text) {
        locate_in("", table.get_ref(), path, text, origins);
    }
}

fn locate_in(name: &str, table: &DeTable<'_>, path: &Path, text: &str, origins: &mut Origins) {
    for (key, value) in table {
        let name = dotted(name, key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            locate_in(&name, inner, path, text, origins);
            continue;
        }
        let before = text.get(..key.span().start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let path = path.to_owned();
        origins.insert(name, Origin::File { path, line });
    }
}

/// Parses one file as a configuration by itself, so that an unknown key is
/// reported with the line of this file.
fn parse(path: &Path, text: &str) -> Result<toml::Table, Error> {
    let wrong = |e: toml::de::Error| Error::Parse {
        path: path.into(),
        message: e.to_string(),
    };
    toml::from_str::<Config>(text).map_err(wrong)?;
    toml::from_str(text).map_err(wrong)
}

/// `config.d/*.toml` beside the file, by name.
fn parts(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = path.with_file_name("config.d");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: folder, source }),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Read {
            path: folder.clone(),
            source,
        })?;
        if entry.path().extension().is_some_and(|e| e == "toml") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Tables are merged key by key; anything else is replaced.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_replace_the_keys_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        std::fs::write(&main, "[network]\nbridge = \"b0\"\nmtu = 1400\n").unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        std::fs::write(dir.path().join("config.d/10-a.toml"), "[network]\nmtu = 9000\n").unwrap();
        let config = Config::load(&main, true).unwrap().config;
        assert_eq!((config.network.bridge.as_str(), config.network.mtu), ("b0", 9000));
    }

    #[test]
    fn unknown_keys_are_errors_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        std::fs::write(&main, "[network]\nbridge = \"b0\"\nbrige = \"b1\"\n").unwrap();
        let message = Config::load(&main, true).unwrap_err().to_string();
        assert!(
            message.contains("line 3") && message.contains("brige"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_named() {
        let missing = Path::new("/nonexistent/berth/config.toml");
        assert!(Config::load(missing, false).is_ok());
        assert!(Config::load(missing, true).is_err());
    }

    #[test]
    fn wrong_values_name_their_key() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        for (text, key) in [
            ("[cgroup]\ndriver = \"cgroups\"", "cgroup.driver"),
            ("[network]\ncni_timeout = 0", "network.cni_timeout"),
            ("[network]\ncni_max_plugins = 0", "network.cni_max_plugins"),
            (
                "[runtimes.other]\ncni_conf_dir = \"net.d\"",
                "runtimes.other.cni_conf_dir",
            ),
        ] {
            std::fs::write(&main, text).unwrap();
            let message = Config::load(&main, true).unwrap_err().to_string();
            let place = format!("{}:2: {key}", main.display());
            assert!(message.contains(&place), "{message}");
        }
    }

    #[test]
    fn what_is_shown_says_where_it_is_from_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        std::fs::write(
            &main,
            "[network]\nmtu = 1400\n\n[runtimes.\"a b\"]\ntype = \"berth\"\n",
        )
        .unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        let part = dir.path().join("config.d/10-a.toml");
        std::fs::write(&part, "# first\nnetwork.mtu = 9000\n").unwrap();
        let loaded = Config::load(&main, true).unwrap();
        let shown = loaded.show().unwrap();
        let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap();
        assert_eq!(line("mtu"), format!("mtu = 9000  # {}:2", part.display()));
        assert_eq!(line("masquerade"), "masquerade = true  # default");
        assert_eq!(line("type"), format!("type = \"berth\"  # {}:5", main.display()));
        let again: toml::Table = toml::from_str(&shown).unwrap();
        assert_eq!(again, toml::Table::try_from(&loaded.config).unwrap());
    }
}
