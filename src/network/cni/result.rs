//! What plugins answer: the addresses of the pod. The shape is the same in
//! versions 0.3.0 to 1.1.0 as far as it matters here.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    /// The network namespace; empty: the interface is the node's.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    /// With its prefix: "10.1.2.3/24".
    address: String,
    /// Index in `interfaces`.
    interface: Option<usize>,
}

/// Reads what a plugin printed. The next one wants to know its version, and some
/// plugins leave that out: then it is the one they were spoken to in.
pub fn read(output: &[u8], version: &str) -> Result<Value, String> {
    let mut result: Map<String, Value> = serde_json::from_slice(output).map_err(|e| e.to_string())?;
    let said = result.entry("cniVersion").or_insert(Value::Null);
    if said.is_null() || said == "" {
        *said = version.into();
    }
    Ok(Value::Object(result))
}

/// The addresses of the pod's interface, IPv4 first as containerd has it; else
/// in the order of the answer.
pub fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, String> {
    let answer = Answer::deserialize(result).map_err(|e| e.to_string())?;
    let mut ips = Vec::new();
    for ip in &answer.ips {
        let of_pod = match ip.interface {
            None => true,
            Some(index) => match answer.interfaces.get(index) {
                Some(it) => !it.sandbox.is_empty() && it.name == interface,
                None => {
                    return Err(format!(
                        "{} is of interface {index}, which is not there",
                        ip.address
                    ));
                }
            },
        };
        if of_pod {
            let address = ip
                .address
                .split_once('/')
                .map_or(ip.address.as_str(), |(address, _)| address);
            ips.push(
                address
                    .parse()
                    .map_err(|_| format!("{:?} is not an address", ip.address))?,
            );
        }
    }
    ips.sort_by_key(|ip: &IpAddr| ip.is_ipv6());
    Ok(ips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_addresses_of_the_pod_count() {
        let result = serde_json::json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/ns"}, {"name": "net1", "sandbox": "/ns"}],
            "ips": [
                {"address": "10.9.0.1/16", "interface": 0}, {"address": "fd00::7/64", "interface": 1},
                {"address": "10.9.0.7/16", "interface": 1}, {"address": "10.8.0.7/16", "interface": 2}],
        });
        let ips = addresses(&result, "eth0").unwrap();
        assert_eq!(
            ips,
            ["10.9.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]
        );
        let old = serde_json::json!({"ips": [{"version": "4", "address": "10.9.0.7/16"}]});
        assert_eq!(addresses(&old, "eth0").unwrap().len(), 1);
        assert_eq!(addresses(&serde_json::json!({}), "eth0"), Ok(vec![]));
        for wrong in [
            serde_json::json!({"ips": [{"address": "10.9.0.7/16", "interface": 3}]}),
            serde_json::json!({"ips": [{"address": "here"}]}),
            serde_json::json!({"ips": 7}),
        ] {
            assert!(addresses(&wrong, "eth0").is_err(), "{wrong}");
        }
    }
}
