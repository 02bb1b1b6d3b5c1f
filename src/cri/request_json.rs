//! A request as JSON, for the verbose statuses: in the shape in which the peers show
//! it, with the names of the fields and without those that are not set.

use serde::Serialize;
use serde_json::Value;

/// Null when it cannot be shown.
pub fn request_json(request: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(request).unwrap_or_default();
    prune(&mut value);
    value
}

/// Takes out what has its default. The entries of a list keep their places.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, value| !is_default(value));
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri;

    #[test]
    fn only_what_is_set_under_the_peers_names() {
        let request = cri::ContainerConfig {
            args: vec![String::new(), "x".into()],
            cdi_devices: vec![cri::CdiDevice { name: "a/b=c".into() }],
            linux: Some(cri::LinuxContainerConfig::default()),
            mounts: vec![cri::Mount {
                uid_mappings: vec![cri::IdMapping {
                    host_id: 7,
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let expected = serde_json::json!({
            "args": ["", "x"],
            "CDI_devices": [{"name": "a/b=c"}],
            "mounts": [{"uidMappings": [{"host_id": 7}]}],
        });
        assert_eq!(request_json(&request), expected);
    }
}
