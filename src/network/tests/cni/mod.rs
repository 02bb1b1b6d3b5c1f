//! CNI: what plugins are told and when, the plugins of Debian, and plugins that do
//! as they like.

mod contract;
mod hostile;
mod plugins;
mod verbs;

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::*;

/// The name of the scripts' network.
const NETWORK: &str = "scripts";

/// A script that writes down how it was called, see [`recorded`], and then does what
/// is said for the verb.
const RECORD: &str = r#"cd $(dirname $0)
{ echo "$CNI_COMMAND ${0##*/} $CNI_CONTAINERID [$CNI_NETNS]"; cat; echo; } >>log
"#;

/// A result with an address, as JSON.
const RESULT: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/16"}]}"#;

fn with_conflist(node: &Node, list: &str) {
    fs::create_dir_all(&node.config.cni_conf_dir).unwrap();
    fs::write(node.config.cni_conf_dir.join("10-test.conflist"), list).unwrap();
}

/// A network whose plugins are the test's own shell scripts.
fn with_scripts(node: &mut Node, scripts: &[(&str, &str)]) {
    with_scripts_of(node, "1.0.0", "", scripts);
}

/// As [`with_scripts`], in a version of the specification, and with more keys of the
/// list.
fn with_scripts_of(node: &mut Node, version: &str, more: &str, scripts: &[(&str, &str)]) {
    let bin = node.dir.path().join("bin");
    for (name, body) in scripts {
        script(&bin, name, body);
    }
    let plugins: Vec<String> = scripts
        .iter()
        .map(|(name, _)| {
            format!(r#"{{"type":"{name}","capabilities":{{"portMappings":true,"ipRanges":true}}}}"#)
        })
        .collect();
    with_conflist(
        node,
        &format!(
            r#"{{"cniVersion":"{version}","name":"{NETWORK}",{more}"plugins":[{}]}}"#,
            plugins.join(",")
        ),
    );
    node.config.cni_bin_dirs = vec![bin];
    node.config.cni_timeout = 2;
    node.restart();
}

fn script(folder: &Path, name: &str, body: &str) {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    // Not over one that runs.
    let _ = fs::remove_file(&path);
    // By another process: a child that another test starts meanwhile would have what is
    // written here open too, and what is open to be written cannot be executed.
    let mut copy = Command::new("dd")
        .arg("status=none")
        .arg(format!("of={}", path.display()))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = copy.stdin.take().unwrap();
    write!(input, "#!/bin/sh\n{body}\n").unwrap();
    drop(input);
    assert!(copy.wait().unwrap().success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Beside the scripts.
fn file(node: &Node, name: &str) -> PathBuf {
    node.dir.path().join("bin").join(name)
}

/// How scripts with [`RECORD`] were called, in order: verb, plugin, sandbox and
/// namespace as one line, and the configuration. What was written down is forgotten.
fn recorded(node: &Node) -> Vec<(String, Value)> {
    let text = fs::read_to_string(file(node, "log")).unwrap_or_default();
    let _ = fs::remove_file(file(node, "log"));
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let calls = lines.chunks(2).map(|call| {
        let config = serde_json::from_str(call[1]).unwrap_or_else(|e| panic!("{e}: {}", call[1]));
        (call[0].to_owned(), config)
    });
    calls.collect()
}

/// The verbs and plugins of the calls.
fn verbs(calls: &[(String, Value)]) -> Vec<String> {
    calls
        .iter()
        .map(|(call, _)| call.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect()
}

/// Waits for what scripts do, however slow the machine is.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("{what} does not come");
}
