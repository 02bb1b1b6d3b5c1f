//! What a plugin is told: the verb and the pod in its environment, the
//! configuration on its stdin.

use std::{ffi::OsString, fmt, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{
    INTERFACE, capability,
    config::{Conflist, Plugin},
};
use crate::network::{netns, pod::PodNetwork};

/// Keys that the runtime owns begin with this.
const RESERVED: &str = "cni.dev/";

/// What is asked of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

impl Verb {
    /// As `CNI_COMMAND` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One run of one plugin.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub verb: Verb,
    pub list: &'a Conflist,
    pub plugin: &'a Plugin,
    /// None for the verbs that concern the network as a whole.
    pub pod: Option<&'a PodNetwork>,
    /// The result of the plugin before (ADD), or of the whole list.
    pub previous: Option<&'a Value>,
    /// For GC: the ids of the sandboxes that are attached.
    pub valid: &'a [String],
}

impl<'a> Request<'a> {
    /// A verb that concerns one pod.
    pub fn of_pod(
        verb: Verb,
        list: &'a Conflist,
        plugin: &'a Plugin,
        pod: &'a PodNetwork,
        previous: Option<&'a Value>,
    ) -> Request<'a> {
        Request {
            verb,
            list,
            plugin,
            pod: Some(pod),
            previous,
            valid: &[],
        }
    }

    /// A verb that concerns the network as a whole.
    pub fn of_network(
        verb: Verb,
        list: &'a Conflist,
        plugin: &'a Plugin,
        valid: &'a [String],
    ) -> Request<'a> {
        Request {
            verb,
            list,
            plugin,
            pod: None,
            previous: None,
            valid,
        }
    }

    /// The plugin's configuration as it gets it. The error is about the pod's
    /// annotations.
    pub fn input(&self) -> Result<Vec<u8>, String> {
        let mut config = self.plugin.clone();
        config.retain(|key, _| !key.starts_with(RESERVED));
        config.insert("name".into(), self.list.name.clone().into());
        config.insert("cniVersion".into(), self.list.version.clone().into());
        if let Some(pod) = self.pod {
            // The capabilities are answered by what is there for them.
            config.remove("capabilities");
            if let Some(previous) = self.previous {
                config.insert("prevResult".into(), previous.clone());
            }
            let runtime = match capability::runtime_config(self.plugin, pod) {
                Ok(runtime) => runtime,
                // It did not get past its ADD with that either.
                Err(_) if self.verb == Verb::Del => Map::new(),
                Err(message) => return Err(message),
            };
            if !runtime.is_empty() {
                config.insert("runtimeConfig".into(), Value::Object(runtime));
            }
        }
        if self.verb == Verb::Gc {
            let attachment = |id: &String| json!({"containerID": id, "ifname": INTERFACE});
            let valid: Vec<Value> = self.valid.iter().map(attachment).collect();
            // The second is how the specification named it at first, and how some
            // plugins read it.
            config.insert("cni.dev/attachments".into(), valid.clone().into());
            config.insert("cni.dev/valid-attachments".into(), valid.into());
        }
        Ok(Value::Object(config).to_string().into_bytes())
    }

    pub fn environment(&self, bin_dirs: &[PathBuf]) -> Vec<(&'static str, OsString)> {
        let folders: Vec<OsString> = bin_dirs.iter().map(|dir| dir.clone().into_os_string()).collect();
        let path = folders.join(std::ffi::OsStr::new(":"));
        let mut environment = vec![("CNI_COMMAND", self.verb.name().into()), ("CNI_PATH", path)];
        if let Some(pod) = self.pod {
            // After a reboot, or when the pod lost its namespace, there is none to name.
            let netns = match netns::is_namespace(&pod.netns) {
                true => pod.netns.clone().into_os_string(),
                false => OsString::new(),
            };
            environment.extend([
                ("CNI_CONTAINERID", pod.id.clone().into()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", INTERFACE.into()),
                ("CNI_ARGS", arguments(pod).into()),
            ]);
        }
        environment
    }
}

/// CNI_ARGS; the kubelet's names consist of letters, digits, '-' and '.', and
/// anything else would let one value pass for another.
fn arguments(pod: &PodNetwork) -> String {
    let plain = |text: &str| text.replace([';', '='], "_");
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        plain(&pod.namespace),
        plain(&pod.name),
        plain(&pod.id),
        plain(&pod.uid)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_passed_through_but_for_what_is_the_runtimes() {
        let plugin = json!({
            "type": "x", "mine": {"deep": [1]}, "cni.dev/valid-attachments": "forged",
            "capabilities": {"dns": true},
        });
        let list = Conflist {
            name: "net".into(),
            version: "1.1.0".into(),
            plugins: vec![plugin.as_object().unwrap().clone()],
            ..Conflist::default()
        };
        let mut pod = PodNetwork {
            id: "abc".into(),
            name: "a;b=c".into(),
            ..PodNetwork::default()
        };
        pod.dns.servers = vec!["10.0.0.10".into()];
        let (plugin, previous) = (&list.plugins[0], json!({"ips": []}));
        let request = Request::of_pod(Verb::Check, &list, plugin, &pod, Some(&previous));
        let input =
            |request: &Request<'_>| -> Value { serde_json::from_slice(&request.input().unwrap()).unwrap() };
        let dns = json!({"servers": ["10.0.0.10"], "searches": [], "options": []});
        assert_eq!(
            input(&request),
            json!({"type": "x", "mine": {"deep": [1]}, "name": "net", "cniVersion": "1.1.0",
                   "prevResult": {"ips": []}, "runtimeConfig": {"dns": dns}})
        );
        let text = |request: &Request<'_>| format!("{:?}", request.environment(&["/a".into(), "/b".into()]));
        assert!(
            text(&request).contains("K8S_POD_NAME=a_b_c;"),
            "{}",
            text(&request)
        );
        assert!(text(&request).contains(r#"("CNI_NETNS", "")"#));
        let valid = ["abc".to_owned()];
        let request = Request::of_network(Verb::Gc, &list, plugin, &valid);
        let attachments = json!([{"containerID": "abc", "ifname": "eth0"}]);
        let told = input(&request);
        assert_eq!(told["cni.dev/valid-attachments"], attachments);
        assert!(told.get("prevResult").is_none() && told.get("runtimeConfig").is_none());
        assert_eq!(
            text(&request),
            r#"[("CNI_COMMAND", "GC"), ("CNI_PATH", "/a:/b")]"#
        );
    }
}
