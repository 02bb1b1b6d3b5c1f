//! The specification files of this node: which file says what a device is.
//!
//! Folders are read when a container asks for a device, and not before: drivers
//! write files at any time, and a container that asks for none pays nothing.

use std::{
    fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{
    Asked,
    format::{Device, File},
};
use crate::spec::Error;

/// Far more than any driver writes.
const MAX_BYTES: u64 = 16 << 20;

/// What the folders hold.
#[derive(Debug, Default)]
pub(super) struct Library {
    folders: Vec<PathBuf>,
    files: Vec<Found>,
    /// Files that say nothing, and why.
    damaged: Vec<String>,
}

#[derive(Debug)]
struct Found {
    /// Of the folder in the configuration: later ones win.
    rank: usize,
    path: PathBuf,
    file: File,
}

/// A device that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolved<'a> {
    pub path: &'a Path,
    pub file: &'a File,
    pub device: &'a Device,
}

impl Library {
    pub fn read(folders: &[PathBuf]) -> Library {
        let mut library = Library {
            folders: folders.to_vec(),
            ..Library::default()
        };
        for (rank, folder) in folders.iter().enumerate() {
            for path in paths(folder, &mut library.damaged) {
                let yaml = path.extension().is_some_and(|extension| extension == "yaml");
                match read(&path).and_then(|text| File::parse(&text, yaml)) {
                    Ok(file) => library.files.push(Found { rank, path, file }),
                    Err(message) => library.damaged.push(format!("{}: {message}", path.display())),
                }
            }
        }
        library
    }

    /// The device of a qualified name. Of several folders that have it the last one
    /// wins; two files of one folder are a conflict, for neither is meant more.
    pub fn find(&self, asked: &Asked) -> Result<Resolved<'_>, Error> {
        let mut found: Option<(usize, Resolved<'_>)> = None;
        let mut conflict = None;
        let of_kind = self.files.iter().filter(|one| one.file.kind == asked.kind);
        for one in of_kind {
            let Some(device) = one.file.devices.iter().find(|device| device.name == asked.device) else {
                continue;
            };
            match found {
                Some((rank, first)) if rank == one.rank => conflict = Some((first.path, one.path.as_path())),
                _ => conflict = None,
            }
            let resolved = Resolved {
                path: &one.path,
                file: &one.file,
                device,
            };
            found = Some((one.rank, resolved));
        }
        match (found, conflict) {
            (Some((_, resolved)), None) => Ok(resolved),
            (_, Some((first, second))) => Err(Error::precondition(
                &asked.field,
                format!(
                    "CDI device {} is in both {} and {}",
                    asked.name(),
                    first.display(),
                    second.display()
                ),
            )),
            (None, None) => Err(Error::precondition(&asked.field, self.absent(asked))),
        }
    }

    fn absent(&self, asked: &Asked) -> String {
        let folders: Vec<_> = self.folders.iter().map(|f| f.display().to_string()).collect();
        let mut message = format!(
            "CDI device {} is in no file of {}",
            asked.name(),
            folders.join(", ")
        );
        if !self.damaged.is_empty() {
            message.push_str(&format!("; not readable: {}", self.damaged.join("; ")));
        }
        message
    }
}

/// The specification files of a folder by name; none when there is no such folder.
fn paths(folder: &Path, damaged: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            damaged.push(format!("{}: {e}", folder.display()));
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json" || extension == "yaml")
        })
        .collect();
    paths.sort();
    paths
}

/// Bounded, and only what none but root or we ourselves can have written: a hook in
/// it runs as we do.
fn read(path: &Path) -> Result<String, String> {
    let text = |e: io::Error| e.to_string();
    // A link may lead to it, as drivers in containers install them; a fifo must not block us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| text(e.into()))?;
    let file = fs::File::from(file);
    let found = file.metadata().map_err(text)?;
    if !found.is_file() {
        return Err("is not a regular file".into());
    }
    let own = rustix::process::geteuid().as_raw();
    if (found.uid() != 0 && found.uid() != own) || found.mode() & 0o002 != 0 {
        return Err("can be written by others than root; chown it to root and chmod o-w".into());
    }
    if found.len() > MAX_BYTES {
        return Err(format!("is larger than {MAX_BYTES} bytes"));
    }
    let mut content = String::new();
    file.take(MAX_BYTES).read_to_string(&mut content).map_err(text)?;
    Ok(content)
}
