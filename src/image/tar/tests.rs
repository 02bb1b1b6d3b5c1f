//! Archives written by GNU tar, by Python's tarfile and by hand, and property tests.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

/// A header block with a right checksum.
pub(crate) fn block(flag: u8, name: &str, link: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

pub(crate) fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An entry with its data, padded.
pub(crate) fn entry(flag: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = block(flag, name, link, data.len() as u64);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An 'x' or 'g' header with these records.
pub(crate) fn pax(flag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    entry(flag, "pax", "", &data)
}

pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// Reads everything: what a fuzz target calls. Files are put together up to 1 MiB.
pub(crate) fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut archive = Archive::new(bytes, Limits::default());
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut data = vec![0; usize::try_from(entry.size).unwrap_or(usize::MAX).min(1 << 20)];
        let mut buffer = [0; 4096];
        while let Some(chunk) = archive.read(&mut buffer)? {
            assert!(chunk.length > 0, "no progress");
            if let Ok(at) = usize::try_from(chunk.offset)
                && let Some(place) = data.get_mut(at..at + chunk.length)
            {
                place.copy_from_slice(&buffer[..chunk.length]);
            }
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn one(bytes: &[u8]) -> Result<Entry, Error> {
    Ok(read_all(bytes)?.remove(0).0)
}

/// Runs a Python program that writes an archive to its standard output.
fn python(program: &str) -> Vec<u8> {
    let out = Command::new("python3").args(["-c", program]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

#[test]
fn a_pax_size_moves_the_data_but_not_the_headers_between() {
    // RUSTSEC-2026-0068, CVE-2025-62518: the header says 0, pax says 600. A reader
    // that trusts the header would see the file's data as entries.
    let hidden = [entry(b'0', "hidden", "", b""), vec![1; 88]].concat();
    let mut bytes = pax(b'x', &[("size", b"600")]);
    bytes.extend(entry(b'L', "././@LongLink", "", b"file\0"));
    bytes.extend(block(b'0', "short", "", 0));
    bytes.extend(&hidden);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(entry(b'0', "after", "", b"x"));
    bytes.extend(end());
    let entries = read_all(&bytes).unwrap();
    let names: Vec<_> = entries.iter().map(|(e, _)| e.path.as_slice()).collect();
    assert_eq!(names, [&b"file"[..], b"after"]);
    assert_eq!(entries[0].1, hidden);
    // The same without reading the data: skipping counts alike.
    let mut archive = Archive::new(&bytes[..], Limits::default());
    assert_eq!(archive.next().unwrap().unwrap().path, b"file");
    assert_eq!(archive.next().unwrap().unwrap().path, b"after");
    assert!(archive.next().unwrap().is_none());
}

#[test]
fn links_folders_and_devices_have_no_data() {
    let mut bytes = block(b'2', "link", "to", 512);
    bytes.extend(block(b'5', "dir/", "", 4096));
    bytes.extend(entry(b'0', "dir/file", "", b"abc"));
    bytes.extend(end());
    let entries = read_all(&bytes).unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[2].1, b"abc");
}

#[test]
fn an_old_folder_is_a_file_with_a_slash() {
    for flag in [0, b'0'] {
        let bytes = [entry(flag, "dir/", "", b"junk"), entry(b'0', "f", "", b""), end()].concat();
        let entries = read_all(&bytes).unwrap();
        assert_eq!(entries[0].0.kind, Kind::Folder);
        assert_eq!(entries[0].0.size, 0);
        assert_eq!(entries[1].0.path, b"f");
    }
}

#[test]
fn truncated_archives_are_errors() {
    let whole = [
        pax(b'x', &[("path", b"long")]),
        entry(b'0', "f", "", &[7; 700]),
        end(),
    ]
    .concat();
    for length in 0..whole.len() {
        let result = read_all(&whole[..length]);
        // At the end of the last entry Go sees an end, and so do we; in the empty stream too.
        let at_an_end = length == 0 || (whole.len() - 1024..).contains(&length) && length % 512 == 0;
        assert_eq!(result.is_ok(), at_an_end, "{length}: {result:?}");
    }
}

#[test]
fn what_follows_the_end_is_read_but_not_looked_at() {
    let bytes = [entry(b'0', "f", "", b"x"), end(), vec![9; 100_001]].concat();
    let mut stream = &bytes[..];
    let mut archive = Archive::new(&mut stream, Limits::default());
    assert!(archive.next().unwrap().is_some());
    assert!(archive.next().unwrap().is_none());
    assert!(archive.next().unwrap().is_none());
    drop(archive);
    assert!(stream.is_empty());
    let alone = [
        entry(b'0', "f", "", b"x"),
        vec![0; 512],
        entry(b'0', "g", "", b""),
    ]
    .concat();
    assert!(matches!(read_all(&alone), Err(Error::Malformed { .. })));
}

#[test]
fn limits_hold() {
    let big = pax(b'x', &[("comment", &vec![b'a'; (1 << 20) + 1])]);
    assert!(matches!(one(&big), Err(Error::Malformed { .. })));
    let many: Vec<_> = (0..300).map(|n| format!("SCHILY.xattr.user.n{n}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), &b"v"[..])).collect();
    assert!(matches!(one(&pax(b'x', &many)), Err(Error::Malformed { .. })));
    let long = [pax(b'x', &[("path", &[b'a'; 5000])]), block(b'0', "f", "", 0)].concat();
    assert!(matches!(one(&long), Err(Error::Malformed { .. })));
    let limits = Limits {
        archive: 2000,
        ..Limits::default()
    };
    let bytes = [entry(b'0', "f", "", &[1; 1000]), end()].concat();
    let mut archive = Archive::new(&bytes[..], limits);
    archive.next().unwrap();
    assert!(matches!(archive.next(), Err(Error::TooLong { limit: 2000 })));
    let mut negative = block(b'0', "f", "", 0);
    negative[124..136].fill(0xff);
    seal(&mut negative);
    assert!(matches!(one(&negative), Err(Error::Malformed { .. })));
    let huge = [
        pax(b'x', &[("size", b"9223372036854775807")]),
        block(b'0', "f", "", 0),
    ]
    .concat();
    assert!(matches!(one(&huge), Err(Error::Truncated { .. })));
    let uid = [pax(b'x', &[("uid", b"4294967295")]), block(b'0', "f", "", 0)].concat();
    assert!(matches!(one(&uid), Err(Error::Malformed { .. })));
}

#[test]
fn both_checksums_are_good_and_no_third() {
    let mut bytes = block(b'0', "n\u{e4}me", "", 0);
    assert!(one(&bytes).is_ok());
    bytes[148..156].fill(b' ');
    let sum: i32 = bytes.iter().map(|&b| i32::from(b.cast_signed())).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(one(&bytes).is_ok());
    bytes[0] ^= 1;
    assert!(matches!(one(&bytes), Err(Error::Malformed { .. })));
}

#[test]
fn unknown_types_are_refused_by_name() {
    for flag in [b'Z', b'N', b'M', b'8'] {
        let error = one(&entry(flag, "odd", "", b"")).unwrap_err();
        assert!(error.to_string().contains("odd"), "{error}");
    }
    let contiguous = one(&entry(b'7', "f", "", b"")).unwrap();
    assert_eq!(contiguous.kind, Kind::File);
    let label = [entry(b'V', "label", "", b""), entry(b'0', "f", "", b"")].concat();
    assert_eq!(one(&label).unwrap().path, b"f");
}

#[test]
fn python_archives_of_every_format() {
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let program = r#"
import io, sys, tarfile
t = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.@F@)
def add(name, kind, link="", data=b"", **more):
    i = tarfile.TarInfo(name); i.type = kind; i.linkname = link; i.size = len(data)
    for k, v in more.items(): setattr(i, k, v)
    t.addfile(i, io.BytesIO(data))
long = "d/" * 60 + "f" * 30
add("dir", tarfile.DIRTYPE, mode=0o1755)
add(long, tarfile.REGTYPE, data=b"x" * 1000, mode=0o4755, uid=1000, gid=2000, mtime=1234567890)
add("hard", tarfile.LNKTYPE, "dir/file")
add("soft", tarfile.SYMTYPE, "/absolute/../target")
add("null", tarfile.CHRTYPE, devmajor=1, devminor=3)
add("disk", tarfile.BLKTYPE, devmajor=253, devminor=7)
add("pipe", tarfile.FIFOTYPE)
if "@F@" != "USTAR_FORMAT":
    add("n" * 300, tarfile.REGTYPE, data=b"y", uid=3000000000)
    add("s", tarfile.SYMTYPE, "t" * 300)
if "@F@" == "PAX_FORMAT":
    add("x", tarfile.REGTYPE, mtime=5.25, pax_headers={"SCHILY.xattr.user.k": "v", "atime": "7.5"})
t.close()
"#
        .replace("@F@", format)
        .replace(&format!("tarfile.{format}_{format}"), format);
        let entries = read_all(&python(&program)).unwrap();
        let find = |n: usize| &entries[n].0;
        assert_eq!((find(0).kind, find(0).mode), (Kind::Folder, 0o1755), "{format}");
        assert_eq!(
            find(1).path,
            ["d/".repeat(60), "f".repeat(30)].concat().as_bytes()
        );
        assert_eq!((find(1).mode, find(1).uid, find(1).gid), (0o4755, 1000, 2000));
        assert_eq!(find(1).mtime.seconds, 1_234_567_890);
        assert_eq!(entries[1].1, [b'x'; 1000]);
        assert_eq!(
            (find(2).kind, &find(2).link[..]),
            (Kind::HardLink, &b"dir/file"[..])
        );
        assert_eq!(
            (find(3).kind, &find(3).link[..]),
            (Kind::Symlink, &b"/absolute/../target"[..])
        );
        assert_eq!((find(4).kind, find(4).device), (Kind::CharDevice, (1, 3)));
        assert_eq!((find(5).kind, find(5).device), (Kind::BlockDevice, (253, 7)));
        assert_eq!(find(6).kind, Kind::Fifo);
        if format != "USTAR_FORMAT" {
            assert_eq!(
                (find(7).path.len(), find(7).uid, &entries[7].1[..]),
                (300, 3_000_000_000, &b"y"[..])
            );
            assert_eq!(find(8).link.len(), 300);
        }
        if format == "PAX_FORMAT" {
            assert_eq!(find(9).xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
            let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
            assert_eq!(
                (find(9).mtime, find(9).atime),
                (time(5, 250_000_000), Some(time(7, 500_000_000)))
            );
        }
    }
}

#[test]
fn sparse_files_in_all_four_formats() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = vec![0u8; 1 << 20];
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    // Sixty stretches: more than a header and one extension block hold.
    for n in 0..60usize {
        let (at, data) = (n * 16384 + 4096, vec![u8::try_from(n).unwrap() + 1; 4096]);
        std::os::unix::fs::FileExt::write_all_at(&file, &data, at as u64).unwrap();
        expected[at..at + 4096].copy_from_slice(&data);
    }
    file.set_len(1 << 20).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let out = Command::new("tar")
            .args(format)
            .args(["--sparse", "-cf", "-", "-C"])
            .arg(dir.path())
            .arg("sparse")
            .output()
            .unwrap();
        assert!(out.status.success());
        assert!(out.stdout.len() < 400_000, "tar stored the holes");
        let entries = read_all(&out.stdout).unwrap();
        assert_eq!(entries.len(), 1);
        let (entry, data) = &entries[0];
        assert_eq!(
            (&entry.path[..], entry.size),
            (&b"sparse"[..], 1 << 20),
            "{format:?}"
        );
        assert!(data == &expected, "{format:?}");
    }
}

#[test]
fn sparse_maps_that_do_not_fit_are_refused() {
    for map in [
        "0,10,5,10",
        "0,5",
        "90,20",
        "0,9223372036854775807,1,1",
        "0,10,20",
        "x",
    ] {
        let records = [
            ("GNU.sparse.size", &b"100"[..]),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let bytes = [pax(b'x', &records), entry(b'0', "f", "", &[1; 20])].concat();
        assert!(matches!(one(&bytes), Err(Error::Malformed { .. })), "{map}");
    }
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"100"),
    ];
    for data in ["9999999999\n", "1\n0\n", "1\n-1\n5\n", ""] {
        let bytes = [pax(b'x', &records), entry(b'0', "f", "", data.as_bytes())].concat();
        assert!(matches!(one(&bytes), Err(Error::Malformed { .. })), "{data:?}");
    }
}

/// A valid archive with everything in it, for mutation.
fn specimen() -> Vec<u8> {
    let sparse = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"9000"),
    ];
    [
        pax(b'g', &[("comment", b"hello"), ("mtime", b"3.5")]),
        entry(b'5', "dir/", "", b""),
        pax(
            b'x',
            &[
                ("path", b"dir/file"),
                ("SCHILY.xattr.user.a", b"b"),
                ("size", b"700"),
            ],
        ),
        entry(b'0', "short", "", &[5; 700]),
        entry(b'L', "././@LongLink", "", &[b'n'; 200]),
        entry(b'K', "././@LongLink", "", &[b'l'; 200]),
        entry(b'1', "n", "l", b""),
        pax(b'x', &sparse),
        entry(
            b'0',
            "s",
            "",
            &[&b"2\n0\n100\n8000\n300\n"[..], &[0; 495], &[6; 400]].concat(),
        ),
        entry(b'3', "dev", "", b""),
        end(),
    ]
    .concat()
}

#[test]
fn the_specimen_is_valid() {
    let entries = read_all(&specimen()).unwrap();
    assert_eq!(entries.len(), 5);
    let (sparse, data) = &entries[3];
    assert_eq!((&sparse.path[..], sparse.size), (&b"sparse"[..], 9000));
    assert_eq!((data[99], data[100], data[8000], data[8300]), (6, 0, 6, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = read_all(&bytes);
    }

    /// Bytes changed anywhere, with checksums made right again, so that the
    /// changes get past them.
    #[test]
    fn changed_archives_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        sealed in any::<bool>(),
    ) {
        let mut bytes = specimen();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
            if sealed {
                let start = at / 512 * 512;
                seal(&mut bytes[start..start + 512]);
            }
        }
        let _ = read_all(&bytes);
        let _ = read_all(&bytes[..cut.index(bytes.len())]);
    }

    /// What Python writes we read, whatever the names, sizes and times.
    #[test]
    fn names_and_data_survive(
        files in prop::collection::vec(("[a-z/. ]{1,300}", 0usize..2000, 0i64..1 << 36), 1..8)
    ) {
        let mut bytes = Vec::new();
        for (name, size, mtime) in &files {
            let mtime = mtime.to_string();
            bytes.extend(pax(b'x', &[("path", name.as_bytes()), ("mtime", mtime.as_bytes())]));
            bytes.extend(entry(b'0', "x", "", &vec![1; *size]));
        }
        bytes.extend(end());
        let entries = read_all(&bytes).unwrap();
        prop_assert_eq!(entries.len(), files.len());
        for ((entry, data), (name, size, mtime)) in entries.iter().zip(&files) {
            prop_assert_eq!(&entry.path, name.as_bytes());
            prop_assert_eq!(entry.mtime.seconds, *mtime);
            if entry.kind == Kind::File {
                prop_assert_eq!(data.len(), *size);
            }
        }
    }
}

/// GNU tar reads what the tests' own writer makes: the oracle of the oracle.
#[test]
fn gnu_tar_agrees_about_the_specimen() {
    let mut tar = Command::new("tar")
        .arg("-tf")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(&specimen()).unwrap();
    let out = tar.wait_with_output().unwrap();
    let names = [
        "dir/".into(),
        "dir/file".into(),
        "n".repeat(200),
        "sparse".into(),
        "dev".into(),
    ];
    assert_eq!(
        String::from_utf8_lossy(&out.stdout).lines().collect::<Vec<_>>(),
        names
    );
}
