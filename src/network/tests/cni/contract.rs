//! What plugins are told: the pod, the configuration, the results of the others.

use super::*;
use crate::{
    kind::{HasKind, Kind},
    network::netns,
};

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
            (Some(NETWORK), Some("1.0.0"))
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
fn every_version_is_spoken_as_it_is() {
    for (version, del_gets_result) in [
        ("0.3.1", false),
        ("0.4.0", true),
        ("1.0.0", true),
        ("1.1.0", true),
    ] {
        on_a_node(|node| {
            let body = format!(r#"{RECORD}echo '{{"ips":[{{"address":"10.9.0.7/16"}}]}}'"#);
            with_scripts_of(node, version, "", &[("one", &body)]);
            // As a single plugin's file, too.
            let conf = format!(r#"{{"cniVersion":"{version}","name":"single","type":"one"}}"#);
            fs::write(node.config.cni_conf_dir.join("05-single.conf"), conf).unwrap();
            let single = node.pod(&id(30));
            node.attach(&single);
            fs::remove_file(node.config.cni_conf_dir.join("05-single.conf")).unwrap();
            let listed = node.pod(&id(31));
            node.attach(&listed);
            node.detach(&single.id);
            node.detach(&listed.id);
            let calls = recorded(node);
            assert_eq!(verbs(&calls), ["ADD one", "ADD one", "DEL one", "DEL one"]);
            for (call, config) in &calls {
                assert_eq!(config["cniVersion"], *version);
                let has = config.get("prevResult").is_some();
                assert_eq!(
                    has,
                    del_gets_result && call.starts_with("DEL"),
                    "{version} {call}"
                );
                // Filled in where the plugin left it out.
                assert!(!has || config["prevResult"]["cniVersion"] == *version, "{config}");
            }
            assert_eq!(
                (&calls[0].1["name"], &calls[1].1["name"]),
                (&"single".into(), &NETWORK.into())
            );
        });
    }
}

#[test]
fn a_pod_is_detached_by_what_it_was_attached_by() {
    on_a_node(|node| {
        let body = format!("{RECORD}echo '{RESULT}'");
        with_scripts(node, &[("old", &body)]);
        let (mut a, b) = (node.pod(&id(32)), node.pod(&id(33)));
        a.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        a.annotations = [(
            "cni.berth/ipRanges".into(),
            r#"[[{"subnet":"10.9.0.0/16"}]]"#.into(),
        )]
        .into();
        node.network.set_pod_cidr("10.7.0.0/24,fd07::/64").unwrap();
        node.attach(&a);
        node.attach(&b);
        let added = recorded(node);
        // Another network, another subnet of the node, a restart, and one pod's
        // namespace is gone.
        with_scripts(node, &[("new", &body)]);
        node.network.set_pod_cidr("10.8.0.0/24").unwrap();
        netns::remove(b.netns.parent().unwrap()).unwrap();
        node.restart();
        node.detach(&a.id);
        node.detach(&b.id);
        let removed = recorded(node);
        let netns = a.netns.display();
        assert_eq!(removed[0].0, format!("DEL old {} [{netns}]", a.id));
        assert_eq!(
            removed[1].0,
            format!("DEL old {} []", b.id),
            "no namespace is named"
        );
        for (add, del) in added.iter().zip(&removed) {
            let mut del = del.1.clone();
            let result: Value = serde_json::from_str(RESULT).unwrap();
            assert_eq!(del.as_object_mut().unwrap().remove("prevResult"), Some(result));
            assert_eq!(add.1, del, "else the configuration is the same");
        }
        let ranges = |call: usize| added[call].1["runtimeConfig"]["ipRanges"].to_string();
        assert_eq!(
            ranges(0),
            r#"[[{"subnet":"10.9.0.0/16"}]]"#,
            "what the pod asks for"
        );
        assert_eq!(
            ranges(1),
            r#"[[{"subnet":"10.7.0.0/24"}],[{"subnet":"fd07::/64"}]]"#
        );
        assert_eq!(node.store.network_sandboxes().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn plugins_are_found_in_several_folders() {
    on_a_node(|node| {
        let body = |from: &str| format!("echo {from} $CNI_PATH >>$(dirname $0)/../found; echo '{RESULT}'");
        with_scripts(node, &[("both", ""), ("last", "")]);
        let (first, last) = (node.dir.path().join("first"), node.dir.path().join("last"));
        script(&first, "both", &body("first"));
        script(&last, "both", &body("last"));
        script(&last, "last", &body("last"));
        let missing = node.dir.path().join("missing");
        node.config.cni_bin_dirs = vec![missing.clone(), first.clone(), last.clone()];
        node.restart();
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        node.attach(&node.pod(&id(34)));
        let path = format!("{}:{}:{}", missing.display(), first.display(), last.display());
        assert_eq!(
            fs::read_to_string(node.dir.path().join("found")).unwrap(),
            format!("first {path}\nlast {path}\n")
        );
        fs::remove_file(last.join("last")).unwrap();
        assert!(
            node.run(node.network.status("berth"))
                .unwrap_err()
                .message
                .contains("\"last\"")
        );
    });
}

#[test]
fn a_handler_has_its_own_folder() {
    on_a_node(|node| {
        let body = format!("{RECORD}echo '{RESULT}'");
        with_scripts(node, &[("one", &body)]);
        let folder = node.dir.path().join("other.d");
        node.cni_conf_dirs = [("other".to_owned(), folder.clone())].into();
        node.restart();
        let mut pod = node.pod(&id(35));
        pod.handler = "other".into();
        // It is not put into the node's network instead.
        let error = node.run(node.network.attach(&pod)).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(
            error.to_string().contains("runtimes.other.cni_conf_dir"),
            "{error}"
        );
        let state = |node: &Node| node.network.handlers()["other"].clone();
        assert!(state(node).unwrap_err().contains("no CNI configuration"));
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        assert!(node.run(node.network.status("other")).is_err());
        fs::create_dir(&folder).unwrap();
        let conf = r#"{"cniVersion":"1.0.0","name":"others","type":"one"}"#;
        fs::write(folder.join("10.conf"), conf).unwrap();
        assert_eq!(state(node), Ok(()));
        node.attach(&pod);
        pod.id = id(36);
        pod.handler = "berth".into();
        node.attach(&pod);
        let calls = recorded(node);
        assert_eq!(
            (&calls[0].1["name"], &calls[1].1["name"]),
            (&"others".into(), &NETWORK.into())
        );
        // The handler goes from the configuration; the pod is still the other's.
        node.cni_conf_dirs.clear();
        node.restart();
        node.detach(&id(35));
        assert_eq!(recorded(node)[0].1["name"], "others");
        node.detach(&pod.id);
    });
}

#[test]
fn only_so_many_plugins_run_at_once() {
    on_a_node(|node| {
        // Each takes the first free place, for itself alone. Nobody ends before two have met,
        // so two do run at once; a third would be seen.
        let body = format!(
            "cd $(dirname $0); for n in 1 2 3 4 5 6 7 8; do mkdir run.$n 2>/dev/null && break; done; echo $n >>counts
            [ $n -lt 2 ] || touch two; until [ -e two ]; do sleep 0.05; done; sleep 0.1
            rmdir run.$n; echo '{RESULT}'"
        );
        with_scripts(node, &[("counter", &body)]);
        node.config.cni_max_plugins = 2;
        node.config.cni_timeout = 60;
        node.restart();
        let pods: Vec<_> = (40..48).map(|n| node.pod(&id(n))).collect();
        node.run(async {
            let mut tasks = tokio::task::JoinSet::new();
            for pod in pods {
                let network = Network {
                    inner: node.network.inner.clone(),
                };
                tasks.spawn(async move { network.attach(&pod).await.map(drop) });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap().unwrap();
            }
        });
        let counts = fs::read_to_string(file(node, "counts")).unwrap();
        let mut counts: Vec<u32> = counts.lines().map(|n| n.parse().unwrap()).collect();
        counts.sort_unstable();
        assert_eq!(
            (counts.len(), counts.first(), counts.last()),
            (8, Some(&1), Some(&2))
        );
    });
}

#[test]
fn annotations_of_the_pod_are_answered_for() {
    on_a_node(|node| {
        with_scripts(node, &[("one", &format!("{RECORD}echo '{RESULT}'"))]);
        let mut pod = node.pod(&id(37));
        pod.annotations = [("cni.berth/ipRanges".into(), "nonsense".into())].into();
        let error = node.run(node.network.attach(&pod)).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("cni.berth/ipRanges"), "{error}");
        // Its ADD never ran; its DEL did, without what is wrong.
        let calls = recorded(node);
        assert_eq!(verbs(&calls), ["DEL one"]);
        assert!(calls[0].1.get("runtimeConfig").is_none());
        assert_eq!(node.store.network_sandboxes().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_wrong_configuration_is_not_passed_over() {
    on_a_node(|node| {
        with_conflist(node, "{ nonsense");
        let pod = node.pod(&id(6));
        let not_ready = node.run(node.network.status("berth")).unwrap_err();
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
        let not_ready = node.run(node.network.status("berth")).unwrap_err();
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
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        node.attach(&pod);
        with_scripts(
            node,
            &[("one", "echo '{\"ips\":[{\"address\":\"10.9.0.7/16\"}]}'")],
        );
        node.detach(&pod.id);
        node.assert_clean();
    });
}
