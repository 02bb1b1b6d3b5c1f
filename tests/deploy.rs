//! What is in `deploy/` is well formed, and agrees with the programs: their sockets
//! and folders, their configuration, the metrics that they serve.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use berth::{
    config::Config,
    flags::Flags,
    telemetry::metrics::{Answer, By, Method, Outcome, Present, metrics},
};
use clap::CommandFactory;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn read(name: &str) -> String {
    let path = deploy().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files, by their path below deploy/.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![deploy()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry"))
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(deploy()).expect("below deploy/");
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

/// The documents of a file of YAML or JSON.
fn documents(name: &str) -> Vec<Value> {
    let text = read(name);
    if name.ends_with(".json") || name.ends_with(".conflist") {
        return vec![serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))];
    }
    let parts = text.split("\n---\n");
    parts
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

/// Every value in it that has the key.
fn values<'a>(document: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match document {
        Value::Object(entries) => {
            for (name, value) in entries {
                if name == key {
                    found.push(value);
                }
                values(value, key, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| values(value, key, found)),
        _ => {}
    }
}

/// What a flag of berthd is when nobody gives it.
fn default(flag: &str) -> String {
    let command = Flags::command();
    let argument = command.get_arguments().find(|known| known.get_id() == flag);
    let values = argument.expect("a flag of berthd").get_default_values();
    values[0].to_string_lossy().into_owned()
}

#[test]
fn every_file_parses() {
    for name in files() {
        match name.rsplit('.').next().unwrap_or_default() {
            "yaml" | "json" | "conflist" => {
                for document in documents(&name) {
                    assert!(document.is_object(), "{name}: {document}");
                }
            }
            "toml" => {
                let config: Result<Config, _> = toml::from_str(&read(&name));
                assert!(config.is_ok(), "{name}: {config:?}");
            }
            _ => assert!(!read(&name).is_empty(), "{name}"),
        }
    }
}

#[test]
fn every_socket_is_berthds() {
    let address = default("address");
    let mut count = 0;
    for name in files() {
        let text = read(&name);
        for (at, _) in text.match_indices("unix:///run/") {
            let rest = &text[at..];
            let end = rest.find(|c: char| c.is_whitespace() || "\"'`),;".contains(c));
            let socket = &rest[..end.unwrap_or(rest.len())];
            let peers = [
                "unix:///run/containerd/containerd.sock",
                "unix:///run/crio/crio.sock",
            ];
            assert!(
                socket == address || peers.contains(&socket),
                "{name}: {socket} is not {address}"
            );
            count += usize::from(socket == address);
        }
    }
    assert!(count >= 6, "{count}");
    for (name, key) in [
        ("kubernetes/kubelet-config.yaml", "containerRuntimeEndpoint"),
        ("kubernetes/kubeadm-init.yaml", "criSocket"),
        ("kubernetes/kubeadm-join.yaml", "criSocket"),
        ("crictl.yaml", "runtime-endpoint"),
    ] {
        let documents = documents(name);
        let mut found = Vec::new();
        documents
            .iter()
            .for_each(|document| values(document, key, &mut found));
        assert_eq!(found, [&Value::from(address.clone())], "{name}: {key}");
    }
}

#[test]
fn the_package_has_the_programs_and_folders_that_its_parts_name() {
    let manifest: toml::Table = toml::from_str(include_str!("../Cargo.toml")).unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"]
        .as_array()
        .unwrap();
    let installed: BTreeSet<String> = assets
        .iter()
        .map(|asset| {
            let (source, place) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
            let name = if place.ends_with('/') {
                source.rsplit('/').next().unwrap()
            } else {
                ""
            };
            format!("/{place}{name}")
        })
        .collect();
    for path in ["/usr/bin/berthd", "/usr/bin/berth-shim", "/etc/berth/config.toml"] {
        assert!(installed.contains(path), "{path} is not in {installed:?}");
    }
    assert_eq!(berth::config::DEFAULT_PATH, "/etc/berth/config.toml");
    for asset in assets {
        let source = asset[0].as_str().unwrap();
        // What is below target is made first.
        let there = source.starts_with("target/") || source.contains('*');
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        assert!(there || path.exists(), "{source}");
    }
    let unit = read("systemd/berthd.service");
    for line in [
        "ExecStart=/usr/bin/berthd",
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "OOMScoreAdjust=-999",
        "LimitNOFILE=1048576",
        "WatchdogSec=60",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let (root, state) = (default("root"), default("state"));
    let folders = read("systemd/tmpfiles.conf");
    for folder in [&root, &state] {
        assert!(folders.contains(&format!("d {folder} ")), "{folder}");
    }
    for script in ["debian/prerm", "debian/postrm"] {
        assert!(
            read(script).contains(&format!("kept={root}/removed\n")),
            "{script}"
        );
    }
}

/// Names as Prometheus stores them.
fn served() -> BTreeSet<String> {
    let all = metrics();
    // A family shows itself with its first member.
    let method = "Version".to_owned();
    let code = "OK";
    all.rpcs
        .get_or_create(&Answer {
            method: method.clone(),
            code,
        })
        .inc();
    all.rpc_seconds
        .get_or_create(&Method {
            method: method.clone(),
        })
        .observe(0.1);
    all.rpcs_in_flight.get_or_create(&Method { method }).inc();
    all.pulls.get_or_create(&Outcome { outcome: "fetched" }).inc();
    all.network_seconds
        .get_or_create(&By { by: "bridge" })
        .observe(0.1);
    let present = Present {
        pods: vec![("ready", 1)],
        containers: vec![("running", 1)],
        images: vec![("in use", 1)],
    };
    let text = all.encode(&present).expect("metrics encode");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn dashboards_and_alerts_ask_for_metrics_that_are_served() {
    let served = served();
    for name in ["monitoring/grafana.json", "monitoring/alerts.yaml"] {
        let mut named = BTreeSet::new();
        for document in documents(name) {
            let mut expressions = Vec::new();
            values(&document, "expr", &mut expressions);
            values(&document, "query", &mut expressions);
            for expression in expressions {
                let text = expression.to_string();
                let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let ours = words.filter(|word| word.starts_with("berth_") || word.starts_with("process_"));
                named.extend(ours.map(str::to_owned));
            }
        }
        assert!(named.len() > 4, "{name}: {named:?}");
        let missing: Vec<_> = named.difference(&served).collect();
        assert!(missing.is_empty(), "{name}: {missing:?} are not in {served:?}");
    }
}

#[test]
fn the_scrape_goes_where_metrics_are_served() {
    let config: Config = toml::from_str(&read("monitoring/config.toml")).unwrap();
    let scrape = documents("monitoring/prometheus.yaml");
    let mut targets = Vec::new();
    values(&scrape[0], "targets", &mut targets);
    assert_eq!(targets, [&Value::from(vec![config.metrics.address])]);
}
