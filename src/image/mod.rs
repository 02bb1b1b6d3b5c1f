//! image

pub mod layers;
pub mod unpack;
