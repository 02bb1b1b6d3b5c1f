//! CNI configurations: what is in a file, and what is wrong with it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Versions of the specification that are spoken, the oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One plugin's part of a configuration.
pub type Plugin = Map<String, Value>;

/// A network configuration list. Recorded with every pod that was attached by it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conflist {
    /// The file it is from.
    pub file: PathBuf,
    pub name: String,
    /// The version that the plugins are spoken to in.
    pub version: String,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
}

impl Conflist {
    /// The plugin's "type", which is the name of its executable.
    pub fn kind(plugin: &Plugin) -> &str {
        plugin.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether the plugins are spoken to in this version or a later one.
    pub fn speaks(&self, version: &str) -> bool {
        let age = |of: &str| VERSIONS.iter().position(|known| *known == of);
        age(&self.version) >= age(version)
    }

    /// Whether a plugin declares the capability.
    pub fn wants(&self, capability: &str) -> bool {
        let declared = |plugin: &Plugin| {
            plugin
                .get("capabilities")
                .and_then(|all| all.get(capability))
                .is_some_and(|on| *on == Value::Bool(true))
        };
        self.plugins.iter().any(declared)
    }
}

/// Reads a list, or a single plugin's configuration as a list of one. `more` gives
/// the plugins that are kept apart for the network of a name; they come last.
pub fn parse(
    path: &Path,
    text: &str,
    more: impl FnOnce(&str) -> Result<Vec<Plugin>, String>,
) -> Result<Conflist, String> {
    let root: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let name = root
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if !is_name(&name) {
        return Err(format!(
            "\"name\": {name:?} is not a name of letters, digits, '_', '.' and '-'"
        ));
    }
    let version = version(&root)?;
    let flag = |key: &str| match root.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        // As people wrote it before 1.0.0.
        Some(Value::String(on)) if on == "true" => Ok(true),
        Some(Value::String(on)) if on == "false" => Ok(false),
        Some(other) => Err(format!("{key:?}: {other} is neither true nor false")),
    };
    let (disable_check, disable_gc) = (flag("disableCheck")?, flag("disableGC")?);
    let inlined_only = flag("loadOnlyInlinedPlugins")?;
    let is_list = root.contains_key("plugins") || !root.contains_key("type");
    let mut plugins = match root.get("plugins") {
        None if inlined_only => return Err("\"loadOnlyInlinedPlugins\" without \"plugins\"".into()),
        None if is_list => Vec::new(),
        None => vec![root],
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|plugin| {
                plugin
                    .as_object()
                    .cloned()
                    .ok_or("\"plugins\" holds something else than objects")
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err("\"plugins\" is not a list".into()),
    };
    if is_list && !inlined_only {
        plugins.extend(more(&name)?);
    }
    if plugins.is_empty() {
        return Err(format!(
            "\"plugins\" is missing or empty, there is no \"type\", and a folder {name:?} beside it has none"
        ));
    }
    plugins.iter().try_for_each(check_kind)?;
    Ok(Conflist {
        file: path.to_path_buf(),
        name,
        version,
        disable_check,
        disable_gc,
        plugins,
    })
}

/// The name of a file in one of the folders, never a way out of them.
fn check_kind(plugin: &Plugin) -> Result<(), String> {
    let kind = Conflist::kind(plugin);
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(format!("\"type\": {kind:?} does not name a plugin"));
    }
    Ok(())
}

/// The highest version that the configuration offers and that is known.
fn version(root: &Map<String, Value>) -> Result<String, String> {
    let mut offered: Vec<&str> = root
        .get("cniVersion")
        .and_then(Value::as_str)
        .into_iter()
        .collect();
    if let Some(Value::Array(more)) = root.get("cniVersions") {
        offered.extend(more.iter().filter_map(Value::as_str));
    }
    let best = VERSIONS.iter().rev().find(|version| offered.contains(version));
    best.map(|version| (*version).to_owned()).ok_or_else(|| {
        let known = VERSIONS.join(", ");
        match offered.first() {
            None => format!("\"cniVersion\" is missing; write one of {known}"),
            Some(other) => format!("\"cniVersion\": {other:?} is not one of {known}"),
        }
    })
}

/// As the specification has it.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Conflist, String> {
        super::parse(Path::new("f"), text, |_| Ok(Vec::new()))
    }

    #[test]
    fn wrong_configurations_are_explained() {
        for (text, expected) in [
            ("[]", "invalid type"),
            (r#"{"cniVersion":"1.0.0","type":"x"}"#, "\"name\""),
            (r#"{"cniVersion":"1.0.0","name":"../x","type":"x"}"#, "\"name\""),
            (r#"{"name":"x","type":"x"}"#, "missing"),
            (r#"{"cniVersion":"0.2.0","name":"x","type":"x"}"#, "0.2.0"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#, "empty"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":{}}"#, "list"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[1]}"#, "objects"),
            (r#"{"cniVersion":"1.0.0","name":"x","type":"../sh"}"#, "../sh"),
            (r#"{"cniVersion":"1.0.0","name":"x"}"#, "\"type\""),
            (
                r#"{"cniVersion":"1.0.0","name":"x","disableGC":1,"type":"x"}"#,
                "disableGC",
            ),
            (
                r#"{"cniVersion":"1.1.0","name":"x","loadOnlyInlinedPlugins":true}"#,
                "without \"plugins\"",
            ),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        let newer = r#"{"cniVersion":"2.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"x","type":"x"}"#;
        assert_eq!(parse(newer).unwrap().version, "1.1.0");
    }

    #[test]
    fn versions_are_in_order() {
        let list =
            |version: &str| parse(&format!(r#"{{"cniVersion":"{version}","name":"x","type":"x"}}"#)).unwrap();
        assert!(list("1.1.0").speaks("1.1.0") && list("1.1.0").speaks("0.4.0"));
        assert!(!list("0.3.1").speaks("0.4.0") && !list("1.0.0").speaks("1.1.0"));
    }

    #[test]
    fn what_must_not_be_called_is_known() {
        let text = r#"{"cniVersion":"1.1.0","name":"x","disableCheck":true,"disableGC":"true","plugins":[
            {"type":"a","capabilities":{"ipRanges":true,"mac":false}}]}"#;
        let list = parse(text).unwrap();
        assert!(list.disable_check && list.disable_gc);
        assert!(list.wants("ipRanges") && !list.wants("mac") && !list.wants("dns"));
    }

    #[test]
    fn plugins_kept_apart_come_last() {
        let more = |name: &str| {
            assert_eq!(name, "x");
            let part = serde_json::json!({"type": "apart"});
            Ok(vec![part.as_object().unwrap().clone()])
        };
        let kinds = |text: &str| {
            let list = super::parse(Path::new("f"), text, more).unwrap();
            list.plugins
                .iter()
                .map(|p| Conflist::kind(p).to_owned())
                .collect::<Vec<_>>()
        };
        let list = r#"{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"inline"}]}"#;
        assert_eq!(kinds(list), ["inline", "apart"]);
        assert_eq!(kinds(r#"{"cniVersion":"1.1.0","name":"x"}"#), ["apart"]);
        let only = list.replace("\"name\"", "\"loadOnlyInlinedPlugins\":true,\"name\"");
        assert_eq!(kinds(&only), ["inline"]);
        // A single plugin's file is not a list.
        assert_eq!(
            kinds(r#"{"cniVersion":"0.4.0","name":"x","type":"inline"}"#),
            ["inline"]
        );
    }
}
