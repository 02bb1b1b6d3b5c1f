//! From what people type to the container they mean.

use super::{Client, Error, error::call, table::short};
use crate::proto::cri;

/// The label by which a kubelet names a container's pod; `berth run` sets it too.
pub const POD_NAME: &str = "io.kubernetes.pod.name";

/// Finds by id, by name, by `POD/NAME`, by the start of an id.
pub async fn container(client: &mut Client, name: &str) -> Result<cri::Container, Error> {
    let all = client
        .runtime
        .list_containers(cri::ListContainersRequest { filter: None })
        .await
        .map_err(call("list", "containers"))?
        .into_inner()
        .containers;
    choose(all, name)
}

fn choose(all: Vec<cri::Container>, name: &str) -> Result<cri::Container, Error> {
    let by_id = |c: &cri::Container| c.id == name;
    let by_name =
        |c: &cri::Container| own_name(c) == name || format!("{}/{}", pod_name(c), own_name(c)) == name;
    let by_start = |c: &cri::Container| !name.is_empty() && c.id.starts_with(name);
    let rules: [&dyn Fn(&cri::Container) -> bool; 3] = [&by_id, &by_name, &by_start];
    for rule in rules {
        let mut found: Vec<_> = all.iter().filter(|c| rule(c)).collect();
        match (found.pop(), found.is_empty()) {
            (None, _) => {}
            (Some(one), true) => return Ok(one.clone()),
            (Some(last), false) => {
                found.push(last);
                let found: Vec<_> = found.iter().map(|c| short(&c.id)).collect();
                return Err(Error::Ambiguous {
                    name: name.into(),
                    found: found.join(", "),
                });
            }
        }
    }
    Err(Error::NoContainer(name.into()))
}

/// The container's own name, within its pod.
pub fn own_name(container: &cri::Container) -> &str {
    container.metadata.as_ref().map_or("", |m| m.name.as_str())
}

/// Name of the pod, empty when whoever made the container did not say.
pub fn pod_name(container: &cri::Container) -> &str {
    container.labels.get(POD_NAME).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(id: &str, pod: &str, name: &str) -> cri::Container {
        cri::Container {
            id: id.into(),
            metadata: Some(cri::ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            labels: [(POD_NAME.to_owned(), pod.to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn ids_go_before_names_and_names_before_starts() {
        let all = || {
            vec![
                made("abc1", "web", "nginx"),
                made("abd2", "db", "abc1"),
                made("bcd3", "db", "sql"),
                made("cde4", "web", "sql"),
            ]
        };
        let id = |name: &str| choose(all(), name).map(|c| c.id);
        assert_eq!(id("abc1").unwrap(), "abc1");
        assert_eq!(id("nginx").unwrap(), "abc1");
        assert_eq!(id("bc").unwrap(), "bcd3");
        assert_eq!(id("web/sql").unwrap(), "cde4");
        assert!(matches!(id("sql"), Err(Error::Ambiguous { .. })));
        assert!(matches!(id("ab"), Err(Error::Ambiguous { .. })));
        assert!(matches!(id("x"), Err(Error::NoContainer(_))));
        assert!(matches!(id(""), Err(Error::NoContainer(_))));
    }
}
