//! What berthd says about itself.

pub mod log;
pub mod metrics;
mod process;
pub mod serve;
pub mod span;
#[cfg(feature = "otel")]
pub mod trace;
#[cfg(not(feature = "otel"))]
#[path = "no_trace.rs"]
pub mod trace;
