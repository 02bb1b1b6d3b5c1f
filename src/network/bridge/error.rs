//! What can go wrong with the bridge.

use crate::{
    kind::{HasKind, Kind},
    network::{host, pod::Protocol, subnet::Subnet, wire},
    store::{self, network::PortRow},
};

/// Errors of the built-in bridge; each names the step, the object and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Netlink(#[from] wire::Error),
    #[error(transparent)]
    Step(#[from] host::Error),
    #[error("network.subnets: {message}")]
    Config { message: String },
    /// Of the cluster, not of the configuration.
    #[error("the node's pod cidr: {message}")]
    PodCidr { message: String },
    #[error("recorded subnet {subnet:?} cannot be read: remove all pods, or use another root")]
    Recorded { subnet: String },
    #[error("no address of {subnet} is free: remove pods, or give network.subnets a larger one")]
    Exhausted { subnet: String },
    #[error(
        "no subnet is free on this node for pods (10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16 are routed): set network.subnets"
    )]
    NoSubnet,
    #[error("the pod has no IPv6 and bridge {bridge} has no IPv4 subnet: set network.subnets")]
    NoFamily { bridge: String },
    #[error(
        "host port {host_ip}{port}/{protocol} is taken by sandbox {sandbox}: remove it or use another port"
    )]
    PortTaken {
        host_ip: String,
        port: u16,
        protocol: String,
        sandbox: String,
    },
    #[error("host port {port} on {host_ip}: the pod has no address of that family")]
    PortFamily { host_ip: String, port: u16 },
    #[error("host ports are off: set network.masquerade = true")]
    PortsOff,
    #[error(
        "link {name} exists and was not made by this berthd: remove it, or set network.bridge to another name"
    )]
    NotOurs { name: String },
    #[error("the bridge or the pod's link was removed by somebody else meanwhile: try again")]
    Gone,
}

impl Error {
    pub fn too_small(subnet: &Subnet) -> Error {
        Error::Config {
            message: format!("{subnet} has no room for pods: give a larger one"),
        }
    }

    pub fn port_taken(port: &PortRow, sandbox: String) -> Error {
        let host_ip = match port.host_ip.as_str() {
            "" => String::new(),
            ip => format!("{ip} port "),
        };
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == port.protocol)
            .map_or("?", Protocol::name);
        Error::PortTaken {
            host_ip,
            port: port.host_port,
            protocol: protocol.to_owned(),
            sandbox,
        }
    }
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Store(e) => e.kind(),
            Error::Netlink(e) if matches!(e.errno(), libc::ENOSPC | libc::ENOMEM | libc::ENOBUFS) => {
                Kind::ResourceExhausted
            }
            Error::Netlink(_) | Error::Step(_) => Kind::Internal,
            Error::Recorded { .. } => Kind::DataLoss,
            Error::Exhausted { .. } => Kind::ResourceExhausted,
            Error::PortTaken { .. } => Kind::AlreadyExists,
            Error::PortFamily { .. } | Error::PodCidr { .. } => Kind::InvalidArgument,
            Error::Config { .. }
            | Error::NoSubnet
            | Error::NoFamily { .. }
            | Error::PortsOff
            | Error::NotOurs { .. } => Kind::FailedPrecondition,
            Error::Gone => Kind::Unavailable,
        }
    }
}
