//! STATUS, GC and CHECK, with plugins that write down how they were called.

use super::*;

/// A script's part that does as a file beside it says, for one verb: waits as long
/// as `hold-VERB` is there, and fails as long as `fail-VERB` is there.
const OBEY: &str = r#"while [ -e hold-$CNI_COMMAND ]; do sleep 0.05; done; echo "$CNI_COMMAND" >>ended
if [ -e fail-$CNI_COMMAND ]; then cat fail-$CNI_COMMAND; exit 1; fi
"#;

fn obeying() -> String {
    format!("{RECORD}{OBEY}[ $CNI_COMMAND = ADD ] && echo '{RESULT}'; exit 0")
}

fn put(node: &Node, name: &str, text: &str) {
    fs::write(file(node, name), text).unwrap();
}

fn remove(node: &Node, name: &str) {
    fs::remove_file(file(node, name)).unwrap();
}

/// The configuration is another one, so what was said of the old one does not count.
fn touch(node: &Node) {
    let path = node.config.cni_conf_dir.join("10-test.conflist");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, text + "\n").unwrap();
}

#[test]
fn the_network_is_ready_when_its_plugins_say_so() {
    on_a_node(|node| {
        with_scripts_of(node, "1.1.0", "", &[("one", &obeying()), ("two", &obeying())]);
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        let calls = recorded(node);
        assert_eq!(verbs(&calls), ["STATUS one", "STATUS two"]);
        assert_eq!(calls[0].0, "STATUS one  []", "it is about no pod");
        for key in ["prevResult", "runtimeConfig", "cni.dev/valid-attachments"] {
            assert!(calls[0].1.get(key).is_none(), "{key}");
        }
        // What they said holds for some seconds, and then no longer.
        let no_daemon = r#"{"cniVersion":"1.1.0","code":50,"msg":"no daemon"}"#;
        put(node, "fail-STATUS", no_daemon);
        until("the new answer", || {
            node.run(node.network.status("berth")).is_err()
        });
        let not_ready = node.run(node.network.status("berth")).unwrap_err();
        assert_eq!(not_ready.reason, "NetworkPluginNotReady");
        assert_eq!(
            not_ready.message,
            "CNI network scripts: STATUS of plugin one no daemon (code 50)"
        );
        assert_eq!(
            verbs(&recorded(node)),
            ["STATUS one"],
            "the first that is not ready is enough"
        );
        // Pods are tried all the same, as the specification wants it.
        node.attach(&node.pod(&id(1)));
        // Another configuration is asked at once.
        remove(node, "fail-STATUS");
        touch(node);
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        node.detach(&id(1));
    });
}

#[test]
fn a_plugin_need_not_know_every_verb() {
    on_a_node(|node| {
        with_scripts_of(node, "1.1.0", "", &[("one", &obeying())]);
        for verb in ["STATUS", "GC", "CHECK"] {
            let unknown = format!(r#"{{"cniVersion":"1.1.0","code":4,"msg":"unknown CNI_COMMAND: {verb}"}}"#);
            put(node, &format!("fail-{verb}"), &unknown);
        }
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        let pod = node.pod(&id(15));
        node.attach(&pod);
        assert_eq!(node.run(node.network.collect_garbage()).len(), 0);
        node.run(node.network.check_pods()).unwrap();
        assert_eq!(node.network.broken(&pod.id), None);
        node.detach(&pod.id);
        let calls = verbs(&recorded(node));
        assert_eq!(calls, ["STATUS one", "ADD one", "GC one", "CHECK one", "DEL one"]);
        // The same code for another reason is not that.
        put(node, "fail-STATUS", r#"{"code":4,"msg":"no CNI_PATH"}"#);
        touch(node);
        assert!(node.run(node.network.status("berth")).is_err());
        recorded(node);
        // Older networks are not asked.
        with_scripts_of(node, "1.0.0", "", &[("one", &obeying())]);
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        assert_eq!(recorded(node), []);
    });
}

#[test]
fn a_hanging_status_keeps_nobody_waiting() {
    on_a_node(|node| {
        with_scripts_of(node, "1.1.0", "", &[("one", &obeying())]);
        put(node, "hold-STATUS", "");
        let network = Arc::new(Network {
            inner: node.network.inner.clone(),
        });
        // Three that ask at once, and one that has no patience.
        let answers = node.run(async {
            let impatient = tokio::time::timeout(Duration::from_millis(10), network.status("berth"));
            assert!(impatient.await.is_err());
            let ask = || network.status("berth");
            let (a, b, c) = tokio::join!(ask(), ask(), ask());
            [a, b, c]
        });
        for answer in answers {
            let message = answer.unwrap_err().message;
            assert!(message.contains("STATUS"), "{message}");
        }
        assert_eq!(verbs(&recorded(node)), ["STATUS one"], "all wait for one answer");
        // Nor does it take the turn of a pod, or wait for one.
        remove(node, "hold-STATUS");
        node.config.cni_max_plugins = 1;
        node.config.cni_timeout = 60;
        node.restart();
        put(node, "hold-ADD", "");
        let pod = node.pod(&id(2));
        node.run(async {
            let network = Network {
                inner: node.network.inner.clone(),
            };
            let attach = tokio::spawn(async move { network.attach(&pod).await });
            while !fs::read_to_string(file(node, "log")).is_ok_and(|log| log.contains("ADD one")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(node.network.status("berth").await, Ok(()));
            remove(node, "hold-ADD");
            attach.await.unwrap().unwrap();
        });
        node.detach(&id(2));
    });
}

#[test]
fn garbage_is_what_no_recorded_pod_has() {
    on_a_node(|node| {
        with_scripts_of(node, "1.1.0", "", &[("one", &obeying()), ("two", &obeying())]);
        let collect = |node: &Node| node.run(node.network.collect_garbage());
        // While nothing is known, nothing is told.
        assert_eq!(collect(node).len(), 0);
        assert_eq!(recorded(node), []);
        let (a, b) = (node.pod(&id(3)), node.pod(&id(4)));
        node.attach(&a);
        node.attach(&b);
        recorded(node);
        // Also after a restart; and one that fails does not keep the other from it.
        node.restart();
        put(node, "fail-GC", r#"{"code":100,"msg":"disk is full"}"#);
        let errors = collect(node);
        assert_eq!(errors.len(), 2);
        assert!(
            errors[0].to_string().contains("GC of plugin one disk is full"),
            "{}",
            errors[0]
        );
        remove(node, "fail-GC");
        let calls = recorded(node);
        assert_eq!(verbs(&calls), ["GC one", "GC two"]);
        let mut ids = [a.id.clone(), b.id.clone()];
        ids.sort();
        let valid = |ids: &[String]| {
            let attachment = |id| serde_json::json!({"containerID": id, "ifname": "eth0"});
            Value::Array(ids.iter().map(attachment).collect())
        };
        assert_eq!(calls[0].1["cni.dev/valid-attachments"], valid(&ids));
        assert_eq!(calls[0].1["cni.dev/attachments"], valid(&ids));
        assert_eq!(calls[0].0, "GC one  []");
        // One whose DEL failed is still to be taken down by DEL.
        put(node, "fail-DEL", r#"{"code":11,"msg":"later"}"#);
        assert!(node.run(node.network.detach(&a.id)).is_err());
        remove(node, "fail-DEL");
        recorded(node);
        collect(node);
        assert_eq!(recorded(node)[0].1["cni.dev/valid-attachments"], valid(&ids));
        node.detach(&a.id);
        recorded(node);
        collect(node);
        assert_eq!(
            recorded(node)[0].1["cni.dev/valid-attachments"],
            valid(std::slice::from_ref(&b.id))
        );
        // A record that cannot be read may be of a pod in the network.
        node.store.network_put("damaged", "nonsense").unwrap();
        assert_eq!(collect(node).len(), 1);
        node.store.network_release("damaged").unwrap();
        // Nor where the configuration forbids it, or is older than GC.
        for (version, more) in [("1.1.0", r#""disableGC":true,"#), ("1.0.0", "")] {
            with_scripts_of(node, version, more, &[("one", &obeying())]);
            assert_eq!(collect(node).len(), 0);
            assert_eq!(recorded(node), [], "{version} {more}");
        }
        node.detach(&b.id);
    });
}

#[test]
fn garbage_is_collected_while_no_pod_comes_or_goes() {
    on_a_node(|node| {
        with_scripts_of(node, "1.1.0", "", &[("one", &obeying())]);
        node.config.cni_timeout = 60;
        node.restart();
        node.attach(&node.pod(&id(5)));
        let network = || Network {
            inner: node.network.inner.clone(),
        };
        let log = || fs::read_to_string(file(node, "log")).unwrap_or_default();
        let seen = async |what: &str| {
            while !log().contains(what) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let moment = || tokio::time::sleep(Duration::from_millis(300));
        // GC waits for an ADD, and a DEL for GC.
        let pod = node.pod(&id(6));
        node.run(async {
            put(node, "hold-ADD", "");
            let network_a = network();
            let attach = tokio::spawn(async move { network_a.attach(&pod).await.map(drop) });
            seen(&format!("ADD one {}", id(6))).await;
            put(node, "hold-GC", "");
            let network_b = network();
            let collect = tokio::spawn(async move { network_b.collect_garbage().await });
            moment().await;
            assert!(!log().contains("GC one"), "while an ADD runs");
            remove(node, "hold-ADD");
            attach.await.unwrap().unwrap();
            seen("GC one").await;
            let network_c = network();
            let detach = tokio::spawn(async move { network_c.detach(&id(6)).await });
            moment().await;
            assert!(!log().contains("DEL one"), "while a GC runs");
            remove(node, "hold-GC");
            assert_eq!(collect.await.unwrap().len(), 0);
            detach.await.unwrap().unwrap();
        });
        let ended = fs::read_to_string(file(node, "ended")).unwrap();
        assert_eq!(ended, "ADD\nADD\nGC\nDEL\n");
        node.detach(&id(5));
    });
}

#[test]
fn pods_whose_network_is_broken_are_known() {
    on_a_node(|node| {
        with_scripts_of(node, "0.4.0", "", &[("one", &obeying()), ("two", &obeying())]);
        let (a, b) = (node.pod(&id(7)), node.pod(&id(8)));
        node.attach(&a);
        node.attach(&b);
        recorded(node);
        let check = |node: &Node| node.run(node.network.check_pods()).unwrap();
        check(node);
        let calls = recorded(node);
        assert_eq!(
            verbs(&calls),
            ["CHECK one", "CHECK two", "CHECK one", "CHECK two"]
        );
        assert_eq!(calls[0].0, format!("CHECK one {} [{}]", a.id, a.netns.display()));
        let result: Value = serde_json::from_str(RESULT).unwrap();
        assert_eq!(calls[0].1["prevResult"], result);
        assert_eq!(
            (node.network.broken(&a.id), node.network.broken(&b.id)),
            (None, None)
        );
        put(node, "fail-CHECK", r#"{"code":101,"msg":"the link is gone"}"#);
        node.restart();
        check(node);
        for id in [&a.id, &b.id] {
            let message = node.network.broken(id).unwrap();
            assert!(
                message.contains("CHECK of plugin one the link is gone"),
                "{message}"
            );
        }
        assert_eq!(verbs(&recorded(node)), ["CHECK one", "CHECK one"]);
        node.detach(&b.id);
        assert_eq!(node.network.broken(&b.id), None);
        remove(node, "fail-CHECK");
        check(node);
        assert_eq!(node.network.broken(&a.id), None, "it has come back");
        recorded(node);
        // Not where it says nothing, and not without the namespace.
        for (version, more) in [("1.0.0", r#""disableCheck":true,"#), ("0.3.1", "")] {
            with_scripts_of(node, version, more, &[("one", &obeying())]);
            node.attach(&a);
            recorded(node);
            check(node);
            assert_eq!(recorded(node), [], "{version} {more}");
        }
        with_scripts_of(node, "1.0.0", "", &[("one", &obeying())]);
        node.attach(&a);
        recorded(node);
        crate::network::netns::remove(a.netns.parent().unwrap()).unwrap();
        check(node);
        assert_eq!(recorded(node), []);
        node.detach(&a.id);
    });
}

#[test]
fn a_network_whose_check_hangs_is_left_alone() {
    on_a_node(|node| {
        with_scripts_of(node, "1.0.0", "", &[("one", &obeying())]);
        let pods: Vec<_> = (10..14).map(|n| node.pod(&id(n))).collect();
        for pod in &pods {
            node.attach(pod);
        }
        recorded(node);
        put(node, "hold-CHECK", "");
        node.run(node.network.check_pods()).unwrap();
        assert_eq!(verbs(&recorded(node)), ["CHECK one"]);
        let broken = pods.iter().filter_map(|pod| node.network.broken(&pod.id));
        let broken: Vec<_> = broken.collect();
        assert!(
            broken.len() == 1 && broken[0].contains("did not end"),
            "{broken:?}"
        );
        for pod in &pods {
            node.detach(&pod.id);
        }
    });
}
