//! The port mappings of a pod, checked.

use std::net::IpAddr;

use super::{error::Error, sandbox_run::invalid};
use crate::{
    network::{PortMapping, Protocol},
    proto::cri,
};

/// The mappings that are of a host port; those without one say what the pod listens at,
/// and nothing is done for them.
pub fn ports(mappings: &[cri::PortMapping]) -> Result<Vec<PortMapping>, Error> {
    let mut ports = Vec::new();
    for mapping in mappings {
        let port = |which: &str, value: i32| {
            u16::try_from(value)
                .map_err(|_| invalid(format!("{which} port {value} is not between 0 and 65535")))
        };
        let host_port = port("host", mapping.host_port)?;
        let container_port = port("container", mapping.container_port)?;
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(invalid(format!("host port {host_port} has no container port")));
        }
        let protocol = match cri::Protocol::try_from(mapping.protocol) {
            Ok(cri::Protocol::Tcp) => Protocol::Tcp,
            Ok(cri::Protocol::Udp) => Protocol::Udp,
            Ok(cri::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => {
                return Err(invalid(format!(
                    "protocol {} of host port {host_port}",
                    mapping.protocol
                )));
            }
        };
        let host_ip =
            match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse::<IpAddr>().map_err(|_| {
                    invalid(format!("host ip {text:?} of host port {host_port} is no address"))
                })?),
            };
        ports.push(PortMapping {
            protocol,
            container_port,
            host_port,
            host_ip,
        });
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_mappings() {
        let mapping = |container_port, host_port, host_ip: &str| cri::PortMapping {
            protocol: cri::Protocol::Udp as i32,
            container_port,
            host_port,
            host_ip: host_ip.into(),
        };
        let good = ports(&[mapping(53, 0, ""), mapping(53, 5353, "::1")]).unwrap();
        assert_eq!(good.len(), 1);
        assert_eq!((good[0].protocol, good[0].host_port), (Protocol::Udp, 5353));
        for wrong in [
            mapping(53, 70000, ""),
            mapping(0, 5353, ""),
            mapping(53, 5353, "nonsense"),
        ] {
            assert!(ports(&[wrong]).is_err());
        }
    }
}
