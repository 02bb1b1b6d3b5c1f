//! The C library's allocator.
#![allow(unsafe_code)]

/// Gives free heap pages back to the kernel. glibc keeps what a start needed
/// (about 1 MiB was measured) until it is asked; a shim asks once, after Start.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
