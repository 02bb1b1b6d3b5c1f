//! On the real filesystem: what comes out, and what must not.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::*;
use crate::image::{
    tar::tests::{block, end, entry, pax, seal},
    usage::usage,
};

/// A folder with a place that must stay as it is, and the layer beside it.
pub(super) struct Arena {
    pub dir: tempfile::TempDir,
}

impl Arena {
    pub fn new() -> Arena {
        Arena::within(tempfile::tempdir().unwrap())
    }

    fn within(dir: tempfile::TempDir) -> Arena {
        fs::create_dir(dir.path().join("layer")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Arena { dir }
    }

    pub fn layer(&self) -> std::path::PathBuf {
        self.dir.path().join("layer")
    }

    pub fn unpack(&self, archive: &[u8]) -> Result<Unpacked, Error> {
        let dir = fs::File::open(self.layer()).unwrap();
        let mut reader = archive;
        let result = unpack(&mut reader, dir.as_fd(), &Limits::default());
        // Whatever was asked: nothing changed outside.
        assert_eq!(
            fs::read_to_string(self.dir.path().join("outside/secret")).unwrap(),
            "secret"
        );
        assert_eq!(fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
        if let Ok(unpacked) = &result {
            let found = Seal::of(dir.into(), &unpacked.implied).unwrap();
            assert_eq!(found, unpacked.seal, "the disk has another seal");
        }
        result
    }
}

fn header(flag: u8, name: &str, link: &str, mode: u32) -> Vec<u8> {
    let mut bytes = block(flag, name, link, 0);
    bytes[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    seal(&mut bytes);
    bytes
}

fn device(flag: u8, name: &str, major: u32, minor: u32) -> Vec<u8> {
    let mut bytes = block(flag, name, "", 0);
    bytes[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
    bytes[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
    seal(&mut bytes);
    bytes
}

pub(super) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0u8; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

#[test]
fn all_attributes_are_kept() {
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = [
        header(b'5', "./", "", 0o700),
        pax(
            b'x',
            &[
                ("mtime", b"100.000000123"),
                ("uid", b"7"),
                ("SCHILY.xattr.user.d", b"f"),
            ],
        ),
        header(b'5', "dir/", "", 0o3775),
        pax(
            b'x',
            &[
                ("mtime", b"1234567890.123456789"),
                ("atime", b"1300000000.5"),
                ("uid", b"1000"),
                ("gid", b"2000"),
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.k", b"v\0w"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.security.selinux", b"x"),
            ],
        ),
        [header(b'0', "dir/file", "", 0o6755)].concat(),
        // Gets no group from the setgid folder.
        entry(b'0', "dir/plain", "", b"content"),
        pax(b'x', &[("uid", b"5"), ("gid", b"6"), ("mtime", b"-1.25")]),
        header(b'2', "link", "/nowhere", 0o777),
        device(b'3', "dir/null", 1, 3),
        device(b'4', "dir/disk", 300, 70000),
        header(b'6', "dir/fifo", "", 0o622),
        header(b'1', "hard", "/dir/file", 0o6755),
        end(),
    ]
    .concat();
    let arena = Arena::new();
    let unpacked = arena.unpack(&archive).unwrap();
    let at = |name: &str| fs::symlink_metadata(arena.layer().join(name)).unwrap();
    // The root's entry is passed over.
    assert_eq!(fs::metadata(arena.layer()).unwrap().mode() & 0o7777, 0o755);
    let dir = at("dir");
    assert_eq!(
        (dir.mode() & 0o7777, dir.uid(), dir.mtime(), dir.mtime_nsec()),
        (0o3775, 7, 100, 123)
    );
    assert_eq!(xattr(&arena.layer().join("dir"), "user.d").unwrap(), b"f");
    // The hard link's header has another owner: it counts, being the later.
    let file = at("dir/file");
    assert_eq!((file.nlink(), file.mode() & 0o7777, file.uid()), (2, 0o6755, 0));
    let path = arena.layer().join("dir/file");
    assert_eq!(xattr(&path, "user.k").unwrap(), b"v\0w");
    assert_eq!(xattr(&path, "trusted.overlay.redirect"), None);
    assert_eq!((at("dir/plain").uid(), at("dir/plain").gid()), (0, 0));
    let link = at("link");
    assert_eq!(
        (link.uid(), link.gid(), link.mtime(), link.mtime_nsec()),
        (5, 6, -2, 750_000_000)
    );
    assert_eq!(at("dir/null").rdev(), makedev(1, 3));
    assert_eq!(at("dir/disk").rdev(), makedev(300, 70000));
    assert!(at("dir/fifo").file_type().is_fifo());
    assert_eq!(at("dir/fifo").mode() & 0o7777, 0o622);
    assert_eq!((unpacked.inodes, unpacked.skipped_xattrs), (7, 2));
    assert!(unpacked.implied.is_empty());
}

#[test]
fn capabilities_and_setuid_survive_owner_and_links() {
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let owner = [
        ("uid", &b"1000"[..]),
        ("gid", b"2000"),
        ("mtime", b"5.5"),
        ("atime", b"9"),
    ];
    let archive = [
        pax(
            b'x',
            &[&owner[..], &[("SCHILY.xattr.security.capability", &capability)]].concat(),
        ),
        header(b'0', "ping", "", 0o6755),
        pax(b'x', &owner),
        header(b'1', "ping2", "ping", 0o6755),
        end(),
    ]
    .concat();
    let arena = Arena::new();
    let unpacked = arena.unpack(&archive).unwrap();
    let path = arena.layer().join("ping2");
    let m = fs::metadata(&path).unwrap();
    assert_eq!(
        (m.uid(), m.gid(), m.mode() & 0o7777, m.nlink()),
        (1000, 2000, 0o6755, 2)
    );
    assert_eq!((m.atime(), m.mtime(), m.mtime_nsec()), (9, 5, 500_000_000));
    assert_eq!(xattr(&path, "security.capability").unwrap(), capability);
    assert_eq!(unpacked.inodes, 1);
}

#[test]
fn nothing_gets_out() {
    let outside = |arena: &Arena| arena.dir.path().join("outside").display().to_string();
    // Names with "..": taken as at a root.
    let arena = Arena::new();
    let up = "../".repeat(20);
    let escape = format!("{up}{}/secret", &outside(&arena)[1..]);
    let archive = [entry(b'0', "../../outside/secret", "", b"bad"), end()].concat();
    arena.unpack(&archive).unwrap();
    assert_eq!(fs::read(arena.layer().join("outside/secret")).unwrap(), b"bad");
    let arena = Arena::new();
    let archive = [
        pax(b'x', &[("path", escape.as_bytes())]),
        entry(b'0', "x", "", b"bad"),
        end(),
    ]
    .concat();
    arena.unpack(&archive).unwrap();
    // Symlinks, absolute and relative, and a file through each.
    for target in [
        outside(&arena),
        "../outside".into(),
        "../../../../../..".into(),
        "/".into(),
        ".".into(),
    ] {
        for flag in [b'0', b'2', b'5', b'6'] {
            let arena = Arena::new();
            let target = if target.starts_with("/tmp") {
                outside(&arena)
            } else {
                target.clone()
            };
            let archive = [
                pax(b'x', &[("linkpath", target.as_bytes())]),
                entry(b'2', "a", "", b""),
                entry(b'2', "b", "a", b""),
                block(flag, "b/secret", "x", 0),
                block(flag, "a/outside/secret", "x", 0),
                end(),
            ]
            .concat();
            arena.unpack(&archive).unwrap();
        }
    }
    // Hard links to what is outside: such a file is not in the layer.
    for target in [
        "/outside/secret",
        "../outside/secret",
        "a/secret",
        "/etc/passwd",
        ".",
        "a",
    ] {
        let arena = Arena::new();
        let archive = [
            pax(b'x', &[("linkpath", outside(&arena).as_bytes())]),
            entry(b'2', "a", "", b""),
            block(b'1', "stolen", target, 0),
            entry(b'0', "stolen", "", b"bad"),
            end(),
        ]
        .concat();
        match (target, arena.unpack(&archive)) {
            // A second name of the symlink itself, which the file then replaces.
            ("a", Ok(_)) | (_, Err(Error::LinkTarget { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
    // A folder that becomes a symlink after it was used, and a chain of them.
    let arena = Arena::new();
    let archive = [
        entry(b'5', "d/", "", b""),
        entry(b'0', "d/first", "", b"x"),
        pax(b'x', &[("linkpath", outside(&arena).as_bytes())]),
        entry(b'2', "d", "", b""),
        entry(b'0', "d/secret", "", b"bad"),
        entry(b'2', "e", "d/../..", b""),
        entry(b'0', "e/outside/secret", "", b"bad"),
        end(),
    ]
    .concat();
    arena.unpack(&archive).unwrap();
    // A loop of them is an error.
    let arena = Arena::new();
    let archive = [
        entry(b'2', "a", "b", b""),
        entry(b'2', "b", "a", b""),
        entry(b'0', "a/f", "", b""),
    ]
    .concat();
    let error = arena.unpack(&archive).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Apply {
                errno: Errno::LOOP,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_folder_entry_does_not_chmod_through_a_symlink() {
    // RUSTSEC-2026-0067.
    let arena = Arena::new();
    let target = arena.dir.path().join("outside");
    let before = fs::metadata(&target).unwrap().mode();
    let archive = [
        pax(b'x', &[("linkpath", target.as_os_str().as_encoded_bytes())]),
        entry(b'2', "d", "", b""),
        header(b'5', "d", "", 0o777),
        end(),
    ]
    .concat();
    arena.unpack(&archive).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().mode(), before);
    assert!(fs::symlink_metadata(arena.layer().join("d")).unwrap().is_dir());
}

#[test]
fn symlinked_parents_are_followed_inside() {
    let arena = Arena::new();
    let archive = [
        entry(b'2', "lib", "/usr/lib", b""),
        entry(b'0', "lib/a", "", b"a"),
        entry(b'0', "lib/../b", "", b"b"),
        end(),
    ]
    .concat();
    let unpacked = arena.unpack(&archive).unwrap();
    assert_eq!(fs::read(arena.layer().join("usr/lib/a")).unwrap(), b"a");
    assert_eq!(fs::read(arena.layer().join("b")).unwrap(), b"b");
    assert_eq!(unpacked.implied, [Path::new("usr"), Path::new("usr/lib")]);
    let not = [entry(b'0', "f", "", b""), entry(b'0', "f/x", "", b""), end()].concat();
    assert!(matches!(Arena::new().unpack(&not), Err(Error::NoFolder { .. })));
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let kinds = [
        entry(b'0', "x", "", b"new"),
        header(b'5', "x", "", 0o711),
        entry(b'2', "x", "t", b""),
        entry(b'6', "x", "", b""),
        device(b'3', "x", 1, 3),
        entry(b'1', "x", "other", b""),
    ];
    for (first, before) in kinds.iter().enumerate() {
        for (second, after) in kinds.iter().enumerate() {
            let arena = Arena::new();
            let inside = if first == 1 {
                entry(b'0', "x/y/z", "", b"in")
            } else {
                Vec::new()
            };
            let archive = [
                &entry(b'0', "other", "", b"o")[..],
                before,
                &inside,
                after,
                &end(),
            ]
            .concat();
            let unpacked = arena.unpack(&archive).unwrap();
            let path = arena.layer().join("x");
            let meta = fs::symlink_metadata(&path).unwrap();
            let good = match second {
                0 => fs::read(&path).unwrap() == b"new",
                1 => {
                    meta.is_dir() && meta.mode() & 0o777 == 0o711 && path.join("y/z").exists() == (first == 1)
                }
                2 => meta.is_symlink(),
                3 => meta.file_type().is_fifo(),
                4 => meta.rdev() == makedev(1, 3),
                _ => meta.nlink() == 2,
            };
            assert!(good, "{first} then {second}");
            let inodes = usage(&arena.layer()).unwrap().inodes - 1;
            assert_eq!(unpacked.inodes, inodes, "{first} then {second}");
            assert_eq!(unpacked.implied.len(), usize::from((first, second) == (1, 1)));
        }
    }
}

#[test]
fn a_link_to_itself_stays() {
    let arena = Arena::new();
    let archive = [entry(b'0', "f", "", b"x"), entry(b'1', "f", "f", b""), end()].concat();
    arena.unpack(&archive).unwrap();
    assert_eq!(fs::read(arena.layer().join("f")).unwrap(), b"x");
}

#[test]
fn whiteouts_apply_to_the_layers_below_only() {
    let arena = Arena::new();
    let archive = [
        entry(b'0', "dir/.wh.gone", "", b""),
        entry(b'0', "opaque/.wh..wh..opq", "", b""),
        entry(b'0', "opaque/new", "", b""),
        // The layer's own things stay, before and after.
        entry(b'0', "file", "", b"mine"),
        entry(b'0', ".wh.file", "", b""),
        entry(b'5', "folder", "", b""),
        entry(b'0', "folder/in", "", b""),
        entry(b'0', ".wh.folder", "", b""),
        entry(b'0', ".wh.later", "", b""),
        entry(b'5', "later", "", b""),
        entry(b'0', ".wh.implied", "", b""),
        entry(b'0', "implied/in", "", b""),
        entry(b'0', ".wh..wh.plnk", "", b""),
        entry(b'0', ".wh..wh.aufs/x", "", b""),
        end(),
    ]
    .concat();
    let unpacked = arena.unpack(&archive).unwrap();
    let at = |name: &str| arena.layer().join(name);
    assert!(is_whiteout(&at("dir/gone")));
    assert!(is_opaque(&at("opaque")) && at("opaque/new").exists());
    assert_eq!(fs::read(at("file")).unwrap(), b"mine");
    assert!(is_opaque(&at("folder")) && at("folder/in").exists());
    assert!(is_opaque(&at("later")) && is_opaque(&at("implied")));
    assert_eq!(unpacked.implied, [Path::new("dir"), Path::new("opaque")]);
    let names = fs::read_dir(arena.layer()).unwrap().count();
    assert_eq!(names, 6, "no .wh. name is left");
    assert!(!unpacked.opaque_root);
    assert_eq!(unpacked.inodes, usage(&arena.layer()).unwrap().inodes - 1);
    for bad in [".wh.", "d/.wh..", ".wh..."] {
        let result = Arena::new().unpack(&[entry(b'0', bad, "", b""), end()].concat());
        assert!(matches!(result, Err(Error::Whiteout { .. })), "{bad}");
    }
    let root = Arena::new().unpack(&[entry(b'0', ".wh..wh..opq", "", b""), end()].concat());
    assert!(root.unwrap().opaque_root);
}

#[test]
fn holes_stay_holes() {
    let arena = Arena::new();
    let records = [
        ("GNU.sparse.size", &b"1073741824"[..]),
        ("GNU.sparse.map", b"536870912,4096"),
    ];
    let archive = [pax(b'x', &records), entry(b'0', "holes", "", &[7; 4096]), end()].concat();
    let unpacked = arena.unpack(&archive).unwrap();
    let meta = fs::metadata(arena.layer().join("holes")).unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() * 512 <= 65536, "{}", meta.blocks());
    assert_eq!(unpacked.bytes, meta.blocks() * 512);
}

#[test]
fn limits_and_damage_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let fd = fs::File::open(dir.path()).unwrap();
    let archive = [entry(b'0', "a", "", b""), entry(b'0', "b", "", &[0; 5000]), end()].concat();
    let run = |bytes, entries| {
        let limits = Limits {
            bytes,
            entries,
            ..Limits::default()
        };
        unpack(&mut &archive[..], fd.as_fd(), &limits).unwrap_err()
    };
    assert!(matches!(run(0, 1), Error::TooManyEntries { limit: 1 }));
    let long = run(4096, 10);
    assert_eq!(long.kind(), Kind::ResourceExhausted, "{long}");
    let cut = unpack(&mut &archive[..3000], fd.as_fd(), &Limits::default()).unwrap_err();
    assert_eq!(cut.kind(), Kind::DataLoss, "{cut}");
    let name = "n".repeat(300);
    let long =
        Arena::new().unpack(&[pax(b'x', &[("path", name.as_bytes())]), entry(b'0', "x", "", b"")].concat());
    assert!(long.unwrap_err().to_string().contains(&name));
}

#[test]
fn a_hundred_thousand_files_in_one_folder() {
    let mut archive = entry(b'5', "many", "", b"");
    for n in 0..100_000 {
        archive.extend(entry(b'0', &format!("many/file{n}"), "", b"small"));
    }
    archive.extend(end());
    // In memory, where it is there: it is our own work that is measured, not the disk's.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let arena = Arena::within(dir);
    let start = std::time::Instant::now();
    let unpacked = arena.unpack(&archive).unwrap();
    println!("100,000 files in one folder: {:?}", start.elapsed());
    assert_eq!(unpacked.inodes, 100_001);
    let start = std::time::Instant::now();
    let parent = fs::File::open(arena.dir.path()).unwrap();
    walk::remove_tree(parent.as_fd(), c"layer").unwrap();
    println!("removed: {:?}", start.elapsed());
    fs::create_dir(arena.layer()).unwrap();
}
