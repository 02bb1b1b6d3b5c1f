//! Layers that mean harm, and what becomes of each: the tree on the disk, or an error
//! with words, and never anything outside.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    tests::{Arena, xattr},
    *,
};
use crate::image::{
    tar::tests::{block, end, entry, pax, seal},
    view,
};

/// What is in a layer, a word for each name: `NAME/` folders, `NAME/!` opaque ones,
/// `NAME=TEXT` files, `NAME>TARGET` symlinks, `NAME-` whiteouts, `NAME|` FIFOs,
/// `NAME#MAJOR:MINOR` devices; `+s` with a set-id bit.
fn listing(top: &Path) -> Vec<String> {
    fn visit(top: &Path, path: &Path, into: &mut Vec<String>) {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for path in names {
            let name = path.strip_prefix(top).unwrap().display().to_string();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let opaque = || xattr(&path, "trusted.overlay.opaque").as_deref() == Some(b"y");
            let mut word = if kind.is_dir() {
                format!("{name}/{}", if opaque() { "!" } else { "" })
            } else if kind.is_symlink() {
                format!("{name}>{}", fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!("{name}={}", String::from_utf8_lossy(&fs::read(&path).unwrap()))
            } else if kind.is_fifo() {
                format!("{name}|")
            } else if meta.rdev() == 0 {
                format!("{name}-")
            } else {
                let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
                format!("{name}#{major}:{minor}")
            };
            if meta.mode() & 0o6000 != 0 {
                word.push_str("+s");
            }
            into.push(word);
            if kind.is_dir() {
                visit(top, &path, into);
            }
        }
    }
    let mut into = Vec::new();
    visit(top, top, &mut into);
    into
}

fn with_mode(mut bytes: Vec<u8>, mode: u32) -> Vec<u8> {
    bytes[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    seal(&mut bytes);
    bytes
}

fn device(name: &str, major: u32, minor: u32) -> Vec<u8> {
    let mut bytes = block(b'3', name, "", 0);
    bytes[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
    bytes[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
    seal(&mut bytes);
    bytes
}

fn sized(mut bytes: Vec<u8>, size: &[u8; 12]) -> Vec<u8> {
    bytes[124..136].copy_from_slice(size);
    seal(&mut bytes);
    bytes
}

pub(super) fn file(name: &str, text: &str) -> Vec<u8> {
    entry(b'0', name, "", text.as_bytes())
}

pub(super) fn folder(name: &str) -> Vec<u8> {
    entry(b'5', name, "", b"")
}

pub(super) fn symlink(name: &str, to: &str) -> Vec<u8> {
    entry(b'2', name, to, b"")
}

struct Case {
    what: &'static str,
    parts: Vec<Vec<u8>>,
    /// The listing, or words of the error.
    becomes: Result<&'static [&'static str], &'static str>,
}

fn run(cases: Vec<Case>) {
    for Case { what, parts, becomes } in cases {
        let arena = Arena::new();
        let result = arena.unpack(&[parts.concat(), end()].concat());
        match (&result, becomes) {
            (Ok(unpacked), Ok(expected)) => {
                assert_eq!(listing(&arena.layer()), expected, "{what}");
                assert_eq!(unpacked.inodes, expected.len() as u64, "{what}");
            }
            (Err(error), Err(words)) => {
                assert!(error.to_string().contains(words), "{what}: {error}");
                assert_ne!(error.kind(), Kind::Internal, "{what}: {error}");
            }
            _ => panic!("{what}: {result:?}"),
        }
    }
}

/// containerd does the same, but where it says so. In all of them the later entry
/// counts, and what the layer itself has is not hidden by its own whiteouts.
#[test]
fn contradictions_of_one_layer() {
    run(vec![
        Case {
            what: "a file, a folder and a symlink of one name",
            parts: vec![
                file("x", "1"),
                folder("x"),
                file("x/in", "2"),
                symlink("x", "/etc"),
                file("x/in", "3"),
            ],
            becomes: Ok(&["etc/", "etc/in=3", "x>/etc"]),
        },
        Case {
            what: "a symlink and then a folder: the link goes, what it pointed at stays",
            parts: vec![
                folder("d"),
                file("d/keep", "1"),
                symlink("x", "d"),
                folder("x"),
                file("x/new", "2"),
            ],
            becomes: Ok(&["d/", "d/keep=1", "x/!", "x/new=2"]),
        },
        Case {
            what: "a file that is replaced while it has another name",
            parts: vec![file("a", "old"), entry(b'1', "b", "a", b""), file("a", "new")],
            becomes: Ok(&["a=new", "b=old"]),
        },
        Case {
            what: "the same file a thousand times",
            parts: (0..1000)
                .map(|n| file("x", if n == 999 { "last" } else { "" }))
                .collect(),
            becomes: Ok(&["x=last"]),
        },
        Case {
            what: "a whiteout of what the same layer has, before and after it",
            parts: vec![
                file("a", "1"),
                file(".wh.a", ""),
                file(".wh.b", ""),
                file("b", "2"),
            ],
            becomes: Ok(&["a=1", "b=2"]),
        },
        Case {
            what: "an opaque mark before, between and after content",
            parts: vec![
                file("o/.wh..wh..opq", ""),
                file("o/a", "1"),
                file("o/.wh..wh..opq", ""),
                file("o/b", "2"),
                file("o/.wh..wh..opq", ""),
            ],
            becomes: Ok(&["o/!", "o/a=1", "o/b=2"]),
        },
        Case {
            what: "a folder that was a whiteout is opaque",
            parts: vec![file(".wh.d", ""), file("d/in", "1"), file(".wh.d", "")],
            becomes: Ok(&["d/!", "d/in=1"]),
        },
        Case {
            what: "a file below a file",
            parts: vec![file("f", ""), file("f/in", "")],
            becomes: Err("\"f\", which should hold it, is no folder"),
        },
        Case {
            what: "whiteouts of the folder and of the one above",
            parts: vec![file("d/.wh...", "")],
            becomes: Err("must hide a name"),
        },
        Case {
            what: "the root as a file, a symlink, a FIFO: passed over",
            parts: vec![
                file(".", "x"),
                symlink("/", "/etc"),
                entry(b'6', "..", "", b""),
                file("a", "1"),
            ],
            becomes: Ok(&["a=1"]),
        },
    ]);
}

#[test]
fn links_and_devices_that_lead_out() {
    run(vec![
        Case {
            what: "an absolute symlink and a file through it: within the layer",
            parts: vec![symlink("a", "/"), file("a/../../x", "1")],
            becomes: Ok(&["a>/", "x=1"]),
        },
        Case {
            what: "a hard link through a symlink that leads out",
            parts: vec![symlink("a", "../outside"), entry(b'1', "h", "a/secret", b"")],
            becomes: Err("hard link to \"a/secret\", which is not in this layer"),
        },
        Case {
            what: "a hard link to a folder",
            parts: vec![folder("d"), entry(b'1', "h", "d", b"")],
            becomes: Err("hard link to \"d\", which is a folder"),
        },
        Case {
            what: "a hard link to a device, which a file then replaces",
            parts: vec![
                device("null", 1, 3),
                entry(b'1', "h", "null", b""),
                file("h", "1"),
            ],
            becomes: Ok(&["h=1", "null#1:3"]),
        },
        Case {
            what: "devices are made: the device cgroup of the container decides about them",
            parts: vec![device("mem", 1, 1), with_mode(device("kmsg", 1, 11), 0o6777)],
            becomes: Ok(&["kmsg#1:11+s", "mem#1:1"]),
        },
        Case {
            what: "overlayfs's own whiteout as a device hides, as a whiteout does",
            parts: vec![device("gone", 0, 0), device("d", 0, 0), file("d/in", "1")],
            becomes: Ok(&["d/!", "d/in=1", "gone-"]),
        },
        Case {
            what: "overlayfs's own words are not passed on",
            parts: vec![
                pax(b'x', &[("SCHILY.xattr.trusted.overlay.opaque", b"y")]),
                folder("d"),
                pax(b'x', &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]),
                folder("e"),
            ],
            becomes: Ok(&["d/", "e/"]),
        },
        Case {
            what: "set-id bits on files, folders, FIFOs and links",
            parts: vec![
                with_mode(block(b'0', "f", "", 0), 0o6755),
                with_mode(block(b'5', "d", "", 0), 0o7777),
                with_mode(block(b'6', "p", "", 0), 0o4777),
                with_mode(block(b'2', "l", "f", 0), 0o7777),
                file("d/in", "1"),
            ],
            becomes: Ok(&["d/+s", "d/in=1", "f=+s", "l>f", "p|+s"]),
        },
    ]);
}

/// As Go's reader, which containerd has, all of them are refused.
#[test]
fn sizes_that_lie() {
    let sparse = |size: &'static [u8], map: &'static [u8], data: &[u8]| {
        let records = [("GNU.sparse.size", size), ("GNU.sparse.map", map)];
        vec![pax(b'x', &records), entry(b'0', "s", "", data)]
    };
    let size = |value: &'static [u8]| vec![pax(b'x', &[("size", value)]), file("f", "data")];
    let negative: [u8; 12] = [0xff; 12];
    let huge = *b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff";
    let over = *b"\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00";
    run(vec![
        Case {
            what: "a negative pax size",
            parts: size(b"-1"),
            becomes: Err("pax size is not a number"),
        },
        Case {
            what: "a pax size over 63 bits",
            parts: size(b"9223372036854775808"),
            becomes: Err("not a number"),
        },
        Case {
            what: "8 EiB less a byte, by pax",
            parts: size(b"9223372036854775807"),
            becomes: Err("truncated"),
        },
        Case {
            what: "a negative size",
            parts: vec![sized(block(b'0', "f", "", 0), &negative)],
            becomes: Err("negative"),
        },
        Case {
            what: "8 EiB less a byte",
            parts: vec![sized(block(b'0', "f", "", 0), &huge)],
            becomes: Err("truncated"),
        },
        Case {
            what: "8 EiB",
            parts: vec![sized(block(b'0', "f", "", 0), &over)],
            becomes: Err("size is negative"),
        },
        Case {
            what: "an extended header of 1 GiB",
            parts: vec![block(b'x', "pax", "", 1 << 30)],
            becomes: Err("larger than the limit"),
        },
        Case {
            what: "a long name of 2 MiB",
            parts: vec![block(b'L', "name", "", 2 << 20)],
            becomes: Err("larger than the limit"),
        },
        Case {
            what: "a sparse file whose data is behind its end",
            parts: sparse(b"10", b"5,10", &[1; 10]),
            becomes: Err("does not fit"),
        },
        Case {
            what: "segments that overlap",
            parts: sparse(b"100", b"0,8,4,2", &[1; 10]),
            becomes: Err("does not fit"),
        },
        Case {
            what: "segments that overflow",
            parts: sparse(b"9223372036854775807", b"9223372036854775807,10", &[1; 10]),
            becomes: Err("does not fit"),
        },
        Case {
            what: "a map of less than is stored",
            parts: sparse(b"100", b"0,4", &[1; 10]),
            becomes: Err("does not fit"),
        },
        Case {
            what: "an odd map",
            parts: sparse(b"100", b"0,4,8", &[1; 4]),
            becomes: Err("malformed"),
        },
    ]);
    // No lie, and larger than most filesystems take.
    let arena = Arena::new();
    match arena.unpack(&[sparse(b"9223372036854775807", b"0,1", &[1]).concat(), end()].concat()) {
        Ok(unpacked) => assert!(unpacked.bytes < 1 << 20, "{unpacked:?}"),
        Err(error) => {
            assert!(error.to_string().contains("set the file's size"), "{error}");
            assert_eq!(error.kind(), Kind::DataLoss);
        }
    }
}

/// What berthd itself reads of an image is bounded, whatever stands there.
#[test]
fn user_files_that_are_none() {
    const LIMIT: u64 = 10 << 20;
    let terabyte = [
        ("GNU.sparse.size", &b"1099511627776"[..]),
        ("GNU.sparse.map", b"0,5"),
    ];
    type Read<'a> = Result<Option<&'a [u8]>, &'a str>;
    let cases: Vec<(&str, Vec<Vec<u8>>, Read<'_>)> = vec![
        (
            "a sparse terabyte",
            vec![pax(b'x', &terabyte), entry(b'0', "etc/passwd", "", b"root:")],
            Err("larger than 10485760 bytes"),
        ),
        (
            "a FIFO",
            vec![entry(b'6', "etc/passwd", "", b"")],
            Err("no regular file"),
        ),
        (
            "a device that never ends",
            vec![device("etc/passwd", 1, 5)],
            Err("no regular file"),
        ),
        ("a folder", vec![folder("etc/passwd")], Err("no regular file")),
        (
            "a symlink to the host's",
            vec![symlink("etc/passwd", "../../../../../etc/passwd")],
            Err("look up"),
        ),
        (
            "a symlink to /proc",
            vec![symlink("etc/passwd", "/proc/self/environ")],
            Ok(None),
        ),
        (
            "a folder that leads out",
            vec![symlink("etc", "../outside"), file("x", "")],
            Ok(None),
        ),
        (
            "a symlink to a FIFO",
            vec![entry(b'6', "p", "", b""), symlink("etc/passwd", "/p")],
            Err("no regular file"),
        ),
        (
            "a loop",
            vec![symlink("etc/passwd", "group"), symlink("etc/group", "passwd")],
            Err("look up"),
        ),
    ];
    for (what, parts, expected) in cases {
        let arena = Arena::new();
        arena.unpack(&[parts.concat(), end()].concat()).unwrap();
        let layers: [PathBuf; 1] = [arena.layer()];
        match (view::read_file(&layers, "/etc/passwd", LIMIT), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{what}"),
            (Err(error), Err(words)) => {
                let message = error.to_string();
                assert!(
                    message.contains(words) && message.contains("/etc/passwd"),
                    "{what}: {message}"
                );
            }
            (found, _) => panic!("{what}: {found:?}"),
        }
    }
}
