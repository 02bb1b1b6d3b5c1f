//! The folder of CNI configurations, and which of its files is used.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::config::{Conflist, Plugin, parse};

/// A configuration is a few hundred bytes; more than this is a mistake.
const MAX_FILE: u64 = 1024 * 1024;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI configuration {}: {message}", file.display())]
pub struct Invalid {
    pub file: PathBuf,
    pub message: String,
}

type Outcome = Result<Option<Arc<Conflist>>, Invalid>;

/// The folder of configurations. It is looked at anew at every use (a listing and
/// a stat of each file, some microseconds), and files are read again when one of
/// them changed: so nobody can miss an event, and nothing runs in between.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    last: Mutex<Option<(Stamps, Outcome)>>,
}

/// The files that were there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamps {
    /// Configurations, by name.
    files: Vec<Stamp>,
    /// What is kept apart for a network: `NETWORK/*.conf`, by name.
    parts: Vec<Stamp>,
}

/// What tells one state of a file from another. The time of change and the inode
/// tell what the time of modification may hide: a file renamed into place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Folder {
    pub fn new(path: PathBuf) -> Folder {
        Folder {
            path,
            last: Mutex::new(None),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration to use: of the first file by name that is right. When
    /// there are files and none is right, what is wrong with the first one. The
    /// same `Arc` as long as nothing changes.
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

    fn stamps(&self) -> Result<Stamps, Invalid> {
        let mut stamps = Stamps {
            files: Vec::new(),
            parts: Vec::new(),
        };
        for path in entries(&self.path)? {
            // What goes away while we look is not there.
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            if meta.is_file() && has_ending(&path, &["conflist", "conf", "json"]) {
                stamps.files.push(Stamp::of(path, &meta));
            } else if meta.is_dir() {
                for part in entries(&path)? {
                    if has_ending(&part, &["conf"])
                        && let Ok(meta) = fs::metadata(&part)
                    {
                        stamps.parts.push(Stamp::of(part, &meta));
                    }
                }
            }
        }
        stamps.files.sort();
        stamps.parts.sort();
        Ok(stamps)
    }
}

impl Stamp {
    fn of(path: PathBuf, meta: &fs::Metadata) -> Stamp {
        Stamp {
            path,
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// What a folder holds; one that is not there holds nothing.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Invalid> {
    let invalid = |e: io::Error| Invalid {
        file: folder.to_path_buf(),
        message: format!("read folder: {e}"),
    };
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(invalid))
            .collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(invalid(e)),
    }
}

fn has_ending(path: &Path, known: &[&str]) -> bool {
    path.extension()
        .is_some_and(|ending| known.iter().any(|known| ending == *known))
}

fn choose(stamps: &Stamps) -> Outcome {
    let mut first = None;
    for stamp in &stamps.files {
        match load(&stamp.path, &stamps.parts) {
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

/// Reads a configuration, and what is kept apart for its network.
fn load(path: &Path, parts: &[Stamp]) -> Result<Conflist, String> {
    parse(path, &read(path)?, |network| {
        let folder = path.with_file_name(network);
        let of_network = parts
            .iter()
            .filter(|part| part.path.parent() == Some(folder.as_path()));
        of_network.map(|part| load_part(&part.path)).collect()
    })
}

fn load_part(path: &Path) -> Result<Plugin, String> {
    read(path)
        .and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()))
        .map_err(|e| format!("its part {}: {e}", path.display()))
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|e| e.to_string())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    Ok(text)
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
        // A file as large as the one before, renamed into its place with its time.
        put("10.conf", r#"{"cniVersion":"0.4.0","name":"one","type":"ptp"}"#);
        let file = dir.path().join("net.d/10.conf");
        assert_eq!(folder.current().unwrap().unwrap().name, "one");
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        put("new", r#"{"cniVersion":"0.4.0","name":"two","type":"ptp"}"#);
        let new = dir.path().join("net.d/new");
        File::options()
            .write(true)
            .open(&new)
            .unwrap()
            .set_modified(time)
            .unwrap();
        fs::rename(new, file).unwrap();
        let two = folder.current().unwrap().unwrap();
        assert_eq!(two.name, "two");
        assert!(Arc::ptr_eq(&two, &folder.current().unwrap().unwrap()));
    }

    #[test]
    fn parts_of_a_network_are_beside_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().into());
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("10.conflist", LIST);
        fs::create_dir(dir.path().join("net")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        put("other/10.conf", "nonsense that nobody asks for");
        let kinds = || {
            let list = folder.current().unwrap().unwrap();
            let kinds = list.plugins.iter().map(|p| Conflist::kind(p).to_owned());
            kinds.collect::<Vec<_>>()
        };
        assert_eq!(kinds(), ["bridge"]);
        put("net/20.conf", r#"{"type":"tuning"}"#);
        put("net/10.conf", r#"{"type":"portmap"}"#);
        put("net/30.txt", "not one");
        assert_eq!(kinds(), ["bridge", "portmap", "tuning"]);
        put("net/10.conf", r#"{"type":"../sh"}"#);
        let message = folder.current().unwrap_err().to_string();
        assert!(message.contains("../sh"), "{message}");
        put("net/10.conf", "{");
        let message = folder.current().unwrap_err().to_string();
        assert!(message.contains("net/10.conf: EOF"), "{message}");
    }
}
