//! The init of a pod whose containers share one PID namespace: a shim whose child
//! reaps and sleeps. It is made when the first container asks for the shared
//! namespace, so a pod that shares none has no process of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    container_bundle::user_namespace,
    error::{Context, Error, io},
    node::Node,
    recover::ask,
};
use crate::{
    image::remove_all,
    pod::Sandbox,
    runtime::{Shim, cgroup_driver},
    spec,
};

/// How long a shim may take to say how its init is.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a killed init may take to die.
const PATIENCE: Duration = Duration::from_secs(10);

/// The shared PID namespace of the sandbox; made when there is none yet.
pub async fn ensure(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<PathBuf, Error> {
    let mut init = sandbox.init.lock().await;
    if let Some((_, pid)) = &*init {
        return Ok(namespace(*pid));
    }
    // The intent first: a berthd that dies now takes the shim down when it starts again.
    sandbox.update(&node.store, |record| record.init = true)?;
    let bundle = node.paths.bundle(&sandbox.id);
    let made = launch(node, sandbox, &bundle).await;
    match made {
        Ok((shim, pid)) => {
            watch(sandbox, &shim);
            *init = Some((shim, pid));
            Ok(namespace(pid))
        }
        Err(error) => {
            drop(init);
            if let Err(left) = end(node, sandbox).await {
                tracing::error!(sandbox = %sandbox.id, %left, "the init could not be taken back");
            }
            Err(error)
        }
    }
}

fn namespace(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/pid"))
}

async fn launch(node: &Node, sandbox: &Sandbox, bundle: &Path) -> Result<(Shim, u32), Error> {
    let id = sandbox.id.as_str();
    std::fs::create_dir_all(bundle.join("rootfs")).map_err(io("sandbox", id, "make folder", bundle))?;
    let record = sandbox.record();
    let pinned = node.paths.namespaces(id);
    let path = |name: &str| {
        record
            .namespaces
            .iter()
            .any(|n| n == name)
            .then(|| pinned.join(name))
    };
    let (net, ipc, uts) = (path("net"), path("ipc"), path("uts"));
    let user = user_namespace(node, sandbox)?;
    let cgroup = cgroup_driver::path(&record.cgroup_parent, id);
    let init = spec::SandboxInit {
        id,
        user: user.as_ref(),
        net_ns: net.as_deref(),
        ipc_ns: ipc.as_deref(),
        uts_ns: uts.as_deref(),
        cgroup: &cgroup,
    };
    let mut plan = spec::sandbox_plan(&init, &node.host).step("sandbox", id, "plan the init")?;
    plan.surroundings = Some(node.surroundings.told());
    let shim = Shim::spawn(&node.shim, id, bundle)
        .await
        .step("sandbox", id, "start the shim of the init")?;
    let limits = plan.cgroup.as_ref().and_then(|cgroup| cgroup.resources.as_ref());
    let _hold = node
        .cgroups
        .make(node.shim.program(), &cgroup, limits)
        .await
        .step("sandbox", id, "make the scope of the init")?;
    shim.create(&plan, bundle)
        .await
        .step("sandbox", id, "make the init")?;
    let pid = shim.start().await.step("sandbox", id, "start the init")?;
    Ok((shim, pid))
}

/// After a restart of berthd: takes the init up again, or finds that it is gone.
pub async fn recover(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    if !sandbox.record().init {
        return;
    }
    // Who needs the init, or ends it, waits until it is known again.
    let mut init = sandbox.init.lock().await;
    match ask(&sandbox.id, &node.paths.bundle(&sandbox.id)).await {
        Ok((shim, state)) => {
            watch(sandbox, &shim);
            *init = Some((shim, state.pid));
        }
        Err(error) => {
            drop(init);
            tracing::warn!(sandbox = %sandbox.id, %error, "the init of the pod is not there");
            if error.is_gone()
                && let Err(left) = end(node, sandbox).await
            {
                tracing::error!(sandbox = %sandbox.id, %left, "forget the init of the pod");
            }
        }
    }
}

/// Forgets the init when it ends: the kernel has killed the containers that were
/// in its namespace, and the next container gets a new one.
fn watch(sandbox: &Arc<Sandbox>, shim: &Shim) {
    let (sandbox, shim) = (sandbox.clone(), shim.clone());
    tokio::spawn(async move {
        let ended = shim.wait().await;
        tracing::debug!(sandbox = %sandbox.id, ?ended, "the init of the pod ended");
        *sandbox.init.lock().await = None;
    });
}

/// Ends the init and everything that belonged to it. Idempotent.
pub async fn end(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let record = sandbox.record();
    if !record.init {
        return Ok(());
    }
    let id = sandbox.id.as_str();
    let bundle = node.paths.bundle(id);
    let running = match tokio::time::timeout(ANSWER, sandbox.init.lock()).await {
        Ok(mut init) => init.take(),
        // Its shim hangs since a restart of berthd, and is still being asked.
        Err(_) => {
            Shim::put_down(id, &bundle).await;
            sandbox.init.lock().await.take()
        }
    };
    let shim = match running {
        Some((shim, _)) => Some(shim),
        None => Shim::connect(id, &bundle).await.ok(),
    };
    if let Some(shim) = shim
        && let Err(error) = shim.delete_within(PATIENCE).await
    {
        tracing::debug!(sandbox = %id, %error, "delete the init");
    }
    let path = cgroup_driver::path(&record.cgroup_parent, id);
    node.cgroups
        .remove(&path)
        .await
        .step("sandbox", id, "remove the cgroup of the init")?;
    remove_all(&bundle).map_err(io("sandbox", id, "remove folder", &bundle))?;
    sandbox.update(&node.store, |record| record.init = false)?;
    Ok(())
}
