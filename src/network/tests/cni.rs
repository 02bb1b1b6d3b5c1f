//! CNI: Debian's plugins, and plugins that do as they like.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use super::*;
use crate::{
    kind::{HasKind, Kind},
    network::{AttachmentKind, cni::Cni, netns},
};

/// Debian's package containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";

fn with_conflist(node: &Node, list: &str) {
    fs::create_dir_all(&node.config.cni_conf_dir).unwrap();
    fs::write(node.config.cni_conf_dir.join("10-test.conflist"), list).unwrap();
}

/// A network whose plugins are the test's own shell scripts.
fn with_scripts(node: &mut Node, scripts: &[(&str, &str)]) {
    let bin = node.dir.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, body) in scripts {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let plugins: Vec<String> = scripts
        .iter()
        .map(|(name, _)| format!(r#"{{"type":"{name}","capabilities":{{"portMappings":true}}}}"#))
        .collect();
    with_conflist(
        node,
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"scripts","plugins":[{}]}}"#,
            plugins.join(",")
        ),
    );
    node.config.cni_bin_dirs = vec![bin];
    let cni = Cni::new(node.config.cni_conf_dir.clone(), node.config.cni_bin_dirs.clone())
        .with_limit(Duration::from_secs(2));
    let instance = instance(node.dir.path());
    node.network = Network::with(&node.config, &instance, node.store.clone(), cni).unwrap();
}

#[test]
fn debians_plugins_make_a_network() {
    if !["bridge", "host-local", "portmap"]
        .iter()
        .all(|it| Path::new(PLUGINS).join(it).exists())
    {
        println!("skipped: {PLUGINS} lacks bridge, host-local or portmap (containernetworking-plugins)");
        return;
    }
    on_a_node(|node| {
        let data = node.dir.path().join("ipam");
        let data = data.display();
        with_conflist(
            node,
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"debian","plugins":[
                {{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{{
                    "type":"host-local","dataDir":"{data}","ranges":[[{{"subnet":"10.99.0.0/24"}}],[{{"subnet":"fd99::/64"}}]],
                    "routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}}]}}}},
                {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#
            ),
        );
        assert_eq!(node.network.status(), Ok(()));
        let (mut a, b) = (node.pod(&id(1)), node.pod(&id(2)));
        a.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        let attachment = node.run(node.network.attach(&a)).unwrap();
        assert!(matches!(&attachment.kind, AttachmentKind::Cni { network, .. } if network == "debian"));
        assert_eq!(attachment.ips, [ip("10.99.0.2"), ip("fd99::2")]);
        node.attach(&b);
        let _server = tcp_server(Some(&a.netns), "[::]:80", "a");
        for to in &attachment.ips {
            assert!(within(&b.netns, || ask(*to, 80)).unwrap().starts_with("a "));
        }
        assert!(ask(ip("127.0.0.1"), 8080).unwrap().starts_with("a "));
        assert_eq!(shell(&format!("ls {data}/debian | grep -c '^10[.]'")).trim(), "2");
        // Without its namespace, after a restart, and when the configuration is gone.
        netns::remove(a.netns.parent().unwrap()).unwrap();
        fs::remove_file(node.config.cni_conf_dir.join("10-test.conflist")).unwrap();
        node.restart();
        for pod in [&a, &b] {
            node.detach(&pod.id);
            node.detach(&pod.id);
        }
        assert_eq!(shell(&format!("ls {data}/debian | grep '^10[.]' || true")), "");
        assert!(!shell("nft list ruleset").contains("8080"));
        assert_eq!(node.store.network_sandboxes().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_plugin_gets_what_the_specification_says() {
    on_a_node(|node| {
        let log = node.dir.path().join("log");
        let log = log.display();
        let body = |answer: &str| {
            format!(
                r#"{{ echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME [$CNI_NETNS] $CNI_ARGS"; cat; echo; }} >>{log}
                [ $CNI_COMMAND = DEL ] || echo '{answer}'"#
            )
        };
        let one = body(r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/16"}],"mine":1}"#);
        let two = body(r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.8/16"}]}"#);
        with_scripts(node, &[("one", &one), ("two", &two)]);
        let mut pod = node.pod(&id(3));
        pod.ports = vec![port(Protocol::Sctp, 99, 80, Some("198.51.100.1"))];
        assert_eq!(node.attach(&pod), [ip("10.9.0.8")]);
        node.detach(&pod.id);
        let text = fs::read_to_string(log.to_string()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let netns = pod.netns.display();
        let id = &pod.id;
        let rest = format!(
            "{id} eth0 [{netns}] IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=name-{id};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid-{id}"
        );
        let read = |n: usize| serde_json::from_str::<serde_json::Value>(lines[n]).unwrap();
        assert_eq!(lines.len(), 8);
        assert_eq!(
            [lines[0], lines[2]],
            [format!("ADD {rest}"), format!("ADD {rest}")]
        );
        assert_eq!(
            [lines[4], lines[6]],
            [format!("DEL {rest}"), format!("DEL {rest}")]
        );
        assert_eq!(
            (read(1)["type"].as_str(), read(1)["prevResult"].is_null()),
            (Some("one"), true)
        );
        assert_eq!(
            read(1)["runtimeConfig"]["portMappings"][0]["hostIP"],
            "198.51.100.1"
        );
        assert_eq!(
            (read(1)["name"].as_str(), read(1)["cniVersion"].as_str()),
            (Some("scripts"), Some("1.0.0"))
        );
        assert_eq!(
            (read(3)["type"].as_str(), &read(3)["prevResult"]["mine"]),
            (Some("two"), &1.into())
        );
        assert_eq!(
            (read(5)["type"].as_str(), read(7)["type"].as_str()),
            (Some("two"), Some("one"))
        );
        assert_eq!(read(7)["prevResult"]["ips"][0]["address"], "10.9.0.8/16");
    });
}

#[test]
fn plugins_that_misbehave_are_named_and_cleaned_up_after() {
    let del = r#"[ $CNI_COMMAND = DEL ] && { echo del >>$(dirname $0)/dels; exit 0; }; "#;
    for (case, body, kind, expected) in [
        (
            "garbage",
            "echo not json",
            Kind::Unavailable,
            "something else than a result",
        ),
        (
            "no address",
            "echo '{\"ips\":[]}'",
            Kind::Unavailable,
            "no address",
        ),
        ("silent", "exit 1", Kind::Unavailable, "said: nothing"),
        (
            "loud",
            "echo 'it broke' >&2; exit 3",
            Kind::Unavailable,
            "it broke",
        ),
        (
            "polite",
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"try later","details":"pool is full"}'; exit 1"#,
            Kind::Unavailable,
            "try later: pool is full (code 11)",
        ),
        (
            "hangs",
            "sleep 1000 & sleep 1000",
            Kind::Unavailable,
            "did not end within 2 s",
        ),
        ("floods", "cat /dev/zero", Kind::Unavailable, "more than"),
        ("not a program", "", Kind::Unavailable, "cannot be run"),
    ] {
        on_a_node(|node| {
            let add = format!("{del}{body}");
            with_scripts(node, &[("good", &format!("{del}echo '{{}}'")), ("bad", &add)]);
            if case == "not a program" {
                fs::write(node.config.cni_bin_dirs[0].join("bad"), "no interpreter").unwrap();
            }
            let pod = node.pod(&id(4));
            let start = Instant::now();
            let error = node.run(node.network.attach(&pod)).unwrap_err();
            assert!(start.elapsed() < Duration::from_secs(8), "{case}");
            let message = error.to_string();
            assert!(
                message.contains(expected) && message.contains("scripts"),
                "{case}: {message}"
            );
            assert_eq!(error.kind(), kind, "{case}");
            assert!(message.len() < 5000, "{case}");
            let dels = fs::read_to_string(node.config.cni_bin_dirs[0].join("dels")).unwrap();
            if case == "not a program" {
                // Its DEL failed too: the pod stays recorded until it works.
                assert_eq!(
                    (
                        dels.lines().count(),
                        node.store.network_sandboxes().unwrap().len()
                    ),
                    (1, 1)
                );
                assert!(node.run(node.network.detach(&pod.id)).is_err());
                fs::copy(
                    node.config.cni_bin_dirs[0].join("good"),
                    node.config.cni_bin_dirs[0].join("bad"),
                )
                .unwrap();
                node.detach(&pod.id);
            } else {
                assert_eq!(dels.lines().count(), 2, "{case}: DEL of the whole list");
            }
            assert_eq!(
                node.store.network_sandboxes().unwrap(),
                Vec::<String>::new(),
                "{case}"
            );
        });
    }
}

#[test]
fn a_process_that_a_plugin_leaves_does_not_hold_it_up() {
    on_a_node(|node| {
        let body = r#"sleep 5 & echo '{"ips":[{"address":"10.9.0.7/16"}]}'"#;
        with_scripts(node, &[("leaver", body)]);
        let pod = node.pod(&id(5));
        let start = Instant::now();
        assert_eq!(node.attach(&pod), [ip("10.9.0.7")]);
        assert!(start.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn a_wrong_configuration_is_not_passed_over() {
    on_a_node(|node| {
        with_conflist(node, "{ nonsense");
        let pod = node.pod(&id(6));
        let not_ready = node.network.status().unwrap_err();
        assert_eq!(not_ready.reason, "NetworkPluginNotReady");
        assert!(
            not_ready.message.contains("10-test.conflist"),
            "{}",
            not_ready.message
        );
        let error = node.run(node.network.attach(&pod)).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        with_conflist(
            node,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"no-such-plugin"}]}"#,
        );
        let not_ready = node.network.status().unwrap_err();
        assert!(
            not_ready.message.contains("no-such-plugin"),
            "{}",
            not_ready.message
        );
        assert!(
            node.run(node.network.attach(&pod))
                .unwrap_err()
                .to_string()
                .contains("no-such-plugin")
        );
        node.assert_clean();
        // A pod of the bridge stays the bridge's when CNI comes, and is taken down by it.
        fs::remove_file(node.config.cni_conf_dir.join("10-test.conflist")).unwrap();
        assert_eq!(node.network.status(), Ok(()));
        node.attach(&pod);
        with_scripts(
            node,
            &[("one", "echo '{\"ips\":[{\"address\":\"10.9.0.7/16\"}]}'")],
        );
        node.detach(&pod.id);
        node.assert_clean();
    });
}
