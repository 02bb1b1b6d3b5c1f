//! Strings of the plan as the kernel wants them.

use std::ffi::CString;

use rustix::io::Errno;

use super::Error;

/// With the errno that a path with a NUL would get.
pub fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// Naming the field of the plan.
pub fn field(name: &str, text: impl Into<Vec<u8>>) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::plan(name, "it contains a NUL byte"))
}

/// An absolute path in the container.
pub fn path(name: &str, text: &str) -> Result<CString, Error> {
    if !text.starts_with('/') {
        return Err(Error::plan(name, format!("{text:?} is not an absolute path")));
    }
    field(name, text)
}
