//! image

mod attributes;
pub mod copy_up;
pub mod layers;
pub mod tar;
pub mod unpack;
pub mod usage;
pub mod view;
mod walk;
