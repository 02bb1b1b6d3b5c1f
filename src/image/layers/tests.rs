//! The store's life, and the kernel's overlayfs as the judge of what layers show.

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::Path,
};

use proptest::prelude::*;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::*;
use crate::image::{
    copy_up::copy_up,
    seal::Seal,
    tar::tests::{block, end, entry, pax, seal},
    unpack::{Limits, oracle::tree, unpack},
    view::read_file,
};

struct Fixture {
    dir: tempfile::TempDir,
    layers: Layers,
    /// Top first.
    stack: Vec<PathBuf>,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::open(&dir.path().join("layers"), 0).unwrap();
        Fixture {
            dir,
            layers,
            stack: Vec::new(),
        }
    }

    /// Unpacks an archive and commits it over what is there.
    fn add(&mut self, parts: &[Vec<u8>]) -> (Layer, Unpacked) {
        let archive = [parts.concat(), end()].concat();
        let ingest = self.layers.begin().unwrap();
        let unpacked = unpack(&mut &archive[..], ingest.dir(), &Limits::default()).unwrap();
        let layer = self.layers.commit(ingest, &unpacked, &self.stack).unwrap();
        self.stack.insert(0, layer.path.clone());
        (layer, unpacked)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path().join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// The layers as the kernel shows them, by a mount that is in no namespace. None: not allowed to.
fn overlay(stack: &[PathBuf], empty: &Path) -> Option<OwnedFd> {
    let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(errno) => {
            println!("skipped: overlayfs cannot be opened here: {errno}");
            return None;
        }
    };
    // Read-only ones need two layers at least.
    for layer in stack.iter().map(PathBuf::as_path).chain([empty]) {
        if let Err(errno) = rustix::mount::fsconfig_set_string(&context, "lowerdir+", layer) {
            println!("skipped: overlayfs before Linux 6.8: {errno}");
            return None;
        }
    }
    rustix::mount::fsconfig_create(&context).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Some(rustix::mount::fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap())
}

fn folder(name: &str, mode: u32, uid: u32, mtime: u32) -> Vec<u8> {
    let mut bytes = block(b'5', name, "", 0);
    bytes[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    bytes[108..115].copy_from_slice(format!("{uid:07o}").as_bytes());
    bytes[136..147].copy_from_slice(format!("{mtime:011o}").as_bytes());
    seal(&mut bytes);
    bytes
}

#[test]
fn implied_folders_are_as_those_below() {
    let mut fixture = Fixture::new();
    let (base, _) = fixture.add(&[
        pax(b'x', &[("SCHILY.xattr.user.k", b"v")]),
        folder("tmp/", 0o1777, 3, 1000),
        folder("home/", 0o711, 4, 2000),
        folder("gone/", 0o700, 5, 3000),
    ]);
    fixture.add(&[entry(b'0', ".wh.gone", "", b"")]);
    let (top, unpacked) = fixture.add(&[
        entry(b'0', "tmp/file", "", b"x"),
        entry(b'0', "home/user/file", "", b"x"),
        entry(b'0', "gone/file", "", b"x"),
    ]);
    let at = |name: &str| fs::metadata(top.path.join(name)).unwrap();
    let what = |m: fs::Metadata| (m.mode() & 0o7777, m.uid(), m.mtime());
    assert_eq!(what(at("tmp")), (0o1777, 3, 1000));
    assert_eq!(what(at("home")), (0o711, 4, 2000));
    assert_eq!(what(at("home/user")), (0o755, 0, 0));
    assert_eq!(what(at("gone")), (0o755, 0, 0));
    let mut value = [0u8; 8];
    assert_eq!(
        rustix::fs::getxattr(top.path.join("tmp"), "user.k", &mut value[..]),
        Ok(1)
    );
    // The base had nothing to get, nor has what is alone.
    assert_eq!(base.variant, "");
    assert_eq!(fixture.layers.variant(&unpacked.implied, &[]).unwrap(), "");
    let below = [fixture.stack[1].clone(), fixture.stack[2].clone()];
    assert_eq!(
        fixture.layers.variant(&unpacked.implied, &below).unwrap(),
        top.variant
    );
    assert_eq!(top.variant.len(), 64);

    // Over another base the same archive is another variant, made without it.
    let mut other = fixture;
    other.stack.clear();
    other.add(&[folder("tmp/", 0o700, 9, 1)]);
    let derived = other
        .layers
        .derive(top.number, &unpacked.implied, &other.stack)
        .unwrap();
    assert_ne!(derived.variant, top.variant);
    assert_eq!(
        derived.variant,
        other.layers.variant(&unpacked.implied, &other.stack).unwrap()
    );
    let seal = |layer: &Layer| Seal::of(fs::File::open(&layer.path).unwrap().into(), &unpacked.implied);
    for layer in [&top, &derived] {
        assert_eq!(seal(layer).unwrap(), unpacked.seal, "variants have one seal");
    }
    let (before, after) = (tree(&top.path), tree(&derived.path));
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    let at = |name: &str| fs::metadata(derived.path.join(name)).unwrap();
    assert_eq!(what(at("tmp")), (0o700, 9, 1));
    assert_eq!(what(at("home")), (0o755, 0, 0));
    assert_eq!(
        at("tmp/file").ino(),
        fs::metadata(top.path.join("tmp/file")).unwrap().ino()
    );
    // Its files live on without the first.
    other.layers.remove(top.number).unwrap();
    assert_eq!(fs::read(derived.path.join("tmp/file")).unwrap(), b"x");
}

#[test]
fn a_derived_layer_keeps_whiteouts_and_opaque_folders() {
    let mut fixture = Fixture::new();
    let parts = [
        folder("a/", 0o750, 1, 10),
        entry(b'0', "a/.wh..wh..opq", "", b""),
        entry(b'0', "a/.wh.b", "", b""),
        folder("a/c/", 0o3711, 2, 20),
        entry(b'2', "a/c/link", "to", b""),
        entry(b'0', ".wh..wh..opq", "", b""),
    ];
    let (layer, unpacked) = fixture.add(&parts);
    let derived = fixture
        .layers
        .derive(layer.number, &unpacked.implied, &[])
        .unwrap();
    let (mut before, mut after) = (tree(&layer.path), tree(&derived.path));
    assert!(before.contains_key("a/c/link"));
    // The root is made anew; only its mark counts.
    before.remove("");
    assert!(after.remove("").unwrap().contains("trusted.overlay.opaque"));
    assert_eq!(before, after);
    assert!(view::has_opaque_root(&derived.path).unwrap());
}

#[test]
fn a_crash_leaves_nothing_after_the_sweep() {
    let mut fixture = Fixture::new();
    let (kept, _) = fixture.add(&[entry(b'0', "f", "", b"x")]);
    let (lost, _) = fixture.add(&[entry(b'0', "f", "", b"x")]);
    fixture.layers.sync().unwrap();
    drop(fixture.layers.begin().unwrap());
    assert_eq!(fixture.names(), ["1", "2"]);
    let path = fixture.dir.path().join("layers");
    for name in ["tmp-7/a/b", "trash-5/c", "notes"] {
        fs::create_dir_all(path.join(name)).unwrap();
    }
    let layers = Layers::open(&path, 3).unwrap();
    let begun = layers.begin().unwrap();
    assert_eq!(begun.path(), path.join("tmp-8"), "above all that is there");
    assert!(layers.sweep(&HashSet::from([kept.number])).is_empty());
    assert!(layers.holds(kept.number) && !layers.holds(lost.number));
    fixture.layers = layers;
    assert_eq!(fixture.names(), ["1", "notes", "tmp-8"]);
    let used = Layers::open(&path, 40).unwrap();
    assert_eq!(used.begin().unwrap().path(), path.join("tmp-41"));
    fixture.layers.remove(kept.number).unwrap();
    fixture.layers.remove(kept.number).unwrap();
    drop(begun);
    assert_eq!(fixture.names(), ["notes"]);
}

#[test]
fn files_are_read_through_the_layers() {
    let mut fixture = Fixture::new();
    fixture.add(&[
        entry(b'0', "etc/passwd", "", b"root:x:0:0"),
        entry(b'0', "etc/shadow", "", b"hidden"),
        entry(b'0', "usr/etc/group", "", b"root:x:0"),
        entry(b'2', "etc/group", "../usr/etc/group", b""),
        entry(b'2', "etc/out", "../../../../etc/hostname", b""),
        entry(b'2', "abs", "/etc", b""),
        entry(b'2', "loop", "loop", b""),
        entry(b'6', "fifo", "", b""),
    ]);
    fixture.add(&[entry(b'0', "etc/.wh.shadow", "", b"")]);
    let read = |path: &str| read_file(&fixture.stack, path, 1000);
    assert_eq!(read("/etc/passwd").unwrap().unwrap(), b"root:x:0:0");
    assert_eq!(read("abs/../abs/passwd").unwrap().unwrap(), b"root:x:0:0");
    assert_eq!(read("etc/group").unwrap().unwrap(), b"root:x:0");
    for none in [
        "etc/shadow",
        "etc/out",
        "none",
        "none/none",
        "etc/passwd/x",
        "../outside",
    ] {
        assert_eq!(read(none).unwrap(), None, "{none}");
    }
    assert!(matches!(read("fifo"), Err(view::Error::NoFile { .. })));
    assert!(matches!(read("etc"), Err(view::Error::NoFile { .. })));
    assert!(matches!(read("/"), Err(view::Error::NoFile { .. })));
    assert!(matches!(
        read("loop"),
        Err(view::Error::Lookup {
            errno: Errno::LOOP,
            ..
        })
    ));
    let short = read_file(&fixture.stack, "etc/passwd", 5);
    assert!(matches!(short, Err(view::Error::TooLarge { limit: 5, .. })));
}

#[test]
fn volumes_get_what_the_image_has() {
    let mut fixture = Fixture::new();
    fixture.add(&[
        folder("data/", 0o2770, 7, 1000),
        entry(b'0', "data/old", "", b"old"),
        entry(b'0', "data/gone", "", b""),
        entry(b'1', "data/link", "data/old", b""),
        folder("data/hidden/", 0o755, 0, 1),
        entry(b'0', "data/hidden/x", "", b""),
        entry(b'2', "alias", "/data", b""),
        entry(b'0', "file", "", b""),
    ]);
    fixture.add(&[
        entry(b'0', "data/.wh.gone", "", b""),
        entry(b'0', "data/hidden/.wh..wh..opq", "", b""),
        entry(b'0', "data/new", "", b"new"),
    ]);
    let dest = |name: &str| fixture.dir.path().join(name);
    copy_up(&fixture.stack, "/alias", &dest("v")).unwrap();
    let copied = tree(&dest("v"));
    let names: Vec<_> = copied.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "hidden", "link", "new", "old"]);
    let top = fs::metadata(dest("v")).unwrap();
    assert_eq!((top.mode() & 0o7777, top.uid(), top.mtime()), (0o2770, 7, 1000));
    assert_eq!(fs::metadata(dest("v/old")).unwrap().nlink(), 2);

    fs::create_dir(dest("empty")).unwrap();
    chown(dest("empty"), Some(5), Some(5)).unwrap();
    fs::set_permissions(dest("empty"), fs::Permissions::from_mode(0o700)).unwrap();
    copy_up(&fixture.stack, "/none", &dest("empty")).unwrap();
    let empty = fs::metadata(dest("empty")).unwrap();
    assert_eq!((empty.mode() & 0o7777, empty.uid()), (0o755, 0));
    let file = copy_up(&fixture.stack, "/file", &dest("f")).unwrap_err();
    assert_eq!(file.kind(), Kind::FailedPrecondition, "{file}");
}

#[test]
fn holes_are_copied_as_holes() {
    let mut fixture = Fixture::new();
    let records = [
        ("GNU.sparse.size", &b"1073741824"[..]),
        ("GNU.sparse.map", b"4096,4096,536870912,4096"),
    ];
    fixture.add(&[pax(b'x', &records), entry(b'0', "v/holes", "", &[7; 8192])]);
    let dest = fixture.dir.path().join("v");
    copy_up(&fixture.stack, "v", &dest).unwrap();
    let meta = fs::metadata(dest.join("holes")).unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() * 512 < 1 << 17, "{}", meta.blocks());
    let mut byte = [0u8; 2];
    let file = fs::File::open(dest.join("holes")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 536_870_911).unwrap();
    assert_eq!(byte, [0, 7]);
}

#[test]
fn an_opaque_root_hides_all_below() {
    let mut fixture = Fixture::new();
    fixture.add(&[entry(b'0', "old", "", b"")]);
    fixture.add(&[entry(b'0', ".wh..wh..opq", "", b""), entry(b'0', "new", "", b"")]);
    assert!(view::has_opaque_root(&fixture.stack[0]).unwrap());
    assert_eq!(read_file(&fixture.stack, "old", 10).unwrap(), None);
    assert!(read_file(&fixture.stack, "new", 10).unwrap().is_some());
}

fn layer() -> impl Strategy<Value = Vec<(u8, String, u32)>> {
    let name = "(a|b|c)(/(a|b|c|\\.wh\\.a|\\.wh\\.b|\\.wh\\.\\.wh\\.\\.opq)){1,3}|\\.wh\\.a|\\.wh\\.b|a|b|c";
    prop::collection::vec(
        (prop::sample::select(&b"00055256"[..]), name, 0u32..0o1000),
        1..14,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whiteouts and opaque folders mean to our view what they mean to overlayfs.
    #[test]
    fn the_view_is_what_overlayfs_shows(images in prop::collection::vec(layer(), 1..5)) {
        let mut fixture = Fixture::new();
        for parts in &images {
            let mut archive = Vec::new();
            for (flag, name, number) in parts {
                archive.extend(match flag {
                    b'5' => folder(name, 0o400 | number, *number, *number),
                    b'2' => entry(b'2', name, "/nowhere", b""),
                    flag => entry(*flag, name, "", name.as_bytes().get(..if *flag == b'6' { 0 } else { name.len() }).unwrap()),
                });
            }
            archive.extend(end());
            let ingest = fixture.layers.begin().unwrap();
            // An entry below a file or symlink makes no layer: left out.
            let Ok(unpacked) = unpack(&mut &archive[..], ingest.dir(), &Limits::default()) else { continue };
            let layer = fixture.layers.commit(ingest, &unpacked, &fixture.stack).unwrap();
            fixture.stack.insert(0, layer.path);
        }
        prop_assume!(!fixture.stack.is_empty());
        let empty = fixture.dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        if let Some(mount) = overlay(&fixture.stack, &empty) {
            let dest = fixture.dir.path().join("copy");
            copy_up(&fixture.stack, "/", &dest).unwrap();
            let kernel = format!("/proc/self/fd/{}/.", mount.as_raw_fd());
            prop_assert_eq!(tree(&dest), tree(Path::new(&kernel)));
        }
    }
}
