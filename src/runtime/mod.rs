//! berthd's side of the shims: making one ([`fork_server`]) from a binary that nobody can
//! change ([`shim_binary`]), calling it ([`shim_client`], [`ttrpc`]), and processes in
//! running containers ([`exec`]), their stdio ([`attach`]), and who makes their
//! cgroups ([`cgroup_driver`]).
//!
//! What must not be here: records, pods, anything of the CRI.

pub mod attach;
pub mod cgroup_driver;
pub mod error;
pub mod exec;
pub mod fork_server;
mod handlers;
mod oci;
pub mod shim_binary;
pub mod shim_client;
mod shim_exit;
mod shim_process;
mod surroundings;
pub mod ttrpc;
mod watched;

pub use attach::{AttachIo, Attachment};
pub use cgroup_driver::CgroupDriver;
pub use error::Error;
pub use exec::{Exec, ExecIo, ExecOutput, new_id as new_exec_id};
pub use fork_server::ForkServer;
pub use handlers::{Error as HandlerError, Handler, Handlers};
pub use oci::{OciRuntime, Probe};
pub use shim_binary::ShimBinary;
pub use shim_client::Shim;
pub use shim_exit::{Ended, read_exit};
pub use shim_process::shim_of;
pub use surroundings::Surroundings;
pub use watched::watched;
