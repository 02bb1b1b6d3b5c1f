//! ImageFsInfo: what images take of which file system.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    image::{Error, Images},
    proto::cri,
};

/// One file system; containers' part is the caller's to add (empty: the same one).
pub async fn info(
    images: &Arc<Images>,
    _request: cri::ImageFsInfoRequest,
) -> Result<cri::ImageFsInfoResponse, Error> {
    let usage = images.fs_info()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let filesystem = cri::FilesystemUsage {
        timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(cri::UInt64Value {
            value: usage.used_bytes,
        }),
        inodes_used: Some(cri::UInt64Value {
            value: usage.inodes_used,
        }),
    };
    Ok(cri::ImageFsInfoResponse {
        image_filesystems: vec![filesystem],
        container_filesystems: Vec::new(),
    })
}
