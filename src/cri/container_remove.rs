//! RemoveContainer: kills what runs, then takes everything of the container away.

use std::{sync::Arc, time::Duration};

use super::{
    bundle, container_events,
    container_hooks::{self, When},
    container_stop,
    error::{Context, Error, io},
    node::Node,
};
use crate::{
    failpoint,
    image::remove_all,
    pod::{self, Container, ContainerEvent},
    proto::cri::{self, ContainerEventType},
};

/// How long a shim may take to end its task.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn remove(
    node: &Arc<Node>,
    request: cri::RemoveContainerRequest,
    limit: Option<Duration>,
) -> Result<cri::RemoveContainerResponse, Error> {
    let container = match node.pods.container(&request.container_id) {
        Ok(container) => container,
        Err(pod::Error::NotFound { .. }) => return Ok(cri::RemoveContainerResponse {}),
        Err(e) => return Err(e.into()),
    };
    let at = node.clone();
    let key = format!("remove container {}", container.id);
    node.operate(key, limit, move |stage| async move {
        stage.set("kill and remove");
        erase(&at, &container).await?;
        Ok(String::new())
    })
    .await?;
    Ok(cri::RemoveContainerResponse {})
}

/// Takes everything of a container away, whatever its state.
pub async fn erase(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    container_stop::kill(node, container).await?;
    let _gate = container.gate.lock().await;
    let id = container.id.as_str();
    // Who waited for the gate may find the work done.
    if !node
        .pods
        .container(id)
        .is_ok_and(|found| Arc::ptr_eq(&found, container))
    {
        return Ok(());
    }
    container.advance(&node.store, ContainerEvent::Remove, |_| {})?;
    failpoint::reach("remove container: shim");
    if let Some(shim) = container.shim()
        && let Err(error) = shim.delete_within(PATIENCE).await
    {
        tracing::debug!(container = %id, %error, "delete the task");
    }
    container.set_shim(None);
    failpoint::reach("remove container: cgroup");
    container_hooks::run(node, container, When::Removed).await;
    let runtime = container.record().runtime;
    if let Some(runtime) = &runtime
        && let Err(error) = runtime.delete(id, &node.paths.bundle(id)).await
    {
        // Its binary may be gone, or hang; without it the container can be removed too.
        tracing::warn!(container = %id, %error, "the runtime does not remove it, so its cgroup is ended");
    }
    node.cgroups
        .remove(&container.record().cgroup)
        .await
        .step("container", id, "remove the cgroup")?;
    failpoint::reach("remove container: folders");
    let (bundle, layer) = (node.paths.bundle(id), node.paths.container(id));
    let (owned, images) = (container.id.clone(), node.images.clone());
    let gone = tokio::task::spawn_blocking(move || {
        if let Some(runtime) = runtime {
            let folder = runtime.root.join(&owned);
            let forgotten = runtime.forget(&owned);
            forgotten.map_err(io("container", &owned, "remove folder", &folder))?;
        }
        bundle::unmount_layers(&bundle, &owned)?;
        for folder in [bundle, layer] {
            remove_all(&folder).map_err(io("container", &owned, "remove folder", &folder))?;
        }
        images
            .release_layers(&owned)
            .step("container", &owned, "release the image's layers")
    });
    gone.await.unwrap_or_else(|e| {
        Err(Error::Left {
            what: "container",
            id: id.into(),
            step: "remove folders",
            message: e.to_string(),
        })
    })?;
    failpoint::reach("remove container: record");
    node.store.delete_container(id)?;
    node.pods.forget_container(id);
    container_events::tell(node, container, ContainerEventType::ContainerDeletedEvent);
    tracing::info!(container = %id, name = %container.name, "container is removed");
    Ok(())
}
