//! `why`: where the time of a pod's start went, from the timelines that berthd
//! keeps of the pod and its containers.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;

use super::{
    Client, Error, arguments,
    error::call,
    table,
    waterfall::{Row, Waterfall},
};
use crate::proto::cri;

/// The key of verbose statuses.
const TIMELINE: &str = "timeline";

/// A step as berthd tells it.
#[derive(Clone, Debug, Deserialize)]
struct Step {
    name: String,
    /// Nanoseconds since the epoch.
    at: i64,
    /// Microseconds.
    took: u64,
    #[serde(default)]
    image: String,
    bytes: Option<u64>,
}

pub async fn why(mut client: Client, args: &arguments::Why) -> Result<u8, Error> {
    let pod = find(&mut client, &args.pod).await?;
    let name = pod.metadata.clone().unwrap_or_default();
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let answer = client.runtime.pod_sandbox_status(request).await;
    let status = answer.map_err(call("read pod", &args.pod))?.into_inner();
    let of_pod = steps(&status.info)?;
    let mut of_containers = Vec::new();
    for container in containers(&mut client, &pod.id).await? {
        let own_name = container.metadata.unwrap_or_default().name;
        let request = cri::ContainerStatusRequest {
            container_id: container.id,
            verbose: true,
        };
        let answer = client.runtime.container_status(request).await;
        let status = answer.map_err(call("read container", &own_name))?.into_inner();
        let steps = steps(&status.info)?;
        of_containers.extend(steps.into_iter().map(|step| (own_name.clone(), step)));
    }
    let title = format!("pod {}/{} ({})", name.namespace, name.name, table::short(&pod.id));
    let waterfall = Waterfall::new(title, rows(of_pod, of_containers));
    if waterfall.is_empty() {
        return Err(Error::NoTimeline(args.pod.clone()));
    }
    if let Some(path) = &args.svg {
        fs::write(path, waterfall.svg()).map_err(|source| Error::File {
            step: "write",
            path: path.clone(),
            source,
        })?;
    } else {
        table::print(&waterfall.text())?;
    }
    Ok(0)
}

fn steps(info: &std::collections::HashMap<String, String>) -> Result<Vec<Step>, Error> {
    let text = info.get(TIMELINE).ok_or(Error::Missing("the timeline"))?;
    serde_json::from_str(text).map_err(|_| Error::Missing("a timeline that can be read"))
}

/// The pod's steps and its containers'. What a pod pulled after its containers had
/// started, as for a restart, is not part of its start.
fn rows(of_pod: Vec<Step>, of_containers: Vec<(String, Step)>) -> Vec<Row> {
    let end = |step: &Step| {
        step.at
            .saturating_add(i64::try_from(step.took.saturating_mul(1000)).unwrap_or(i64::MAX))
    };
    let last = of_containers.iter().map(|(_, step)| end(step)).max();
    let pod = of_pod
        .into_iter()
        .filter(|step| step.image.is_empty() || last.is_none_or(|last| step.at < last))
        .map(|step| ("pod".to_owned(), step));
    let mut rows: Vec<_> = pod
        .chain(of_containers)
        .map(|(who, step)| Row {
            who,
            what: match step.image.as_str() {
                "" => step.name,
                image => format!("{} {}", step.name, table::short_image(image)),
            },
            at: step.at,
            took: step.took,
            note: step.bytes.map(table::size).unwrap_or_default(),
        })
        .collect();
    rows.sort_by_key(|row| row.at);
    rows
}

/// By id, by NAME or NAMESPACE/NAME (the newest that is so named), by the start of an id.
async fn find(client: &mut Client, asked: &str) -> Result<cri::PodSandbox, Error> {
    let request = cri::ListPodSandboxRequest { filter: None };
    let answer = client.runtime.list_pod_sandbox(request).await;
    let all = answer.map_err(call("list", "pods"))?.into_inner().items;
    choose(all, asked)
}

fn choose(mut all: Vec<cri::PodSandbox>, asked: &str) -> Result<cri::PodSandbox, Error> {
    all.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    let named = |pod: &&cri::PodSandbox| {
        let name = pod.metadata.clone().unwrap_or_default();
        pod.id == asked || name.name == asked || format!("{}/{}", name.namespace, name.name) == asked
    };
    if let Some(pod) = all.iter().find(named) {
        return Ok(pod.clone());
    }
    let begins: Vec<_> = all
        .iter()
        .filter(|pod| !asked.is_empty() && pod.id.starts_with(asked))
        .collect();
    match &begins[..] {
        [] => Err(Error::NoPod(asked.into())),
        [one] => Ok((*one).clone()),
        several => {
            let found: Vec<_> = several.iter().map(|pod| table::short(&pod.id)).collect();
            Err(Error::Ambiguous {
                name: asked.into(),
                found: found.join(", "),
            })
        }
    }
}

/// The first container of each name: later ones are restarts.
async fn containers(client: &mut Client, pod: &str) -> Result<Vec<cri::Container>, Error> {
    let filter = cri::ContainerFilter {
        pod_sandbox_id: pod.into(),
        ..Default::default()
    };
    let request = cri::ListContainersRequest { filter: Some(filter) };
    let answer = client.runtime.list_containers(request).await;
    let mut all = answer
        .map_err(call("list", "containers"))?
        .into_inner()
        .containers;
    all.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let first: BTreeMap<_, _> = all
        .into_iter()
        .map(|container| (container.metadata.clone().unwrap_or_default().name, container))
        .collect();
    let mut first: Vec<_> = first.into_values().collect();
    first.sort_by_key(|container| container.created_at);
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, name: &str, created_at: i64) -> cri::PodSandbox {
        cri::PodSandbox {
            id: id.into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            created_at,
            ..Default::default()
        }
    }

    #[test]
    fn pods_are_found_by_name_and_id() {
        let all = || vec![pod("aa1", "web", 1), pod("aa2", "web", 2), pod("bb3", "db", 3)];
        let id = |name: &str| choose(all(), name).map(|pod| pod.id);
        assert_eq!(id("web").unwrap(), "aa2");
        assert_eq!(id("default/db").unwrap(), "bb3");
        assert_eq!(id("aa1").unwrap(), "aa1");
        assert_eq!(id("b").unwrap(), "bb3");
        assert!(matches!(id("aa"), Err(Error::Ambiguous { .. })));
        assert!(matches!(id(""), Err(Error::NoPod(_))));
    }

    #[test]
    fn pulls_after_the_start_are_left_out() {
        let step = |name: &str, at: i64, image: &str| Step {
            name: name.into(),
            at,
            took: 1,
            image: image.into(),
            bytes: (!image.is_empty()).then_some(1_500_000),
        };
        let of_pod = vec![
            step("network", 10_000, ""),
            step("pull", 20_000, "a:1"),
            step("pull", 90_000, "a:1"),
        ];
        let rows = rows(of_pod, vec![("main".into(), step("start", 50_000, ""))]);
        let shown: Vec<_> = rows.iter().map(|r| (&*r.who, &*r.what, &*r.note)).collect();
        assert_eq!(
            shown,
            [
                ("pod", "network", ""),
                ("pod", "pull a:1", "1.5MB"),
                ("main", "start", "")
            ]
        );
    }
}
