//! ListImages and StreamImages: what is on the node.

use std::sync::Arc;

use crate::{
    image::{Error, Image, Images},
    proto::cri,
};

/// All images, or the one that the filter names.
pub async fn list(
    images: &Arc<Images>,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, Error> {
    Ok(cri::ListImagesResponse {
        images: filtered(images, request.filter).await?,
    })
}

/// Images of a filter, as messages, by id; a filter without a name takes all.
pub async fn filtered(images: &Images, filter: Option<cri::ImageFilter>) -> Result<Vec<cri::Image>, Error> {
    let name = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    let found = if name.is_empty() {
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
