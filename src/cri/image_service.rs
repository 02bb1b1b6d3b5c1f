//! ImageService: each method hands its request to the verb's own file.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    Node,
    deadline::{limit, within},
    error::Error,
    image_fs, image_list, image_pull, image_remove, image_status,
    stream_lists::{Chunks, chunks},
};
use crate::proto::cri::{self, image_service_server::ImageService};

/// The image service of a node.
#[derive(Clone, Debug)]
pub struct ImageApi {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            image_list::list(&self.node.images, request, limit)
                .await
                .map_err(Error::from)?,
        ))
    }

    type StreamImagesStream = Chunks<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let limit = limit(&request);
        let filter = request.into_inner().filter;
        let images = image_list::filtered(&self.node.images, filter, limit)
            .await
            .map_err(Error::from)?;
        Ok(Response::new(chunks(images, |images| {
            cri::StreamImagesResponse { images }
        })))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            image_status::status(&self.node.images, request)
                .await
                .map_err(Error::from)?,
        ))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        let asked = request.image.clone().unwrap_or_default();
        self.node.check_handler(&asked.runtime_handler)?;
        let name = asked.image;
        // The pull is a task of its own: it goes on when this call ends.
        let pull = image_pull::pull(&self.node, request);
        Ok(Response::new(
            within(limit, || format!("pull image {name}"), pull).await?,
        ))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            image_remove::remove(&self.node.images, request)
                .await
                .map_err(Error::from)?,
        ))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        Ok(Response::new(image_fs::info(&self.node).await?))
    }
}
