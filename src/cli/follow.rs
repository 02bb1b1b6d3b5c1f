//! Reads a container's log file as it grows, over rotations, and prints it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Client, Error, LogLine, Stream, error::call};
use crate::proto::cri;

/// How long a follower waits when nothing new is there.
const PAUSE: Duration = Duration::from_millis(50);
const CHUNK: usize = 64 << 10;

/// A log file that is read as it grows. When the file was renamed and a new one
/// stands in its place (a rotation), the old one is read to its end first.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: File,
    inode: u64,
    position: u64,
    /// The start of a line whose end is not written yet.
    pending: Vec<u8>,
}

impl Follower {
    pub fn open(path: PathBuf) -> Result<Follower, Error> {
        let (file, inode) = open(&path).map_err(|source| failed("open log", &path, source))?;
        Ok(Follower {
            path,
            file,
            inode,
            position: 0,
            pending: Vec::new(),
        })
    }

    /// Gives every whole entry that is there now, as raw lines without the line
    /// feed. Returns whether there was one.
    pub fn read(&mut self, each: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<bool, Error> {
        let mut any = self.drain(each)?;
        match open(&self.path) {
            Ok((file, inode)) if inode != self.inode => {
                // Nothing is written to the old file once the new one is there.
                any |= self.drain(each)?;
                (self.file, self.inode, self.position) = (file, inode, 0);
                self.pending.clear();
                any |= self.drain(each)?;
            }
            Ok((file, _)) => {
                let length = file.metadata().map_or(self.position, |m| m.len());
                if length < self.position {
                    self.rewind()?;
                    any |= self.drain(each)?;
                }
            }
            // Between the rename and the new file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("open log", &self.path, source)),
        }
        Ok(any)
    }

    /// The file was cut: begin again.
    fn rewind(&mut self) -> Result<(), Error> {
        self.position = 0;
        self.pending.clear();
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|source| failed("rewind log", &self.path, source))?;
        Ok(())
    }

    fn drain(&mut self, each: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<bool, Error> {
        let mut chunk = vec![0; CHUNK];
        let mut any = false;
        loop {
            let count = self
                .file
                .read(&mut chunk)
                .map_err(|source| failed("read log", &self.path, source))?;
            if count == 0 {
                return Ok(any);
            }
            self.position += count as u64;
            self.pending.extend_from_slice(&chunk[..count]);
            let mut start = 0;
            while let Some(length) = self.pending[start..].iter().position(|byte| *byte == b'\n') {
                each(&self.pending[start..start + length])?;
                start += length + 1;
                any = true;
            }
            self.pending.drain(..start);
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let inode = file.metadata()?.ino();
    Ok((file, inode))
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        step,
        path: path.into(),
        source,
    }
}

/// Prints entries as the container wrote them: stdout to stdout, stderr to stderr.
#[derive(Debug, Default)]
pub struct Printer {
    timestamps: bool,
    /// Whether the last entry of stdout, of stderr was a part of a line.
    open: [bool; 2],
}

impl Printer {
    /// With `timestamps` each line begins with its time.
    pub fn new(timestamps: bool) -> Printer {
        Printer {
            timestamps,
            ..Default::default()
        }
    }

    /// Lines that are no log entries are passed over.
    pub fn print(&mut self, raw: &[u8]) -> Result<(), Error> {
        let Some(line) = LogLine::parse(raw) else {
            return Ok(());
        };
        let written = match line.stream {
            Stream::Stdout => self.write(&line, &mut io::stdout().lock(), 0),
            Stream::Stderr => self.write(&line, &mut io::stderr().lock(), 1),
        };
        written.map_err(|source| Error::Io {
            step: "write output",
            source,
        })
    }

    fn write(&mut self, line: &LogLine, to: &mut dyn Write, stream: usize) -> io::Result<()> {
        if self.timestamps && !self.open[stream] {
            write!(to, "{} ", line.time)?;
        }
        to.write_all(line.content)?;
        if !line.partial {
            to.write_all(b"\n")?;
        }
        self.open[stream] = line.partial;
        to.flush()
    }
}

/// Prints what is in the log; with `tail` its last lines only.
pub fn print_all(follower: &mut Follower, printer: &mut Printer, tail: Option<usize>) -> Result<(), Error> {
    let Some(count) = tail else {
        follower.read(&mut |raw| printer.print(raw))?;
        return Ok(());
    };
    // Raw entries of the last lines; a line is all its parts.
    let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
    let mut lines = 0;
    follower.read(&mut |raw| {
        kept.push_back(raw.to_vec());
        lines += usize::from(ends_line(raw));
        while lines > count {
            if kept.pop_front().is_some_and(|raw| ends_line(&raw)) {
                lines -= 1;
            }
        }
        Ok(())
    })?;
    kept.iter().try_for_each(|raw| printer.print(raw))
}

fn ends_line(raw: &[u8]) -> bool {
    LogLine::parse(raw).is_some_and(|line| !line.partial)
}

/// Prints what comes, until the container has exited and all was printed.
pub async fn print_until_exit(
    client: &mut Client,
    id: &str,
    follower: &mut Follower,
    printer: &mut Printer,
) -> Result<(), Error> {
    let mut running = true;
    loop {
        // The log is whole before the exit is told, so one more look after the
        // exit was seen is enough.
        let any = follower.read(&mut |raw| printer.print(raw))?;
        match (any, running) {
            (true, _) => {}
            (false, false) => return Ok(()),
            (false, true) => {
                running = is_running(client, id).await?;
                if running {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A container that was removed does not run.
async fn is_running(client: &mut Client, id: &str) -> Result<bool, Error> {
    let request = cri::ContainerStatusRequest {
        container_id: id.into(),
        verbose: false,
    };
    match client.runtime.container_status(request).await {
        Ok(answer) => {
            let state = answer.into_inner().status.map(|status| status.state());
            Ok(state == Some(cri::ContainerState::ContainerRunning))
        }
        Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
        Err(status) => Err(call("ask for the status of container", id)(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn lines(follower: &mut Follower) -> Vec<String> {
        let mut found = Vec::new();
        follower
            .read(&mut |raw| {
                found.push(String::from_utf8_lossy(raw).into_owned());
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn a_follower_reads_whole_lines_and_survives_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        fs::write(&path, "a\nb").unwrap();
        let mut follower = Follower::open(path.clone()).unwrap();
        assert_eq!(lines(&mut follower), ["a"]);

        let mut old = fs::OpenOptions::new().append(true).open(&path).unwrap();
        old.write_all(b"c\n").unwrap();
        fs::rename(&path, folder.path().join("0.log.1")).unwrap();
        assert_eq!(lines(&mut follower), ["bc"]);
        old.write_all(b"late\n").unwrap();
        fs::write(&path, "new\n").unwrap();
        assert_eq!(lines(&mut follower), ["late", "new"]);
    }

    #[test]
    fn a_cut_file_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        fs::write(&path, "long line\n").unwrap();
        let mut follower = Follower::open(path.clone()).unwrap();
        assert_eq!(lines(&mut follower), ["long line"]);
        let cut = fs::OpenOptions::new().write(true).open(&path).unwrap();
        cut.set_len(0).unwrap();
        (&cut).write_all(b"x\n").unwrap();
        assert_eq!(lines(&mut follower), ["x"]);
    }
}
