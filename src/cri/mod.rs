//! cri
pub mod image_fs;
pub mod image_list;
pub mod image_pull;
pub mod image_remove;
pub mod image_status;
