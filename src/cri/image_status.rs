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
    let Some(image) = images.find(&name).await? else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cri::{image_fs, image_list, image_remove},
        image::tests::{Node, Registry, file},
    };
    use serde_json::json;

    fn spec(name: &str) -> Option<cri::ImageSpec> {
        Some(cri::ImageSpec {
            image: name.into(),
            ..cri::ImageSpec::default()
        })
    }

    #[tokio::test]
    async fn the_life_of_an_image() {
        let registry = Registry::start().await;
        let config = json!({"User": "www-data:1004", "Labels": {"a": "b"}});
        let (id, digest) = registry.push("a", "v1", &[file("x", b"1")], config);
        let node = Node::new();
        let images = &node.images;
        let tag = registry.name("a:v1");
        assert_eq!(images.pull(&tag, None).await.unwrap().id, id);

        let ask = |name: String, verbose| async move {
            let image = spec(&name);
            status(images, cri::ImageStatusRequest { image, verbose })
                .await
                .unwrap()
        };
        let first = ask(id.clone(), false).await;
        for name in [
            tag.clone(),
            id[7..].to_owned(),
            registry.name(&format!("a@{digest}")),
        ] {
            assert_eq!(ask(name, false).await, first);
        }
        let image = first.image.unwrap();
        assert_eq!((image.uid, image.username.as_str()), (None, "www-data"));
        assert_eq!(image.spec, spec(&id));
        assert!(image.size > 0 && first.info.is_empty());
        let verbose = ask(tag.clone(), true).await.info;
        let info: serde_json::Value = serde_json::from_str(&verbose["info"]).unwrap();
        assert_eq!(info["imageSpec"]["config"]["Labels"]["a"], "b");
        assert!(info["chainID"].as_str().unwrap().starts_with("sha256:"));

        let list = |name: String| async move {
            let filter = Some(cri::ImageFilter { image: spec(&name) });
            let found = image_list::list(images, cri::ListImagesRequest { filter }, None).await;
            found.unwrap().images
        };
        assert_eq!(list(String::new()).await, std::slice::from_ref(&image));
        assert_eq!(list(tag.clone()).await, [image]);
        assert!(list("busybox".into()).await.is_empty());

        let filesystem = image_fs::images(images).unwrap();
        assert!(filesystem.timestamp > 0 && filesystem.used_bytes.unwrap().value > 0);
        assert!(std::path::Path::new(&filesystem.fs_id.as_ref().unwrap().mountpoint).exists());

        for _ in 0..2 {
            let request = cri::RemoveImageRequest { image: spec(&id) };
            image_remove::remove(images, request).await.unwrap();
        }
        assert_eq!(ask(tag, false).await, cri::ImageStatusResponse::default());
        assert!(status(images, cri::ImageStatusRequest::default()).await.is_err());
    }
}
