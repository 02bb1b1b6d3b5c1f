//! RuntimeService: each method hands its request to the verb's own file. Methods
//! that a later version brings answer UNIMPLEMENTED and say their name.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    Node, container_create, container_exec, container_list, container_log, container_remove, container_start,
    container_status, container_stop, container_update, deadline::limit, error::Error, runtime_config,
    runtime_status, runtime_version, sandbox_list, sandbox_remove, sandbox_run, sandbox_status, sandbox_stop,
};
use crate::proto::cri::{self, runtime_service_server::RuntimeService};

/// The runtime service of a node.
#[derive(Clone, Debug)]
pub struct RuntimeApi {
    pub node: Arc<Node>,
}

/// No stream is served yet: nothing can be in one.
type Nothing<T> = tokio_stream::Empty<Result<T, Status>>;

fn later<T>(rpc: &'static str) -> Result<Response<T>, Status> {
    Err(Error::Unimplemented { rpc }.into())
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

    type StreamPodSandboxesStream = Nothing<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        _: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        later("StreamPodSandboxes")
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

    type StreamContainersStream = Nothing<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        _: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        later("StreamContainers")
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
        let request = request.into_inner();
        Ok(Response::new(
            container_update::update(&self.node, request).await?,
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
        let request = request.into_inner();
        Ok(Response::new(
            container_exec::exec_sync(&self.node, request).await?,
        ))
    }

    async fn exec(&self, _: Request<cri::ExecRequest>) -> Result<Response<cri::ExecResponse>, Status> {
        later("Exec")
    }

    async fn attach(&self, _: Request<cri::AttachRequest>) -> Result<Response<cri::AttachResponse>, Status> {
        later("Attach")
    }

    async fn port_forward(
        &self,
        _: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        later("PortForward")
    }

    async fn container_stats(
        &self,
        _: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        later("ContainerStats")
    }

    async fn list_container_stats(
        &self,
        _: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        later("ListContainerStats")
    }

    type StreamContainerStatsStream = Nothing<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        _: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        later("StreamContainerStats")
    }

    async fn pod_sandbox_stats(
        &self,
        _: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        later("PodSandboxStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        later("ListPodSandboxStats")
    }

    type StreamPodSandboxStatsStream = Nothing<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        later("StreamPodSandboxStats")
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
        Ok(Response::new(runtime_status::status(&self.node, &request)?))
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        later("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        later("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        later("RestorePod")
    }

    type GetContainerEventsStream = Nothing<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        later("GetContainerEvents")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        later("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        later("ListPodSandboxMetrics")
    }

    type StreamPodSandboxMetricsStream = Nothing<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        later("StreamPodSandboxMetrics")
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
        _: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        later("UpdatePodSandboxResources")
    }
}
