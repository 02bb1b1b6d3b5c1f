//! Users and groups files of images, and CDI specifications.

pub use super::{cdi::fuzz::cdi, user::fuzz::users};
