//! A CDI specification file, as the CDI format 0.3 to 1.x has it.
//!
//! Written by the operator, or by a device driver that the operator installed: it
//! says what the host's own programs do. It is checked all the same, for a wrong
//! file must not give a container something else than what was meant. Unknown
//! fields are errors: they could be the ones that take a right away.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub cdi_version: String,
    /// "VENDOR/CLASS"
    pub kind: String,
    /// For people and other tools.
    #[serde(default)]
    #[expect(dead_code, reason = "part of the format, without an effect")]
    pub annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// For every container that gets one of the devices.
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the format, without an effect")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// What is done to the OCI spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Edits {
    /// "KEY=value"
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub net_devices: Vec<serde_json::Value>,
    pub hooks: Vec<Hook>,
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<serde_json::Value>,
    pub additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the host; empty: the same.
    pub host_path: String,
    /// "b", "c", "u", "p"; empty, with major and minor: as the host has it.
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    /// Of the device cgroup, some of "rwm"; empty: all.
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default)]
    pub options: Vec<String>,
    /// Empty: a bind mount.
    #[serde(default, rename = "type")]
    pub kind: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

impl File {
    /// Reads a file's text; `yaml` tells JSON (which is YAML too) from the rest.
    pub fn parse(text: &str, yaml: bool) -> Result<File, String> {
        let file: File = if yaml {
            serde_saphyr::from_str(text).map_err(|e| e.to_string())?
        } else {
            serde_json::from_str(text).map_err(|e| e.to_string())?
        };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if !is_known(&self.cdi_version) {
            return Err(format!(
                "cdiVersion {:?} is not known; versions 0.3.0 to 1.x are",
                self.cdi_version
            ));
        }
        check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("it has no devices".into());
        }
        for (number, device) in self.devices.iter().enumerate() {
            check_device(&device.name)?;
            if self
                .devices
                .iter()
                .skip(number + 1)
                .any(|other| other.name == device.name)
            {
                return Err(format!("device {:?} is there twice", device.name));
            }
        }
        Ok(())
    }
}

/// "0.3.0" to "0.8.0" are the drafts; whatever 1.x adds is found as an unknown field.
fn is_known(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => minor >= 3,
        (Some(Ok(1)), Some(Ok(_))) => true,
        _ => false,
    }
}

/// "VENDOR/CLASS": letters, digits, "_", "-" and ".", first a letter, last no mark.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let Some((vendor, class)) = kind.split_once('/') else {
        return Err(format!("kind {kind:?} is not VENDOR/CLASS"));
    };
    for (what, name) in [("vendor", vendor), ("class", class)] {
        let letters = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || !name.ends_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(letters)
        {
            return Err(format!("{what} {name:?} of kind {kind:?} is not a name"));
        }
    }
    Ok(())
}

pub(super) fn check_device(name: &str) -> Result<(), String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    if name.starts_with(ends) && name.ends_with(ends) && name.chars().all(letters) {
        Ok(())
    } else {
        Err(format!("device {name:?} is not a name"))
    }
}
