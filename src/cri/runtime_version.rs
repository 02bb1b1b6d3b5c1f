//! Version.

use super::{error::Error, node::Node};
use crate::proto::cri;

/// Version of the kubelet's runtime API that is answered: the kubelet accepts no other.
const KUBE_API: &str = "0.1.0";

pub fn version(_: &Node, _: &cri::VersionRequest) -> Result<cri::VersionResponse, Error> {
    Ok(cri::VersionResponse {
        version: KUBE_API.into(),
        runtime_name: "berth".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    })
}
