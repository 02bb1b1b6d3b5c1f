//! `runtimeConfig`: what the runtime tells the plugins that declare a capability.
//!
//! | capability | from |
//! | --- | --- |
//! | portMappings, dns, cgroupPath | the pod's configuration |
//! | bandwidth | annotations `kubernetes.io/ingress-bandwidth`, `kubernetes.io/egress-bandwidth` |
//! | ipRanges | annotation `cni.berth/ipRanges`, else the pod CIDR of the node |
//! | ips, mac, aliases | annotations `cni.berth/ips`, `cni.berth/mac`, `cni.berth/aliases` |
//! | io.kubernetes.cri.pod-annotations | all annotations |
//!
//! A pod's author writes the annotations. So they are checked, and they count only
//! where the node's configuration declares the capability.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::network::pod::PodNetwork;

/// As containerd names it.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// What the annotations of ours begin with.
const ANNOTATIONS: &str = "cni.berth/";
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
            "ipRanges" => ip_ranges(pod)?,
            "ips" => annotation(pod, "ips", ips)?,
            "mac" => annotation(pod, "mac", mac)?,
            "aliases" => annotation(pod, "aliases", aliases)?,
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

/// What the pod's annotation `cni.berth/NAME` says, when it has one.
fn annotation<T: Into<Value>>(
    pod: &PodNetwork,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<Option<Value>, String> {
    let key = format!("{ANNOTATIONS}{name}");
    let Some(text) = pod.annotations.get(&key) else {
        return Ok(None);
    };
    match read(text) {
        Ok(value) => Ok(Some(value.into())),
        Err(expected) => Err(format!("annotation {key}: {text:?} is not {expected}")),
    }
}

/// The address of one link: six bytes in hexadecimal.
fn mac(text: &str) -> Result<String, &'static str> {
    let byte = |part: &str| match part.len() {
        // The parser takes a sign.
        2 if !part.starts_with('+') => u8::from_str_radix(part, 16).ok(),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    match bytes.as_deref() {
        // The lowest bit tells that it is of a group.
        Some([first, _, _, _, _, _]) if first & 1 == 0 => Ok(text.to_owned()),
        _ => Err("the hardware address of a link, like \"c2:11:22:33:44:55\""),
    }
}

/// Addresses, each with or without the length of its prefix.
fn ips(text: &str) -> Result<Vec<String>, &'static str> {
    let right = |ip: &str| match ip.split_once('/') {
        Some(_) => is_subnet(ip),
        None => ip.parse::<IpAddr>().is_ok(),
    };
    words(text, right).ok_or("a list of addresses, like \"10.1.2.3/24,fd00::3/64\"")
}

/// Names by which others find the pod.
fn aliases(text: &str) -> Result<Vec<String>, &'static str> {
    let right = |name: &str| {
        name.len() <= 253
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    words(text, right).ok_or("a list of names, like \"web,db.primary\"")
}

/// The parts between commas; none may be empty or wrong.
fn words(text: &str, right: impl Fn(&str) -> bool) -> Option<Vec<String>> {
    text.split(',')
        .map(|word| Some(word.trim().to_owned()).filter(|word| !word.is_empty() && right(word)))
        .collect()
}

/// An address with the length of its prefix.
fn is_subnet(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(address), Ok(prefix)) => prefix <= if address.is_ipv4() { 32 } else { 128 },
        _ => false,
    }
}

/// As the plugin host-local reads it.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Range {
    subnet: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    range_start: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range_end: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

/// One address is taken from each of the lists of ranges.
fn ip_ranges(pod: &PodNetwork) -> Result<Option<Value>, String> {
    let read = |text: &str| {
        let expected = "a list of lists of ranges, like [[{\"subnet\": \"10.1.2.0/24\"}]]";
        let ranges: Vec<Vec<Range>> = serde_json::from_str(text).map_err(|_| expected)?;
        let right = ranges
            .iter()
            .all(|set| !set.is_empty() && set.iter().all(|range| is_subnet(&range.subnet)));
        if !right || ranges.is_empty() {
            return Err(expected);
        }
        Ok(json!(ranges))
    };
    let asked = annotation(pod, "ipRanges", read)?;
    let given = || {
        let of_node: Vec<Value> = pod.pod_cidrs.iter().map(|it| json!([{"subnet": it}])).collect();
        (!of_node.is_empty()).then_some(Value::Array(of_node))
    };
    Ok(asked.or_else(given))
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
    fn annotations_are_checked_and_given_where_declared() {
        let with = |name: &str, text: &str| {
            let mut pod = pod();
            pod.annotations.insert(format!("cni.berth/{name}"), text.into());
            let plugin = json!({"type": "x", "capabilities": {name: true}});
            runtime_config(plugin.as_object().unwrap(), &pod).map(|mut config| config.remove(name))
        };
        for (name, text, value) in [
            ("mac", "c2:11:22:33:44:55", json!("c2:11:22:33:44:55")),
            ("ips", "10.1.2.3/24, fd00::3", json!(["10.1.2.3/24", "fd00::3"])),
            ("aliases", "web,db.primary", json!(["web", "db.primary"])),
            (
                "ipRanges",
                r#"[[{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.9"}],[{"subnet":"fd00::/64"}]]"#,
                json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9"}], [{"subnet": "fd00::/64"}]]),
            ),
        ] {
            assert_eq!(with(name, text), Ok(Some(value)), "{name}");
        }
        for (name, text) in [
            ("mac", "c2:11:22:33:44"),
            ("mac", "01:11:22:33:44:55"),
            ("mac", "+2:11:22:33:44:55"),
            ("ips", "10.1.2.3/33"),
            ("ips", "10.1.2.3,,"),
            ("aliases", "a b"),
            ("aliases", ""),
            ("ipRanges", "10.0.0.0/8"),
            ("ipRanges", "[]"),
            ("ipRanges", r#"[[{"subnet":"here"}]]"#),
            ("ipRanges", r#"[[{"subnet":"10.0.0.0/8","dataDir":"/"}]]"#),
        ] {
            let message = with(name, text).unwrap_err();
            let expected = format!("cni.berth/{name}");
            assert!(message.contains(&expected), "{text}: {message}");
        }
        // What nobody declares is not looked at; without the annotation, the node's
        // own subnets are given.
        let mut pod = pod();
        pod.annotations.insert("cni.berth/mac".into(), "nonsense".into());
        pod.pod_cidrs = vec!["10.1.0.0/24".into(), "fd01::/64".into()];
        let plugin = json!({"type": "x", "capabilities": {"ipRanges": true, "aliases": true}});
        let config = runtime_config(plugin.as_object().unwrap(), &pod).unwrap();
        let ranges = json!({"ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]});
        assert_eq!(Value::Object(config), ranges);
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
