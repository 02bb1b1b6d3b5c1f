//! Layers that are more than they look: where they end, and by whose word.

use std::fs;

use super::{
    hostile::{file, folder, symlink},
    tests::Arena,
    *,
};
use crate::image::tar::tests::{block, end, pax, seal};

#[test]
fn bombs_end_at_their_limit_and_name_it() {
    let limits = Limits {
        bytes: 1 << 20,
        entries: 100,
        ..Limits::default()
    };
    let attempt = |archive: &mut dyn Read, limits: &Limits| {
        let arena = Arena::new();
        let dir = fs::File::open(arena.layer()).unwrap();
        let error = unpack(archive, dir.as_fd(), limits).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{error}");
        let used = crate::image::usage::usage(&arena.layer()).unwrap();
        (error.to_string(), used)
    };
    // A file of 8 GiB of zeros.
    let mut head = block(b'0', "zeros", "", 0);
    head[124..135].copy_from_slice(b"77777777777");
    seal(&mut head);
    let mut zeros = (&head[..]).chain(std::io::repeat(0));
    let (message, used) = attempt(&mut zeros, &limits);
    assert!(
        message.contains("1048576") && message.contains("image.max_layer_bytes"),
        "{message}"
    );
    assert!(used.bytes < 3 << 20, "{used:?}");
    // Zeros behind the end of the archive count too.
    let small = [file("a", "1"), end()].concat();
    let mut padded = (&small[..]).chain(std::io::repeat(0));
    assert!(attempt(&mut padded, &limits).0.contains("image.max_layer_bytes"));
    // Entries without end.
    let many: Vec<u8> = (0..101).flat_map(|n| file(&format!("f{n}"), "")).collect();
    let (message, used) = attempt(&mut &many[..], &limits);
    assert!(
        message.contains("100 entries") && message.contains("image.max_layer_entries"),
        "{message}"
    );
    assert_eq!(used.inodes, 101);
    // Folders with long names, of which only the memory is a bomb.
    let names: Vec<u8> = (0..2)
        .flat_map(|n| {
            let name = format!("{n}{}", "/x".repeat(1500));
            [pax(b'x', &[("path", name.as_bytes())]), folder("x")].concat()
        })
        .collect();
    let tight = Limits {
        folders: 3 << 20,
        ..Limits::default()
    };
    let (message, _) = attempt(&mut &names[..], &tight);
    assert!(message.contains("folders take more than"), "{message}");
    // Without limits all of them are layers.
    let none = Limits::default();
    let arena = Arena::new();
    let dir = fs::File::open(arena.layer()).unwrap();
    assert_eq!(unpack(&mut &many[..], dir.as_fd(), &none).unwrap().inodes, 101);
}

/// By way of symlinks a layer can go deeper than any path: nobody could open that.
#[test]
fn folders_deeper_than_a_path_are_refused_and_removed() {
    let deep = "d/".repeat(1500);
    let mut archive = Vec::new();
    for (n, at) in ["l0", "l1", "l2"].iter().enumerate() {
        let before = if n == 0 {
            String::new()
        } else {
            format!("l{}/", n - 1)
        };
        archive.extend(pax(b'x', &[("path", format!("{before}{deep}").as_bytes())]));
        archive.extend(folder("x"));
        archive.extend(pax(b'x', &[("linkpath", format!("{before}{deep}").as_bytes())]));
        archive.extend(symlink(at, "x"));
    }
    archive.extend(end());
    let arena = Arena::new();
    let error = arena.unpack(&archive).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Apply {
                errno: Errno::NAMETOOLONG,
                ..
            }
        ),
        "{error}"
    );
    let parent = fs::File::open(arena.dir.path()).unwrap();
    walk::remove_tree(parent.as_fd(), c"layer").unwrap();
    assert!(!arena.layer().exists());
    fs::create_dir(arena.layer()).unwrap();
}
