//! Stories that drive the real binaries.
