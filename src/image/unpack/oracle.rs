//! GNU tar beside us on whole trees, and hostile archives in any order.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use proptest::prelude::*;

use super::tests::{Arena, xattr};
use super::*;
use crate::image::{
    tar::tests::{end, entry, pax},
    usage::usage,
};

/// Everything about a tree that tar keeps.
pub(crate) fn tree(top: &Path) -> BTreeMap<String, String> {
    fn visit(
        top: &Path,
        path: &Path,
        links: &mut BTreeMap<u64, String>,
        into: &mut BTreeMap<String, String>,
    ) {
        let name = path.strip_prefix(top).unwrap().to_string_lossy().into_owned();
        // A whiteout with nothing below is listed by overlayfs, but is not there.
        let Ok(m) = fs::symlink_metadata(path) else {
            return;
        };
        let mut text = format!("{:o} {}:{}", m.mode(), m.uid(), m.gid());
        if !name.is_empty() {
            text += &format!(" {}.{:09}", m.mtime(), m.mtime_nsec());
        }
        let mut list = vec![0u8; 4096];
        let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
        let mut names: Vec<_> = list[..length]
            .split(|&b| b == 0)
            .filter(|n| !n.is_empty())
            .collect();
        names.sort_unstable();
        for key in names {
            let key = String::from_utf8_lossy(key);
            text += &format!(" {key}={:?}", xattr(path, &key));
        }
        if m.is_symlink() {
            text += &format!(" -> {}", fs::read_link(path).unwrap().display());
        } else if m.is_file() {
            text += &format!(
                " {:?}",
                std::hash::BuildHasher::hash_one(
                    &std::hash::BuildHasherDefault::<std::collections::hash_map::DefaultHasher>::default(),
                    fs::read(path).unwrap(),
                )
            );
            let first = links.entry(m.ino()).or_insert_with(|| name.clone());
            text += &format!(" of {first}");
        } else if !m.is_dir() {
            text += &format!(" dev {}", m.rdev());
        }
        into.insert(name, text);
        if m.is_dir() {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|path| visit(top, path, links, into));
        }
    }
    let mut into = BTreeMap::new();
    visit(top, top, &mut BTreeMap::new(), &mut into);
    into
}

/// Unpacks what GNU tar made of `source`, beside GNU tar itself.
fn compare_with_gnu_tar(source: &Path, format: &[&str]) {
    let arena = Arena::new();
    let oracle = tempfile::tempdir().unwrap();
    let archive = arena.dir.path().with_extension("tar");
    let run = |args: &[&std::ffi::OsStr]| {
        let out = Command::new("tar").args(args).output().unwrap();
        assert!(
            out.status.success(),
            "{args:?} {}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    fn os(text: &str) -> &std::ffi::OsStr {
        text.as_ref()
    }
    let mut pack: Vec<_> = format.iter().copied().map(os).collect();
    pack.extend([
        os("--sparse"),
        os("-cf"),
        archive.as_os_str(),
        os("-C"),
        source.as_os_str(),
        os("."),
    ]);
    run(&pack);
    let xattrs = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"];
    let mut extract: Vec<_> = xattrs.iter().copied().map(os).collect();
    extract.extend([archive.as_os_str(), os("-C"), oracle.path().as_os_str()]);
    run(&extract);
    let bytes = fs::read(&archive).unwrap();
    fs::remove_file(&archive).unwrap();
    let unpacked = arena.unpack(&bytes).unwrap();
    let (mut ours, mut theirs) = (tree(&arena.layer()), tree(oracle.path()));
    // The root's own attributes are not taken over.
    ours.remove("");
    theirs.remove("");
    for (path, text) in &theirs {
        assert_eq!(ours.get(path), Some(text), "{path}");
    }
    assert_eq!(ours.len(), theirs.len());
    let usage = usage(&arena.layer()).unwrap();
    assert_eq!(unpacked.inodes, usage.inodes - 1);
}

#[test]
fn the_same_as_gnu_tar_for_etc() {
    compare_with_gnu_tar(Path::new("/etc"), &["--format=posix", "--xattrs"]);
    compare_with_gnu_tar(Path::new("/etc"), &["--format=gnu"]);
}

/// A thing in a generated tree.
#[derive(Clone, Debug)]
enum Thing {
    File(Vec<u8>, u32),
    Sparse(u64),
    Link(String),
    Hard(prop::sample::Index),
    Fifo,
    Null,
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..3000), 0u32..0o10000).prop_map(|(d, m)| Thing::File(d, m)),
        1 => (0u64..1 << 22).prop_map(Thing::Sparse),
        1 => "[a-z./]{1,200}".prop_map(Thing::Link),
        2 => any::<prop::sample::Index>().prop_map(Thing::Hard),
        1 => Just(Thing::Fifo),
        1 => Just(Thing::Null),
    ]
}

fn plant(top: &Path, things: &[(String, Thing, u32, i64, u32)]) {
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    for (name, thing, owner, seconds, nanos) in things {
        let path = top.join(name.trim_matches('/'));
        if path.symlink_metadata().is_ok() || fs::create_dir_all(path.parent().unwrap()).is_err() {
            continue;
        }
        let made = match thing {
            Thing::File(data, mode) => fs::write(&path, data)
                .and_then(|()| std::os::unix::fs::lchown(&path, Some(*owner), Some(owner / 2)))
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode))),
            Thing::Sparse(size) => fs::File::create(&path).and_then(|file| {
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", size / 2)?;
                file.set_len(*size)
            }),
            Thing::Link(target) => std::os::unix::fs::symlink(target, &path),
            Thing::Hard(index) if !files.is_empty() => fs::hard_link(index.get(&files), &path),
            Thing::Hard(_) => continue,
            Thing::Fifo => rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR).map_err(Into::into),
            Thing::Null => rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                FileType::CharacterDevice,
                Mode::RUSR,
                makedev(1, 3),
            )
            .map_err(Into::into),
        };
        made.unwrap();
        let time = rustix::fs::Timespec {
            tv_sec: *seconds,
            tv_nsec: i64::from(*nanos),
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        files.push(path);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_same_as_gnu_tar_for_any_tree(
        things in prop::collection::vec(
            ("[a-c]{1,2}(/[a-d]{1,120}){0,3}", thing(), 0u32..70000, 0i64..4_000_000_000, 0u32..1_000_000_000),
            1..40,
        ),
        gnu in any::<bool>(),
    ) {
        let source = tempfile::tempdir().unwrap();
        plant(source.path(), &things);
        let format = if gnu { "--format=gnu" } else { "--format=posix" };
        compare_with_gnu_tar(source.path(), &[format]);
    }

    /// Hostile names and links in any order: no escape, no panic, no loop.
    #[test]
    fn any_order_of_hostile_entries_stays_inside(
        entries in prop::collection::vec(
            (prop::sample::select(&b"01256L"[..]), "(a|b|\\.\\.|/|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq|outside|secret)(/(a|b|\\.\\.|secret)){0,3}",
             "(/|\\.\\./|a/|b/){0,4}(a|b|outside|secret)"),
            1..24,
        )
    ) {
        let arena = Arena::new();
        let mut archive = Vec::new();
        for (flag, name, link) in &entries {
            archive.extend(match flag {
                b'L' => pax(b'x', &[("linkpath", arena.dir.path().join("outside").as_os_str().as_encoded_bytes())]),
                _ => Vec::new(),
            });
            archive.extend(entry(if *flag == b'L' { b'2' } else { *flag }, name, link, b""));
        }
        archive.extend(end());
        let _ = arena.unpack(&archive);
    }
}
