//! What berthd says about itself.

pub mod log;
