//! RuntimeService: each method hands its request to the verb's own file.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    Node, checkpoint, container_attach, container_create,
    container_events::{self, EventStream},
    container_exec, container_list, container_log, container_remove, container_start, container_stats,
    container_status, container_stop, container_update,
    deadline::limit,
    metric_descriptors, metrics, runtime_config, runtime_status, runtime_version, sandbox_list,
    sandbox_portforward, sandbox_remove, sandbox_run, sandbox_stats, sandbox_status, sandbox_stop,
    sandbox_update,
    stream_lists::{Chunks, chunks},
};
use crate::{
    proto::cri::{self, runtime_service_server::RuntimeService},
    stream::Urls,
};

/// The runtime service of a node.
#[derive(Clone, Debug)]
pub struct RuntimeApi {
    pub node: Arc<Node>,
    /// Where the streaming server is.
    pub urls: Urls,
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    async fn version(
        &self,
        request: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(runtime_version::version(&self.node, &request)?))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(sandbox_run::run(&self.node, request, limit).await?))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            sandbox_stop::stop(&self.node, request, limit).await?,
        ))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            sandbox_remove::remove(&self.node, request, limit).await?,
        ))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(sandbox_status::status(&self.node, &request)?))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(sandbox_list::list(&self.node, &request)?))
    }

    type StreamPodSandboxesStream = Chunks<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let filter = request.into_inner().filter;
        let items = sandbox_list::list(&self.node, &cri::ListPodSandboxRequest { filter })?.items;
        Ok(Response::new(chunks(items, |pod_sandboxes| {
            cri::StreamPodSandboxesResponse { pod_sandboxes }
        })))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            container_create::create(&self.node, request, limit).await?,
        ))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            container_start::start(&self.node, request, limit).await?,
        ))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            container_stop::stop(&self.node, request, limit).await?,
        ))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            container_remove::remove(&self.node, request, limit).await?,
        ))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(container_list::list(&self.node, &request)?))
    }

    type StreamContainersStream = Chunks<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let filter = request.into_inner().filter;
        let items = container_list::list(&self.node, &cri::ListContainersRequest { filter })?.containers;
        Ok(Response::new(chunks(items, |containers| {
            cri::StreamContainersResponse { containers }
        })))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(container_status::status(&self.node, &request)?))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        Ok(Response::new(
            container_update::update(&self.node, request, limit).await?,
        ))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(container_log::reopen(&self.node, &request).await?))
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        let limit = limit(&request);
        let request = request.into_inner();
        container_exec::exec_sync(&self.node, request, limit).await
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Result<Response<cri::ExecResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(container_exec::exec(
            &self.node, &self.urls, request,
        )?))
    }

    async fn attach(
        &self,
        request: Request<cri::AttachRequest>,
    ) -> Result<Response<cri::AttachResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(container_attach::attach(
            &self.node, &self.urls, request,
        )?))
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(sandbox_portforward::port_forward(
            &self.node, &self.urls, &request,
        )?))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(container_stats::stats(&self.node, request).await?))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        let request = request.into_inner();
        let stats = container_stats::list(&self.node, request.filter).await?;
        Ok(Response::new(cri::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Chunks<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let request = request.into_inner();
        let stats = container_stats::list(&self.node, request.filter).await?;
        Ok(Response::new(chunks(stats, |container_stats| {
            cri::StreamContainerStatsResponse { container_stats }
        })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(sandbox_stats::stats(&self.node, request).await?))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        let request = request.into_inner();
        let stats = sandbox_stats::list(&self.node, request.filter).await?;
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Chunks<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let request = request.into_inner();
        let stats = sandbox_stats::list(&self.node, request.filter).await?;
        Ok(Response::new(chunks(stats, |pod_sandbox_stats| {
            cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })))
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(runtime_config::update(&self.node, &request)?))
    }

    async fn status(
        &self,
        request: Request<cri::StatusRequest>,
    ) -> Result<Response<cri::StatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(runtime_status::status(&self.node, &request).await?))
    }

    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(checkpoint::container(&self.node, &request)?))
    }

    async fn checkpoint_pod(
        &self,
        request: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(checkpoint::pod(&self.node, &request)?))
    }

    async fn restore_pod(
        &self,
        request: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(checkpoint::restore(&self.node, &request)?))
    }

    type GetContainerEventsStream = EventStream;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(container_events::listen(&self.node)?))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(cri::ListMetricDescriptorsResponse {
            descriptors: metric_descriptors::all(),
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = metrics::list(&self.node).await?;
        Ok(Response::new(cri::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Chunks<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let metrics = metrics::list(&self.node).await?;
        Ok(Response::new(chunks(metrics, |pod_sandbox_metrics| {
            cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        })))
    }

    async fn runtime_config(
        &self,
        request: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(runtime_config::config(&self.node, &request)?))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(sandbox_update::update(&self.node, request).await?))
    }
}
