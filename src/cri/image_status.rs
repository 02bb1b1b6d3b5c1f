//! ImageStatus: one image, or an empty answer when it is not on the node.

use std::{collections::HashMap, sync::Arc};

use super::image_list::message;
use crate::{
    image::{Error, Image, Images},
    proto::cri,
};

pub async fn status(
    images: &Arc<Images>,
    request: cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, Error> {
    let name = request.image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Error::Reference {
            reference: name,
            message: "it is empty".into(),
        });
    }
    let Some(image) = images.find(&name)? else {
        return Ok(cri::ImageStatusResponse::default());
    };
    let info = if request.verbose {
        HashMap::from([("info".to_owned(), info(images, &image)?)])
    } else {
        HashMap::new()
    };
    Ok(cri::ImageStatusResponse {
        image: Some(message(&image)),
        info,
    })
}

/// `{"chainID":..., "imageSpec": the config blob}`, containerd's shape, which
/// tools read through `crictl inspecti`.
fn info(images: &Images, image: &Image) -> Result<String, Error> {
    let text = images.config_json(image)?;
    let spec: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::Manifest {
        object: format!("config {}", image.id),
        message: format!("is not JSON: {e}"),
    })?;
    let chain_id = image.chain_id().map(|id| id.to_string()).unwrap_or_default();
    Ok(serde_json::json!({ "chainID": chain_id, "imageSpec": spec }).to_string())
}
