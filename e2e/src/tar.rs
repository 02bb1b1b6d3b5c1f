//! Writes tar archives, entry by entry: ustar, with pax records where a field
//! does not fit or ustar has none (extended attributes, long names).

const BLOCK: usize = 512;

/// What an entry is; numbers are the type flags of ustar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File = b'0' as isize,
    HardLink = b'1' as isize,
    Symlink = b'2' as isize,
    CharDevice = b'3' as isize,
    Folder = b'5' as isize,
    Fifo = b'6' as isize,
}

/// One entry before it is written; see the functions that make one.
#[derive(Clone, Debug)]
pub struct Entry {
    kind: Kind,
    path: String,
    link: String,
    content: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    device: (u32, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(kind: Kind, path: &str) -> Entry {
        Entry {
            kind,
            path: path.into(),
            link: String::new(),
            content: Vec::new(),
            mode: if kind == Kind::Folder { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Entry {
        Entry {
            content: content.into(),
            ..Entry::new(Kind::File, path)
        }
    }

    pub fn folder(path: &str) -> Entry {
        Entry::new(Kind::Folder, path)
    }

    pub fn symlink(path: &str, to: &str) -> Entry {
        Entry {
            link: to.into(),
            mode: 0o777,
            ..Entry::new(Kind::Symlink, path)
        }
    }

    pub fn hard_link(path: &str, to: &str) -> Entry {
        Entry {
            link: to.into(),
            ..Entry::new(Kind::HardLink, path)
        }
    }

    pub fn fifo(path: &str) -> Entry {
        Entry::new(Kind::Fifo, path)
    }

    pub fn char_device(path: &str, major: u32, minor: u32) -> Entry {
        Entry {
            device: (major, minor),
            ..Entry::new(Kind::CharDevice, path)
        }
    }

    /// An empty file that removes what the layers below have: `.wh.NAME`.
    pub fn whiteout(path: &str) -> Entry {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if folder.is_empty() { "" } else { "/" };
        Entry::file(&format!("{folder}{slash}.wh.{name}"), "")
    }

    /// Hides everything that the layers below have in this folder.
    pub fn opaque(folder: &str) -> Entry {
        Entry::file(&format!("{folder}/.wh..wh..opq"), "")
    }

    pub fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    pub fn owner(self, uid: u32, gid: u32) -> Entry {
        Entry { uid, gid, ..self }
    }

    pub fn mtime(self, mtime: u64) -> Entry {
        Entry { mtime, ..self }
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Entry {
        self.xattrs.push((name.into(), value.into()));
        self
    }
}

/// The whole archive.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        write(&mut out, entry);
    }
    out.extend([0; 2 * BLOCK]);
    out
}

fn write(out: &mut Vec<u8>, entry: &Entry) {
    let mut records = Vec::new();
    if entry.path.len() > 100 {
        record(&mut records, "path", entry.path.as_bytes());
    }
    if entry.link.len() > 100 {
        record(&mut records, "linkpath", entry.link.as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    if !records.is_empty() {
        header(out, b'x', "pax", records.len(), &Entry::file("pax", ""));
        padded(out, &records);
    }
    header(out, entry.kind as u8, &entry.path, entry.content.len(), entry);
    padded(out, &entry.content);
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend(format!("{length} {key}=").as_bytes());
    out.extend(value);
    out.push(b'\n');
}

fn header(out: &mut Vec<u8>, flag: u8, path: &str, size: usize, entry: &Entry) {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, length: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(length)];
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 100, path.as_bytes());
    put(100, 8, format!("{:07o}", entry.mode).as_bytes());
    put(108, 8, format!("{:07o}", entry.uid).as_bytes());
    put(116, 8, format!("{:07o}", entry.gid).as_bytes());
    put(124, 12, format!("{size:011o}").as_bytes());
    put(136, 12, format!("{:011o}", entry.mtime).as_bytes());
    put(148, 8, b"        ");
    put(156, 1, &[flag]);
    put(157, 100, entry.link.as_bytes());
    put(257, 8, b"ustar\x0000");
    put(329, 8, format!("{:07o}", entry.device.0).as_bytes());
    put(337, 8, format!("{:07o}", entry.device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend(block);
}

fn padded(out: &mut Vec<u8>, content: &[u8]) {
    out.extend(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}
