//! What berthd says about itself.

pub mod log;
pub mod metrics;
mod process;
pub mod serve;
