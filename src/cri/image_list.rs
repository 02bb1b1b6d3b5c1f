//! ListImages and StreamImages: what is on the node.

use std::{sync::Arc, time::Duration};

use crate::{
    image::{Error, Image, Images},
    proto::cri,
};

/// How long a list waits for the look at all layers after an unclean stop of the machine,
/// when its client waits longer. Images that are whole must not be missed in it, but a
/// large disk takes minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// All images, or the one that the filter names. `limit`: how long the client waits.
pub async fn list(
    images: &Arc<Images>,
    request: cri::ListImagesRequest,
    limit: Option<Duration>,
) -> Result<cri::ListImagesResponse, Error> {
    Ok(cri::ListImagesResponse {
        images: filtered(images, request.filter, limit).await?,
    })
}

/// Images of a filter, as messages, by id; a filter without a name takes all.
pub async fn filtered(
    images: &Images,
    filter: Option<cri::ImageFilter>,
    limit: Option<Duration>,
) -> Result<Vec<cri::Image>, Error> {
    let name = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    let found = if name.is_empty() {
        let most = limit.map_or(PATIENCE, |limit| (limit - limit / 10).min(PATIENCE));
        images.until_checked(most).await;
        images.list()?
    } else {
        images.find(&name).await?.into_iter().collect()
    };
    Ok(found.iter().map(|image| message(image)).collect())
}

/// An image as the CRI shows it. The same for every name that it was asked by:
/// `spec` has the id.
pub fn message(image: &Image) -> cri::Image {
    let (uid, username) = image.user();
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        spec: Some(cri::ImageSpec {
            image: image.id.clone(),
            ..cri::ImageSpec::default()
        }),
        pinned: image.pinned,
    }
}
