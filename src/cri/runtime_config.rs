//! RuntimeConfig (what the kubelet must know) and UpdateRuntimeConfig (what the
//! kubelet tells).

use super::{
    error::{Context, Error},
    node::Node,
};
use crate::{proto::cri, runtime::cgroup_driver::Driver};

/// The cgroup driver: the kubelet uses the same one.
pub fn config(node: &Node, _: &cri::RuntimeConfigRequest) -> Result<cri::RuntimeConfigResponse, Error> {
    let cgroup_driver = match node.cgroups.driver() {
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        Driver::Systemd => cri::CgroupDriver::Systemd,
    };
    let cgroup_driver = cgroup_driver.into();
    Ok(cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver }),
    })
}

/// The pod CIDR of the node, one of each family at most, separated by a comma. It
/// is checked and recorded; the built-in bridge takes its subnets from it when the
/// configuration names none and no pod has an address.
pub fn update(
    node: &Node,
    request: &cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Error> {
    let config = request.runtime_config.clone().unwrap_or_default();
    let cidr = config.network_config.unwrap_or_default().pod_cidr;
    if !cidr.is_empty() {
        node.network
            .set_pod_cidr(&cidr)
            .step("pod cidr", &cidr, "update the runtime's configuration")?;
    }
    Ok(cri::UpdateRuntimeConfigResponse {})
}
