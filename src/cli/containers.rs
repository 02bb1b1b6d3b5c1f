//! `ps`, `logs`, `exec`, `stop` and `rm`.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    Client, Error, arguments,
    error::call,
    find::{self, own_name, pod_name},
    follow::{Follower, Printer, print_all, print_until_exit},
    run::MADE_BY_RUN,
    table,
};
use crate::proto::cri::{self, ContainerState};

pub async fn list(mut client: Client, args: &arguments::Ps) -> Result<u8, Error> {
    let filter = (!args.all).then(|| cri::ContainerFilter {
        state: Some(cri::ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        }),
        ..Default::default()
    });
    let mut containers = client
        .runtime
        .list_containers(cri::ListContainersRequest { filter })
        .await
        .map_err(call("list", "containers"))?
        .into_inner()
        .containers;
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    if args.quiet {
        let ids: String = containers.iter().map(|c| format!("{}\n", c.id)).collect();
        table::print(&ids)?;
        return Ok(0);
    }
    let mut rows = Vec::new();
    for container in &containers {
        let state = match status(&mut client, &container.id).await {
            Ok(status) => state_words(&status),
            // Removed since the list was made.
            Err(Error::Call { status, .. }) if status.code() == tonic::Code::NotFound => continue,
            Err(error) => return Err(error),
        };
        rows.push(vec![
            table::short(&container.id).to_owned(),
            own_name(container).to_owned(),
            pod_name(container).to_owned(),
            image_name(container).to_owned(),
            state,
            format!("{} ago", table::age(container.created_at)),
        ]);
    }
    let header = ["CONTAINER ID", "NAME", "POD", "IMAGE", "STATE", "CREATED"];
    table::print(&table::format(&header, &rows))?;
    Ok(0)
}

fn image_name(container: &cri::Container) -> &str {
    let named = container
        .image
        .as_ref()
        .map(|spec| match &*spec.user_specified_image {
            "" => spec.image.as_str(),
            name => name,
        });
    table::short_image(named.unwrap_or(&container.image_ref))
}

/// "running for 3 minutes", "exited with 1, 2 hours ago (Error)".
fn state_words(status: &cri::ContainerStatus) -> String {
    match status.state() {
        ContainerState::ContainerCreated => "created".into(),
        ContainerState::ContainerRunning => format!("running for {}", table::age(status.started_at)),
        ContainerState::ContainerExited => {
            let reason = match &*status.reason {
                "" | "Completed" | "Error" => String::new(),
                reason => format!(" ({reason})"),
            };
            let age = table::age(status.finished_at);
            format!("exited with {}{reason}, {age} ago", status.exit_code)
        }
        ContainerState::ContainerUnknown => "unknown".into(),
    }
}

pub(super) async fn status(client: &mut Client, id: &str) -> Result<cri::ContainerStatus, Error> {
    let request = cri::ContainerStatusRequest {
        container_id: id.into(),
        verbose: false,
    };
    let answer = client.runtime.container_status(request).await;
    let answer = answer.map_err(call("ask for the status of container", id))?;
    answer
        .into_inner()
        .status
        .ok_or(Error::Missing("container status"))
}

pub async fn logs(mut client: Client, args: &arguments::Logs) -> Result<u8, Error> {
    let container = find::container(&mut client, &args.container).await?;
    let path = status(&mut client, &container.id).await?.log_path;
    if path.is_empty() {
        return Err(Error::NoLog(args.container.clone()));
    }
    let mut follower = Follower::open(path.into())?;
    let mut printer = Printer::new(args.timestamps);
    print_all(&mut follower, &mut printer, args.tail)?;
    if args.follow {
        print_until_exit(&mut client, &container.id, &mut follower, &mut printer).await?;
    }
    Ok(0)
}

pub async fn exec(mut client: Client, args: &arguments::Exec) -> Result<u8, Error> {
    let container = find::container(&mut client, &args.container).await?;
    let request = cri::ExecSyncRequest {
        container_id: container.id,
        cmd: args.command.clone(),
        timeout: args.timeout.into(),
    };
    let answer = client
        .runtime
        .exec_sync(request)
        .await
        .map_err(call("execute in container", &args.container))?
        .into_inner();
    let mut written = io::stdout().write_all(&answer.stdout);
    if written.is_ok() {
        written = io::stderr().write_all(&answer.stderr);
    }
    written
        .and_then(|()| io::stdout().flush())
        .map_err(|source| Error::Io {
            step: "write output",
            source,
        })?;
    Ok(exit_code(answer.exit_code))
}

/// A code that does not fit becomes 255, as a shell would say.
pub(super) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

pub async fn stop(mut client: Client, args: &arguments::Stop) -> Result<u8, Error> {
    for name in &args.containers {
        let container = find::container(&mut client, name).await?;
        stop_one(&mut client, &container.id, args.time).await?;
        table::print(&format!("{}\n", container.id))?;
    }
    Ok(0)
}

pub(super) async fn stop_one(client: &mut Client, id: &str, seconds: u32) -> Result<(), Error> {
    let request = cri::StopContainerRequest {
        container_id: id.into(),
        timeout: seconds.into(),
    };
    client
        .runtime
        .stop_container(request)
        .await
        .map_err(call("stop container", id))?;
    Ok(())
}

pub async fn remove(mut client: Client, args: &arguments::Rm) -> Result<u8, Error> {
    for name in &args.containers {
        let container = find::container(&mut client, name).await?;
        if !args.force && container.state() == ContainerState::ContainerRunning {
            return Err(Error::Running(name.clone()));
        }
        remove_one(&mut client, &container).await?;
        table::print(&format!("{}\n", container.id))?;
    }
    Ok(0)
}

/// Removes a container; one that `berth run` made goes with its pod and its log.
pub(super) async fn remove_one(client: &mut Client, container: &cri::Container) -> Result<(), Error> {
    let ours = container.labels.contains_key(MADE_BY_RUN);
    let log = if ours {
        status(client, &container.id).await.ok().map(|s| s.log_path)
    } else {
        None
    };
    let request = cri::RemoveContainerRequest {
        container_id: container.id.clone(),
    };
    client
        .runtime
        .remove_container(request)
        .await
        .map_err(call("remove container", &container.id))?;
    if ours {
        remove_pod(client, &container.pod_sandbox_id).await?;
    }
    if let Some(log) = log.filter(|path| !path.is_empty()) {
        remove_log(&PathBuf::from(log));
    }
    Ok(())
}

/// Stops and removes a pod, with what is in it.
pub(super) async fn remove_pod(client: &mut Client, id: &str) -> Result<(), Error> {
    let request = cri::StopPodSandboxRequest {
        pod_sandbox_id: id.into(),
    };
    let answer = client.runtime.stop_pod_sandbox(request).await;
    answer.map_err(call("stop pod", id))?;
    let request = cri::RemovePodSandboxRequest {
        pod_sandbox_id: id.into(),
    };
    let answer = client.runtime.remove_pod_sandbox(request).await;
    answer.map_err(call("remove pod", id))?;
    Ok(())
}

/// Removes a log that `berth run` made, and its folder when that is empty then:
/// nothing that others put there is taken along. A log that is gone is fine.
pub(super) fn remove_log(path: &Path) {
    let _ = fs::remove_file(path);
    if let Some(folder) = path.parent() {
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_in_words() {
        let mut status = cri::ContainerStatus {
            state: ContainerState::ContainerExited.into(),
            exit_code: 137,
            reason: "OOMKilled".into(),
            ..Default::default()
        };
        assert!(state_words(&status).starts_with("exited with 137 (OOMKilled), "));
        status.reason = "Error".into();
        assert!(state_words(&status).starts_with("exited with 137, "));
        status.set_state(ContainerState::ContainerCreated);
        assert_eq!(state_words(&status), "created");
    }

    #[test]
    fn codes_out_of_range_become_255() {
        assert_eq!([0, 255, 256, -1].map(exit_code), [0, 255, 255, 255]);
    }
}
