//! What a seal notices, and what it must not depend on.

use std::{
    fs,
    io::{Seek as _, Write as _},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
};

use proptest::prelude::*;

use super::*;
use crate::image::{
    tar::tests::{block, end, entry, pax},
    unpack::{Limits, Unpacked, unpack},
};

fn unpacked(parts: &[Vec<u8>]) -> (tempfile::TempDir, Unpacked) {
    let dir = tempfile::tempdir().unwrap();
    let archive = [parts.concat(), end()].concat();
    let top = fs::File::open(dir.path()).unwrap();
    let unpacked = unpack(&mut &archive[..], top.as_fd(), &Limits::default()).unwrap();
    (dir, unpacked)
}

fn look(dir: &Path, implied: &[PathBuf]) -> Seal {
    Seal::of(fs::File::open(dir).unwrap().into(), implied).unwrap()
}

/// Of several blocks, with one of nothing but zeros.
fn large() -> Vec<u8> {
    let mut bytes = vec![7; 3 * BLOCK + 5];
    bytes[BLOCK..2 * BLOCK].fill(0);
    bytes
}

fn layer() -> Vec<Vec<u8>> {
    vec![
        block(b'5', "etc/", "", 0),
        entry(b'0', "etc/passwd", "", b"root:x:0:0"),
        entry(b'0', "etc/empty", "", b""),
        block(b'1', "etc/again", "etc/passwd", 0),
        block(b'2', "etc/link", "passwd", 0),
        entry(b'0', "implied/below/large", "", &large()),
        pax(b'x', &[("SCHILY.xattr.user.k", b"v")]),
        entry(b'0', "marked", "", b"m"),
        block(b'6', "fifo", "", 0),
        entry(b'0', ".wh.hidden", "", b""),
        entry(b'0', "etc/.wh..wh..opq", "", b""),
    ]
}

#[test]
fn the_disk_has_the_seal_that_was_made_while_unpacking() {
    let (dir, unpacked) = unpacked(&layer());
    assert_ne!(unpacked.seal, Seal::default());
    assert_eq!(look(dir.path(), &unpacked.implied), unpacked.seal);
    // What the layers below say of an implied folder is no matter of this one.
    let implied = dir.path().join("implied");
    fs::set_permissions(&implied, fs::Permissions::from_mode(0o1777)).unwrap();
    chown(&implied, Some(7), Some(7)).unwrap();
    assert_eq!(look(dir.path(), &unpacked.implied), unpacked.seal);
    assert_ne!(look(dir.path(), &[]), unpacked.seal);
}

#[test]
fn what_was_replaced_is_not_in_it() {
    let replaced = [
        layer(),
        vec![
            entry(b'0', "etc/passwd", "", b"another"),
            entry(b'0', "implied", "", b"was a folder"),
        ],
    ];
    let (dir, unpacked) = unpacked(&replaced.concat());
    assert_eq!(look(dir.path(), &unpacked.implied), unpacked.seal);
}

#[test]
fn every_loss_is_noticed() {
    type Harm = fn(&Path);
    let at = |path: &Path, offset: u64, bytes: &[u8]| {
        let mtime = fs::metadata(path).unwrap().modified().unwrap();
        let mut file = fs::File::options().write(true).open(path).unwrap();
        file.seek(std::io::SeekFrom::Start(offset)).unwrap();
        file.write_all(bytes).unwrap();
        file.set_modified(mtime).unwrap();
    };
    // The bytes alone differ, as when a disk loses them.
    for (name, offset, bytes) in [
        ("etc/passwd", 0, &b"R"[..]),
        ("implied/below/large", 0, &[0; BLOCK]),
        ("implied/below/large", BLOCK as u64 + 9, b"1"),
        ("implied/below/large", 3 * BLOCK as u64 + 4, b"\0"),
    ] {
        let (dir, unpacked) = unpacked(&layer());
        at(&dir.path().join(name), offset, bytes);
        assert_ne!(
            look(dir.path(), &unpacked.implied),
            unpacked.seal,
            "{name} at {offset}"
        );
    }
    let harms: [(&str, Harm); 13] = [
        ("a file is shorter", |top| {
            let file = fs::File::options()
                .write(true)
                .open(top.join("implied/below/large"))
                .unwrap();
            file.set_len(3 * BLOCK as u64 + 4).unwrap();
        }),
        ("a file is longer by zeros", |top| {
            let file = fs::File::options().write(true).open(top.join("marked")).unwrap();
            file.set_len(2).unwrap();
        }),
        ("an empty file is gone", |top| {
            fs::remove_file(top.join("etc/empty")).unwrap()
        }),
        ("one of two names is gone", |top| {
            fs::remove_file(top.join("etc/again")).unwrap()
        }),
        ("a name more", |top| {
            fs::hard_link(top.join("marked"), top.join("more")).unwrap()
        }),
        ("a folder more", |top| {
            fs::create_dir(top.join("etc/new")).unwrap()
        }),
        ("a mode", |top| {
            fs::set_permissions(top.join("marked"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("an owner", |top| {
            chown(top.join("marked"), Some(9), None).unwrap()
        }),
        ("a target", |top| {
            fs::remove_file(top.join("etc/link")).unwrap();
            symlink("shadow", top.join("etc/link")).unwrap();
        }),
        ("a time", |top| {
            let file = fs::File::open(top.join("marked")).unwrap();
            file.set_modified(std::time::SystemTime::now()).unwrap();
        }),
        ("an attribute", |top| {
            rustix::fs::removexattr(top.join("marked"), c"user.k").unwrap();
        }),
        ("an opaque folder", |top| {
            rustix::fs::removexattr(top.join("etc"), c"trusted.overlay.opaque").unwrap();
        }),
        ("a whiteout", |top| fs::remove_file(top.join("hidden")).unwrap()),
    ];
    for (what, harm) in harms {
        let (dir, unpacked) = unpacked(&layer());
        harm(dir.path());
        assert_ne!(look(dir.path(), &unpacked.implied), unpacked.seal, "{what}");
    }
}

/// The sum of a file that comes in pieces at these offsets.
fn sum(pieces: &[(u64, &[u8])], size: u64) -> u128 {
    let mut contents = Contents::default();
    for (offset, bytes) in pieces {
        contents.update(*offset, bytes);
    }
    contents.file(size);
    assert!(!contents.spoiled);
    contents.sum
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// However it is cut, and whether zeros come or are holes.
    #[test]
    fn pieces_do_not_matter(cuts in prop::collection::vec(0..4 * BLOCK, 0..6), zeros in 0..3 * BLOCK, length in 0..BLOCK) {
        let mut bytes: Vec<u8> = (0..4 * BLOCK).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let hole = zeros..zeros + length;
        bytes[hole.clone()].fill(0);
        let size = bytes.len() as u64;
        let whole = sum(&[(0, &bytes)], size);
        let mut cuts = cuts;
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<(u64, &[u8])> = cuts.windows(2).map(|cut| (cut[0] as u64, &bytes[cut[0]..cut[1]])).collect();
        prop_assert_eq!(sum(&pieces, size), whole);
        let around = [(0, &bytes[..hole.start]), (hole.end as u64, &bytes[hole.end..])];
        prop_assert_eq!(sum(&around, size), whole);
        prop_assert_ne!(sum(&around, size + 1), whole);
    }
}

#[test]
fn what_is_written_twice_spoils_the_sum() {
    let mut contents = Contents::default();
    contents.update(0, b"ab");
    contents.update(1, b"c");
    assert!(contents.spoiled);
}
