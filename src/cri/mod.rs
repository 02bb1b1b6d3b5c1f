//! The door: one file per verb of the Container Runtime Interface, with the
//! names that its readers know from the peers.
//!
//! [`Node`] is what the verbs work on; [`server`] is the socket;
//! [`runtime_service`] and [`image_service`] are the dispatch; `status` maps
//! errors to gRPC codes.

mod bundle;
mod cgroup_parents;
mod checkpoint;
mod container_attach;
mod container_bundle;
mod container_create;
mod container_events;
mod container_exec;
mod container_exit;
mod container_hooks;
mod container_list;
mod container_log;
mod container_remove;
mod container_start;
mod container_stats;
mod container_status;
mod container_stop;
mod container_update;
mod deadline;
mod error;
pub mod handover;
mod image_fs;
mod image_list;
mod image_pull;
mod image_remove;
mod image_service;
mod image_status;
mod lingering;
mod metric_descriptors;
mod metric_values;
mod metrics;
mod node;
mod observe;
mod pid_namespaces;
mod purge;
mod recover;
mod reload;
mod request_json;
mod runtime_config;
mod runtime_handler;
mod runtime_service;
mod runtime_status;
mod runtime_version;
mod sandbox_files;
mod sandbox_init;
mod sandbox_list;
mod sandbox_portforward;
mod sandbox_ports;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_stats;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod scrape;
pub mod server;
mod status;
mod stream_lists;
mod streaming;
mod upkeep;
mod watchdog;

pub use self::{
    error::Error,
    image_service::ImageApi,
    node::{Node, Paths},
    purge::purge,
    recover::recover,
    reload::Reload,
    runtime_service::RuntimeApi,
    scrape::page,
    streaming::Streams,
    upkeep::upkeep,
    watchdog::feed as feed_watchdog,
};
