//! RemoveImage: the image that a name means goes, with all its names.

use std::sync::Arc;

use crate::{
    image::{Error, Images},
    proto::cri,
};

/// Answers when the image is out of the records and what only it needed is off
/// the disk. One that is not there is removed already.
pub async fn remove(
    images: &Arc<Images>,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Error> {
    let name = request.image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Error::Reference {
            reference: name,
            message: "it is empty".into(),
        });
    }
    let images = Arc::clone(images);
    let (image, removed) = (name.clone(), name);
    tokio::task::spawn_blocking(move || images.remove(&removed))
        .await
        .map_err(|_| Error::Stopped { image })??;
    Ok(cri::RemoveImageResponse {})
}
