//! The exit record: the file `exit` in the container's state folder. It is there
//! whole or not at all, and before anybody is told of the exit; so whoever finds
//! the shim gone finds the truth there. The folder is on a tmpfs: no fsync.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use prost::Message;

use crate::proto::plan::ExitRecord;

const NAME: &str = "exit";
const UNFINISHED: &str = "exit.new";

/// A record is some dozen bytes and a message of one line.
const MAX_RECORD: u64 = 64 * 1024;

/// Puts the record into the folder `dir`.
pub fn write(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    let unfinished = dir.join(UNFINISHED);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(&record.encode_to_vec())?;
    fs::rename(&unfinished, dir.join(NAME))
}

/// The record of the folder `dir`, if the container has ended.
pub fn read(dir: &Path) -> io::Result<Option<ExitRecord>> {
    let file = match File::open(dir.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    ExitRecord::decode(&bytes[..])
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_half_of_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        fs::write(dir.path().join(UNFINISHED), b"half").unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let record = ExitRecord {
            code: 137,
            started_at: 1,
            finished_at: 2,
            oom_killed: true,
            message: "x".into(),
            oom_cgroup: "/pod".into(),
            oom_limit: 5,
        };
        write(dir.path(), &record).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(record));
        fs::write(dir.path().join(NAME), b"\xff\xff").unwrap();
        assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
