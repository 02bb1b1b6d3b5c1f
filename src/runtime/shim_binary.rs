//! The shim's program, sealed: berthd copies it once into a memory file that
//! nobody can write to any more, and starts every shim from there.
//!
//! A container that reaches `/proc/PID/exe` of the process which made it could
//! overwrite the program of all later ones (CVE-2019-5736); of a sealed file
//! there is nothing to overwrite. It also means that an upgrade of the package
//! changes no shim under a berthd that does not know it yet.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};

use super::Error;

/// MFD_EXEC, Linux 6.3: the file stays executable whatever vm.memfd_noexec says,
/// unless it says 2.
const EXECUTABLE: MemfdFlags = MemfdFlags::from_bits_retain(0x10);

/// A program that can be started and not be changed; clones share it.
#[derive(Clone, Debug)]
pub struct ShimBinary {
    memory: Arc<OwnedFd>,
}

impl ShimBinary {
    /// Copies the program at `path`.
    pub fn load(path: &Path) -> Result<ShimBinary, Error> {
        let failed = |step| {
            move |source: io::Error| Error::Binary {
                path: path.into(),
                step,
                source,
            }
        };
        let mut program = File::open(path).map_err(failed("open"))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = match memfd_create("berth-shim", flags | EXECUTABLE) {
            Err(Errno::INVAL) => memfd_create("berth-shim", flags),
            made => made,
        };
        let memory = memory.map_err(|errno| {
            failed("make an executable memory file (is the sysctl vm.memfd_noexec 2?)")(errno.into())
        })?;
        let mut copy = File::from(memory);
        io::copy(&mut program, &mut copy).map_err(failed("copy"))?;
        fcntl_add_seals(
            &copy,
            SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )
        .map_err(|errno| failed("seal")(errno.into()))?;
        // A writable description would make every start fail with "text file busy".
        let memory = File::open(own_path(copy.as_raw_fd())).map_err(failed("open the copy"))?;
        Ok(ShimBinary {
            memory: Arc::new(memory.into()),
        })
    }

    /// A path by which this process, and a child before it executes, can start it.
    pub fn path(&self) -> PathBuf {
        own_path(self.memory.as_raw_fd())
    }
}

fn own_path(fd: i32) -> PathBuf {
    format!("/proc/self/fd/{fd}").into()
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn runs_and_cannot_be_changed() {
        let binary = ShimBinary::load(Path::new("/bin/true")).unwrap();
        assert!(Command::new(binary.path()).status().unwrap().success());
        assert!(fs::write(binary.path(), "changed").is_err());
        assert!(Command::new(binary.path()).status().unwrap().success());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = ShimBinary::load(Path::new("/nonexistent/berth-shim")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("shim binary /nonexistent/berth-shim: open: ")
        );
    }
}
