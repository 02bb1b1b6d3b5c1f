//! Real launches on the real kernel: busybox in a folder, cgroups and namespaces of
//! our own, everything removed at the end. Skipped, with the reason, without root or busybox.

mod exec;
mod harness;
mod isolation;
mod process;
mod root;
mod user;
mod volume;
