//! What the network is told about a pod, and what it answers.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A pod that wants a network. Recorded at [`attach`](super::Network::attach),
/// so that [`detach`](super::Network::detach) needs the id alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNetwork {
    /// The sandbox's id; also the container id that CNI plugins see.
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Mappings whose host port is 0 are ignored, as the kubelet means them.
    pub ports: Vec<PortMapping>,
    pub dns: Dns,
    pub cgroup_parent: String,
    pub annotations: BTreeMap<String, String>,
    /// The runtime handler, which may have a folder of CNI configurations of its own.
    pub handler: String,
    /// The subnets that the cluster gave the node, for plugins with the capability
    /// "ipRanges"; filled in by attach.
    pub pod_cidrs: Vec<String>,
}

/// One port of the node that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// The node's address that is served; none: all, of both families. The
    /// unspecified address means all of its own family.
    pub host_ip: Option<IpAddr>,
}

/// Transport of a port mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As records, CNI and messages spell it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    /// The inverse of [`Protocol::name`].
    pub fn from_name(name: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|p| p.name() == name)
    }

    /// The number in the IP header (IANA).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The pod's resolver, for plugins with the capability "dns".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A network that a pod has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    pub kind: AttachmentKind,
}

/// Who made the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentKind {
    /// The built-in bridge, by name.
    Bridge { bridge: String },
    /// CNI plugins: the network's name and what the last of them answered.
    Cni {
        network: String,
        result: serde_json::Value,
    },
}

/// Why pods cannot have a network now: reason and message of the CRI condition
/// NetworkReady.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    pub reason: &'static str,
    pub message: String,
}
