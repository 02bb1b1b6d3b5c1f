//! CNI configurations: the folder, the files in it, and what is wrong with them.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Versions of the specification that are spoken, the oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A configuration is a few hundred bytes; more than this is a mistake.
const MAX_FILE: u64 = 1024 * 1024;

/// A network configuration list. Recorded with every pod that was attached by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conflist {
    /// The file it is from.
    pub file: PathBuf,
    pub name: String,
    /// The version that the plugins are spoken to in.
    pub version: String,
    /// Each plugin's part of the file.
    pub plugins: Vec<Map<String, Value>>,
}

impl Conflist {
    /// The plugin's "type", which is the name of its executable.
    pub fn kind(plugin: &Map<String, Value>) -> &str {
        plugin.get("type").and_then(Value::as_str).unwrap_or_default()
    }
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI configuration {}: {message}", file.display())]
pub struct Invalid {
    pub file: PathBuf,
    pub message: String,
}

type Outcome = Result<Option<Arc<Conflist>>, Invalid>;

/// The folder of configurations. It is looked at anew at every use, and files
/// are read again when one of them changed.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    last: Mutex<Option<(Vec<Stamp>, Outcome)>>,
}

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    path: PathBuf,
    modified: SystemTime,
    length: u64,
}

impl Folder {
    pub fn new(path: PathBuf) -> Folder {
        Folder {
            path,
            last: Mutex::new(None),
        }
    }

    /// The configuration to use: of the first file by name that is right. When
    /// there are files and none is right, what is wrong with the first one.
    pub fn current(&self) -> Outcome {
        let stamps = self.stamps()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, outcome)) = last.as_ref()
            && *known == stamps
        {
            return outcome.clone();
        }
        let outcome = choose(&stamps);
        *last = Some((stamps, outcome.clone()));
        outcome
    }

    fn stamps(&self) -> Result<Vec<Stamp>, Invalid> {
        let invalid = |e: io::Error| Invalid {
            file: self.path.clone(),
            message: format!("read folder: {e}"),
        };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(invalid(e)),
        };
        let mut stamps = Vec::new();
        for entry in entries {
            let path = entry.map_err(invalid)?.path();
            let known = path
                .extension()
                .is_some_and(|it| it == "conflist" || it == "conf" || it == "json");
            if !known {
                continue;
            }
            // A file that goes away while we look is not there.
            if let Ok(meta) = fs::metadata(&path)
                && meta.is_file()
            {
                stamps.push(Stamp {
                    path,
                    modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    length: meta.len(),
                });
            }
        }
        stamps.sort();
        Ok(stamps)
    }
}

fn choose(stamps: &[Stamp]) -> Outcome {
    let mut first = None;
    for stamp in stamps {
        match read(&stamp.path) {
            Ok(list) => {
                if let Some(invalid) = first {
                    let used = stamp.path.display();
                    tracing::warn!(error = %invalid, %used, "a CNI configuration is passed over");
                }
                return Ok(Some(Arc::new(list)));
            }
            Err(message) => {
                let file = stamp.path.clone();
                first.get_or_insert(Invalid { file, message });
            }
        }
    }
    first.map_or(Ok(None), Err)
}

fn read(path: &Path) -> Result<Conflist, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|e| e.to_string())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    parse(path, &text)
}

/// Reads a list, or a single plugin's configuration as a list of one.
pub fn parse(path: &Path, text: &str) -> Result<Conflist, String> {
    let root: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let name = root
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if !is_name(&name) {
        return Err(format!(
            "\"name\": {name:?} is not a name of letters, digits, '_', '.' and '-'"
        ));
    }
    let version = version(&root)?;
    let plugins = match root.get("plugins") {
        None => vec![root],
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|plugin| {
                plugin
                    .as_object()
                    .cloned()
                    .ok_or("\"plugins\" holds something else than objects")
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err("\"plugins\" is not a list".into()),
    };
    if plugins.is_empty() {
        return Err("\"plugins\" is empty".into());
    }
    for plugin in &plugins {
        // The name of a file in one of the folders, never a way out of them.
        let kind = Conflist::kind(plugin);
        if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
            return Err(format!("\"type\": {kind:?} does not name a plugin"));
        }
    }
    Ok(Conflist {
        file: path.to_path_buf(),
        name,
        version,
        plugins,
    })
}

/// The highest version that the configuration offers and that is known.
fn version(root: &Map<String, Value>) -> Result<String, String> {
    let mut offered: Vec<&str> = root
        .get("cniVersion")
        .and_then(Value::as_str)
        .into_iter()
        .collect();
    if let Some(Value::Array(more)) = root.get("cniVersions") {
        offered.extend(more.iter().filter_map(Value::as_str));
    }
    let best = VERSIONS.iter().rev().find(|version| offered.contains(version));
    best.map(|version| (*version).to_owned()).ok_or_else(|| {
        let known = VERSIONS.join(", ");
        match offered.first() {
            None => format!("\"cniVersion\" is missing; write one of {known}"),
            Some(other) => format!("\"cniVersion\": {other:?} is not one of {known}"),
        }
    })
}

/// As the specification has it.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;

    #[test]
    fn the_first_right_file_by_name_is_used_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("net.d"));
        assert_eq!(folder.current(), Ok(None));
        fs::create_dir(dir.path().join("net.d")).unwrap();
        assert_eq!(folder.current(), Ok(None));
        let put = |name: &str, text: &str| fs::write(dir.path().join("net.d").join(name), text).unwrap();
        put("20.conflist", LIST);
        put("99.txt", "not one");
        assert_eq!(folder.current().unwrap().unwrap().name, "net");
        put("10.conf", r#"{"cniVersion":"0.4.0","name":"one","type":"ptp"}"#);
        let one = folder.current().unwrap().unwrap();
        assert_eq!((one.name.as_str(), one.plugins.len()), ("one", 1));
        put("10.conf", "{");
        assert_eq!(folder.current().unwrap().unwrap().name, "net");
        fs::remove_file(dir.path().join("net.d/20.conflist")).unwrap();
        let message = folder.current().unwrap_err().to_string();
        assert!(message.contains("10.conf: EOF"), "{message}");
        fs::remove_file(dir.path().join("net.d/10.conf")).unwrap();
        assert_eq!(folder.current(), Ok(None));
    }

    #[test]
    fn wrong_configurations_are_explained() {
        for (text, expected) in [
            ("[]", "invalid type"),
            (r#"{"cniVersion":"1.0.0","type":"x"}"#, "\"name\""),
            (r#"{"cniVersion":"1.0.0","name":"../x","type":"x"}"#, "\"name\""),
            (r#"{"name":"x","type":"x"}"#, "missing"),
            (r#"{"cniVersion":"0.2.0","name":"x","type":"x"}"#, "0.2.0"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#, "empty"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":{}}"#, "list"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[1]}"#, "objects"),
            (r#"{"cniVersion":"1.0.0","name":"x","type":"../sh"}"#, "../sh"),
            (r#"{"cniVersion":"1.0.0","name":"x"}"#, "\"type\""),
        ] {
            let message = parse(Path::new("f"), text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        let newer = r#"{"cniVersion":"2.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"x","type":"x"}"#;
        assert_eq!(parse(Path::new("f"), newer).unwrap().version, "1.1.0");
    }
}
