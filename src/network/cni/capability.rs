//! `runtimeConfig`: what the runtime tells the plugins that declare a capability.

use serde_json::{Map, Value, json};

use crate::network::pod::PodNetwork;

/// As containerd names it.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Limits of the kubelet for the bandwidth annotations, in bits per second.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The `runtimeConfig` for a plugin: of the capabilities that it declares, those
/// that the pod has something for.
pub fn runtime_config(plugin: &Map<String, Value>, pod: &PodNetwork) -> Result<Map<String, Value>, String> {
    let mut config = Map::new();
    let Some(Value::Object(declared)) = plugin.get("capabilities") else {
        return Ok(config);
    };
    for (name, on) in declared {
        if *on != Value::Bool(true) {
            continue;
        }
        let value = match name.as_str() {
            "portMappings" => port_mappings(pod),
            "dns" => dns(pod),
            "bandwidth" => bandwidth(pod)?,
            "cgroupPath" if !pod.cgroup_parent.is_empty() => Some(json!(pod.cgroup_parent)),
            POD_ANNOTATIONS if !pod.annotations.is_empty() => Some(json!(pod.annotations)),
            _ => None,
        };
        if let Some(value) = value {
            config.insert(name.clone(), value);
        }
    }
    Ok(config)
}

fn port_mappings(pod: &PodNetwork) -> Option<Value> {
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.name(),
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    (!ports.is_empty()).then_some(Value::Array(ports))
}

fn dns(pod: &PodNetwork) -> Option<Value> {
    let dns = &pod.dns;
    let some = !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
    some.then(|| json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}))
}

/// From the pod's annotations; the burst is as large as plugins take it, as
/// containerd has it.
fn bandwidth(pod: &PodNetwork) -> Result<Option<Value>, String> {
    let mut limits = Map::new();
    for (direction, rate, burst) in [
        ("ingress", "ingressRate", "ingressBurst"),
        ("egress", "egressRate", "egressBurst"),
    ] {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        if let Some(text) = pod.annotations.get(&key) {
            let bits = quantity(text)
                .filter(|bits| BANDWIDTH.contains(bits))
                .ok_or_else(|| {
                    format!("annotation {key}: {text:?} is not a quantity between 1k and 1P, like \"10M\"")
                })?;
            limits.insert(rate.to_owned(), json!(bits));
            limits.insert(burst.to_owned(), json!(u32::MAX));
        }
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// A quantity of Kubernetes, rounded up: "10M", "1.5Gi", "1e6".
fn quantity(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let (times, over): (u128, u128) = match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (
                10u128
                    .checked_pow(exponent)
                    .filter(|times| *times <= 1_000_000_000_000_000)?,
                1,
            )
        }
    };
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let all: u128 = format!("{whole}{fraction}").parse().ok()?;
    let value = all.checked_mul(times)?.div_ceil(scale.checked_mul(over)?);
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::pod::{Dns, PortMapping, Protocol};

    fn pod() -> PodNetwork {
        let port = |host_port| PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port,
            host_ip: None,
        };
        PodNetwork {
            ports: vec![port(0), port(5353)],
            dns: Dns {
                servers: vec!["10.0.0.10".into()],
                ..Dns::default()
            },
            annotations: [("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned())].into(),
            ..PodNetwork::default()
        }
    }

    fn config(capabilities: &Value) -> Value {
        let plugin = json!({"type": "x", "capabilities": capabilities});
        Value::Object(runtime_config(plugin.as_object().unwrap(), &pod()).unwrap())
    }

    #[test]
    fn only_declared_capabilities_are_given() {
        assert_eq!(config(&json!({})), json!({}));
        assert_eq!(
            config(&json!({"portMappings": false, "ipRanges": true, "cgroupPath": true})),
            json!({})
        );
        let ports = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}]);
        assert_eq!(
            config(&json!({"portMappings": true})),
            json!({"portMappings": ports})
        );
        let all = config(&json!({"dns": true, "bandwidth": true, POD_ANNOTATIONS: true}));
        assert_eq!(all["dns"]["servers"], json!(["10.0.0.10"]));
        assert_eq!(
            all["bandwidth"],
            json!({"egressRate": 10_000_000, "egressBurst": u32::MAX})
        );
        assert_eq!(
            all[POD_ANNOTATIONS]["kubernetes.io/egress-bandwidth"],
            json!("10M")
        );
    }

    #[test]
    fn quantities() {
        for (text, value) in [
            ("1", Some(1)),
            ("1.5k", Some(1500)),
            ("10Mi", Some(10 << 20)),
            ("1e6", Some(1_000_000)),
            ("1500m", Some(2)),
            (".5M", Some(500_000)),
            ("", None),
            ("k", None),
            ("-1", None),
            ("1.2.3", None),
            ("10X", None),
            ("1e99", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
        let mut pod = pod();
        pod.annotations
            .insert("kubernetes.io/ingress-bandwidth".into(), "lots".into());
        assert!(bandwidth(&pod).unwrap_err().contains("lots"));
    }
}
