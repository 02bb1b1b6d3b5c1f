//! Berth: a node agent for Kubernetes.
//!
//! In reading order; imports go downward only (`tests/layers.rs` holds it so):
//!
//! 1. [`cri`]: the door, one file per verb of the Container Runtime Interface.
//!    Beside it [`audit`], which looks at what berthd has made, and [`cli`]; above
//!    both [`purge`], which takes it all away.
//! 2. [`pod`], [`image`], [`spec`], [`stream`]: what a node has and does.
//! 3. [`network`], [`runtime`], [`store`]: what they stand on.
//! 4. [`shim`], [`launcher`], [`cgroup`], [`sys`]: the other side of the wall,
//!    all that is in the shim's binary.
//!
//! [`config`], [`failpoint`], [`flags`], [`instance`], [`proto`], [`kind`] and [`telemetry`] may be used by all of the agent.

pub mod proto;

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;

pub mod cgroup;
pub mod launcher;
pub mod shim;
pub mod sys;

#[cfg(feature = "agent")]
pub mod audit;
#[cfg(feature = "agent")]
pub mod boot;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod cri;
#[cfg(feature = "agent")]
pub mod failpoint;
#[cfg(feature = "agent")]
pub mod flags;
#[cfg(feature = "agent")]
pub mod image;
#[cfg(feature = "agent")]
pub mod instance;
#[cfg(feature = "agent")]
pub mod kind;
#[cfg(feature = "agent")]
pub mod network;
#[cfg(feature = "agent")]
pub mod pod;
#[cfg(feature = "agent")]
pub mod purge;
#[cfg(feature = "agent")]
pub mod runtime;
#[cfg(feature = "agent")]
pub mod spec;
#[cfg(feature = "agent")]
pub mod store;
#[cfg(feature = "agent")]
pub mod stream;
#[cfg(feature = "agent")]
pub mod telemetry;
