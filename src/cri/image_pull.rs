//! PullImage: the image is on the node, whole and on its disk, when this answers.

use std::sync::Arc;

use crate::{
    image::{AuthConfig, Error, Images},
    proto::cri,
};

/// Pulls `image.image`. Annotations say nothing about which image of an index is
/// meant; the runtime handler has been checked by the caller; the sandbox's
/// config changes nothing, as images are the same for all pods.
pub async fn pull(
    images: &Arc<Images>,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Error> {
    let name = request.image.unwrap_or_default().image;
    let auth = request.auth.map(|auth| AuthConfig {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    let image_ref = images.pull(&name, auth).await?;
    Ok(cri::PullImageResponse { image_ref })
}
