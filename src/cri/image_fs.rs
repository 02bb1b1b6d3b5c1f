//! ImageFsInfo: what images, and what containers, take of which file system.
//!
//! The two are one file system unless a disk of its own is mounted for the containers;
//! the kubelet tells by the mount points (KEP-4191), and collects garbage accordingly.

use std::sync::Arc;

use super::{
    container_stats::{blocking, file_system, number, writable_layer},
    error::Error,
    node::Node,
};
use crate::{image::Images, pod::now, proto::cri};

pub async fn info(node: &Arc<Node>) -> Result<cri::ImageFsInfoResponse, Error> {
    let node = node.clone();
    blocking(move || {
        Ok(cri::ImageFsInfoResponse {
            image_filesystems: vec![images(&node.images)?],
            container_filesystems: vec![containers(&node)],
        })
    })
    .await
}

/// Layers, and blobs that are not unpacked yet.
pub fn images(images: &Images) -> Result<cri::FilesystemUsage, Error> {
    let usage = images.fs_info()?;
    Ok(cri::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
        }),
        used_bytes: number(usage.used_bytes),
        inodes_used: number(usage.inodes_used),
    })
}

/// The writable layers of all containers, ended ones too.
fn containers(node: &Node) -> cri::FilesystemUsage {
    let (mut at, mut bytes, mut inodes) = (now(), 0, 0);
    for container in node.pods.containers() {
        let Some(layer) = writable_layer(node, &container) else {
            continue;
        };
        // As old as its oldest part.
        at = at.min(layer.timestamp);
        bytes += layer.used_bytes.map_or(0, |used| used.value);
        inodes += layer.inodes_used.map_or(0, |used| used.value);
    }
    cri::FilesystemUsage {
        timestamp: at,
        fs_id: Some(file_system(node)),
        used_bytes: number(bytes),
        inodes_used: number(inodes),
    }
}
