//! The container's log file: written by the shim alone, whole lines only, one
//! write for what one wake of the loop has read.
//!
//! A failing disk never stops the container: lines that cannot be written are
//! dropped and counted, and the next ones are tried again. What a short write
//! left of a line is taken back, so that every line in the file is whole.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    line::{MAX_LINE, Source, Stamps, Tag},
    note,
};

/// Bytes collected before they are written: a line of the longest kind fits.
const BATCH: usize = 2 * MAX_LINE;

/// "2026-11-22T07:35:01.000000042Z stdout F " and the newline.
const AROUND: usize = 41;

/// Nanoseconds between two notes about lost lines.
const NOTE_EVERY: i64 = 10_000_000_000;

/// An open log file.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Whole lines that are not written yet.
    batch: Vec<u8>,
    stamps: Stamps,
    /// The file ends with a piece of a line that could not be taken back.
    torn: bool,
    /// Lines dropped since the last note, and since the start.
    unnoted: u64,
    lost: u64,
    noted_at: i64,
}

impl Log {
    /// Opens the file, or makes it with mode 0640. A symbolic link is refused.
    pub fn open(path: &Path) -> io::Result<Log> {
        Ok(Log {
            path: path.into(),
            file: open(path)?,
            batch: Vec::new(),
            stamps: Stamps::default(),
            torn: false,
            unnoted: 0,
            lost: 0,
            noted_at: i64::MIN,
        })
    }

    /// Opens the path anew, after a rotation: the old file never grows again. On
    /// an error the old one stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.flush(self.noted_at);
        self.file = open(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// Adds a line to what the next [`Log::flush`] writes. `now` is when it was
    /// read, nanoseconds since the epoch.
    pub fn line(&mut self, now: i64, source: Source, tag: Tag, content: [&[u8]; 2]) {
        let [first, second] = content;
        if self.batch.len() + first.len() + second.len() + AROUND > BATCH {
            self.flush(now);
        }
        self.batch.extend_from_slice(self.stamps.next(now));
        self.batch.extend_from_slice(match (source, tag) {
            (Source::Stdout, Tag::Full) => b" stdout F ",
            (Source::Stdout, Tag::Partial) => b" stdout P ",
            (Source::Stderr, Tag::Full) => b" stderr F ",
            (Source::Stderr, Tag::Partial) => b" stderr P ",
        });
        self.batch.extend_from_slice(first);
        self.batch.extend_from_slice(second);
        self.batch.push(b'\n');
    }

    /// Writes what was collected, or drops and counts it.
    pub fn flush(&mut self, now: i64) {
        if self.batch.is_empty() {
            return;
        }
        let batch = mem::take(&mut self.batch);
        let written = self.write(&batch);
        if let Err((error, count)) = written {
            let whole = batch[..count]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            self.take_back(count - whole);
            let lines = batch[whole..].iter().filter(|byte| **byte == b'\n').count();
            let lines = u64::try_from(lines).unwrap_or(u64::MAX);
            self.lost = self.lost.saturating_add(lines);
            self.unnoted = self.unnoted.saturating_add(lines);
            self.note_losses(now, Some(&error));
        } else if self.unnoted > 0 {
            self.note_losses(now, None);
        }
        // The buffer is kept for the next wake.
        self.batch = batch;
        self.batch.clear();
    }

    /// All bytes, or the error and how many went before it.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        if self.torn {
            self.file.write_all(b"\n").map_err(|error| (error, 0))?;
            self.torn = false;
        }
        let mut count = 0;
        while count < bytes.len() {
            match self.file.write(&bytes[count..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), count)),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, count)),
            }
        }
        Ok(())
    }

    /// Cuts the last `count` bytes off the file.
    fn take_back(&mut self, count: usize) {
        let Ok(count) = i64::try_from(count) else { return };
        if count == 0 {
            return;
        }
        let cut = self
            .file
            .seek(SeekFrom::Current(-count))
            .and_then(|length| self.file.set_len(length));
        self.torn = cut.is_err();
    }

    fn note_losses(&mut self, now: i64, error: Option<&io::Error>) {
        if now < self.noted_at.saturating_add(NOTE_EVERY) && now >= self.noted_at {
            return;
        }
        let path = self.path.display();
        let lines = mem::take(&mut self.unnoted);
        let total = self.lost;
        match error {
            Some(error) => note(format_args!(
                "write log {path}: {error}: {lines} lines dropped ({total} in all), make room on its disk"
            )),
            None => note(format_args!(
                "log {path} is written again, {lines} lines more were dropped ({total} in all)"
            )),
        }
        self.noted_at = now;
    }

    /// Lines that were dropped since the log was opened first.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// O_NONBLOCK is for a path that is a FIFO: without a reader it must not hang.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn contents(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "a torn line: {text:?}");
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    fn put(log: &mut Log, content: &str) {
        log.line(0, Source::Stdout, Tag::Full, [content.as_bytes(), b""]);
    }

    #[test]
    fn lines_are_written_as_one_batch_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        put(&mut log, "one");
        log.line(0, Source::Stderr, Tag::Partial, [b"tw", b"o"]);
        assert_eq!(contents(&path), [""; 0]);
        log.flush(0);
        assert_eq!(contents(&path), ["stdout F one", "stderr P two"]);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let content: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
        log.line(0, Source::Stdout, Tag::Full, [&content, b""]);
        log.flush(0);
        assert_eq!(fs::read(&path).unwrap()[40..295], content);
    }

    #[test]
    fn after_a_reopen_the_old_file_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut log = Log::open(&path).unwrap();
        put(&mut log, "one");
        log.flush(0);
        fs::rename(&path, &old).unwrap();
        put(&mut log, "two");
        log.reopen().unwrap();
        assert!(path.exists());
        put(&mut log, "three");
        log.flush(0);
        assert_eq!(contents(&old), ["stdout F one", "stdout F two"]);
        assert_eq!(contents(&path), ["stdout F three"]);
    }

    #[test]
    fn a_failed_reopen_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let old = dir.path().join("0.log.1");
        fs::rename(&path, &old).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(log.reopen().is_err());
        put(&mut log, "still");
        log.flush(0);
        assert_eq!(contents(&old), ["stdout F still"]);
    }

    #[test]
    fn a_full_device_drops_and_counts() {
        let mut log = Log::open(Path::new("/dev/full")).unwrap();
        put(&mut log, "one");
        put(&mut log, "two");
        log.flush(0);
        assert_eq!(log.lost(), 2);
    }

    /// On a file system of 64 KiB: lines stay whole, and when there is room
    /// again the log goes on.
    #[test]
    fn a_full_disk_is_survived_without_a_torn_line() {
        std::thread::spawn(|| {
            let dir = tempfile::tempdir().unwrap();
            if let Err(error) = small_disk(dir.path()) {
                println!("skipped: a tmpfs in an own mount namespace: {error}");
                return;
            }
            let path = dir.path().join("0.log");
            let mut log = Log::open(&path).unwrap();
            for number in 0..3000 {
                put(&mut log, &format!("line {number:0>60}"));
                if number % 7 == 0 {
                    log.flush(0);
                }
            }
            log.flush(0);
            let held = contents(&path);
            assert_eq!(u64::try_from(3000 - held.len()).unwrap(), log.lost());
            assert!(held.len() > 100 && log.lost() > 100);
            assert!(held.iter().all(|line| line.len() == 9 + 65));
            fs::rename(&path, dir.path().join("old")).unwrap();
            log.reopen().unwrap();
            fs::remove_file(dir.path().join("old")).unwrap();
            put(&mut log, "room again");
            log.flush(0);
            assert_eq!(contents(&path), ["stdout F room again"]);
        })
        .join()
        .unwrap();
    }

    /// In a mount namespace of this thread alone.
    fn small_disk(dir: &Path) -> rustix::io::Result<()> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        crate::sys::namespace::unshare(crate::sys::namespace::MOUNT)?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        mount("none", dir, "tmpfs", MountFlags::empty(), c"size=64k")
    }
}
