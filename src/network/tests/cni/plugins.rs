//! Plugins that people use: those of Debian's package containernetworking-plugins,
//! and, for version 1.1 of the specification, newer ones where the environment
//! variable CNI_PLUGINS names their folder.

use super::*;
use crate::network::{AttachmentKind, netns};

/// Where Debian's package has them.
const PLUGINS: &str = "/usr/lib/cni";

/// Whether the plugins are there; says so when not.
fn have(folder: &str, plugins: &[&str]) -> Option<()> {
    let missing: Vec<_> = plugins
        .iter()
        .filter(|it| !Path::new(folder).join(it).exists())
        .collect();
    if !missing.is_empty() {
        println!("skipped: {folder} lacks {missing:?} (package containernetworking-plugins)");
        return None;
    }
    Some(())
}

/// Runs a command line in the pod's network.
fn in_pod(pod: &PodNetwork, line: &str) -> String {
    shell(&format!("nsenter --net={} {line}", pod.netns.display()))
}

#[test]
fn debians_plugins_make_a_network() {
    let Some(()) = have(PLUGINS, &["bridge", "host-local", "portmap"]) else {
        return;
    };
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
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
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
fn a_chain_of_debians_plugins() {
    let chain = ["ptp", "static", "tuning", "bandwidth", "firewall", "loopback"];
    let Some(()) = have(PLUGINS, &chain) else {
        return;
    };
    on_a_node(|node| {
        if shell("ip link add test0 type ifb 2>/dev/null && ip link del test0 || echo no").trim() == "no" {
            println!("skipped: this kernel has no ifb, which bandwidth needs");
            return;
        }
        with_conflist(
            node,
            r#"{"cniVersion":"1.0.0","name":"chain","plugins":[
            {"type":"ptp","ipMasq":false,"mtu":1380,"ipam":{"type":"static",
                "addresses":[{"address":"10.98.0.2/24","gateway":"10.98.0.1"},{"address":"fd98::2/64","gateway":"fd98::1"}],
                "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
            {"type":"tuning","capabilities":{"mac":true},"sysctl":{"net.core.somaxconn":"77"}},
            {"type":"bandwidth","capabilities":{"bandwidth":true}},
            {"type":"firewall","backend":"iptables"},
            {"type":"loopback"}]}"#,
        );
        let mut pod = node.pod(&id(60));
        pod.annotations = [
            ("cni.berth/mac".into(), "c2:11:22:33:44:55".into()),
            ("kubernetes.io/ingress-bandwidth".into(), "10M".into()),
            ("kubernetes.io/egress-bandwidth".into(), "20M".into()),
        ]
        .into();
        assert_eq!(node.attach(&pod), [ip("10.98.0.2"), ip("fd98::2")]);
        let link = in_pod(&pod, "ip link show eth0");
        assert!(
            link.contains("c2:11:22:33:44:55") && link.contains("mtu 1380"),
            "{link}"
        );
        assert_eq!(in_pod(&pod, "sysctl -n net.core.somaxconn"), "77\n");
        assert!(in_pod(&pod, "ip link show lo").contains("LOOPBACK,UP"));
        let rates = shell("tc qdisc show");
        assert!(
            rates.contains("rate 10Mbit") && rates.contains("rate 20Mbit"),
            "{rates}"
        );
        let rules = shell("iptables -S; ip6tables -S");
        assert!(
            rules.contains("10.98.0.2/32") && rules.contains("fd98::2/128"),
            "{rules}"
        );
        let _server = tcp_server(Some(&pod.netns), "[::]:80", "pod");
        for to in ["10.98.0.2", "fd98::2"] {
            assert!(ask(ip(to), 80).unwrap().starts_with("pod "), "{to}");
        }
        // They find nothing wrong, and then what is wrong.
        node.run(node.network.check_pods()).unwrap();
        assert_eq!(node.network.broken(&pod.id), None);
        in_pod(&pod, "ip addr del 10.98.0.2/24 dev eth0");
        node.run(node.network.check_pods()).unwrap();
        let message = node.network.broken(&pod.id).unwrap();
        assert!(message.contains("CHECK of plugin ptp"), "{message}");
        // Taken down by the records alone.
        fs::remove_file(node.config.cni_conf_dir.join("10-test.conflist")).unwrap();
        node.restart();
        node.detach(&pod.id);
        let left = shell("tc qdisc show; iptables -S; ip6tables -S; ip link");
        for of_pod in ["Mbit", "10.98.0.2", "fd98::2", "veth", "ifb"] {
            assert!(!left.contains(of_pod), "{of_pod}: {left}");
        }
        assert_eq!(node.store.network_sandboxes().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_macvlan_of_debians_on_the_nodes_link() {
    let Some(()) = have(PLUGINS, &["macvlan", "host-local"]) else {
        return;
    };
    on_a_node(|node| {
        let out = outside(node);
        let data = node.dir.path().join("ipam");
        with_conflist(
            node,
            &format!(
                r#"{{"cniVersion":"0.3.1","name":"vlan","type":"macvlan","master":"up0","mode":"bridge","mtu":1400,
                "capabilities":{{"ipRanges":true,"mac":true}},"ipam":{{"type":"host-local","dataDir":"{}"}}}}"#,
                data.display()
            ),
        );
        let mut pod = node.pod(&id(61));
        let ranges = r#"[[{"subnet":"198.51.100.0/24","rangeStart":"198.51.100.77"}]]"#;
        pod.annotations = [
            ("cni.berth/ipRanges".into(), ranges.into()),
            ("cni.berth/mac".into(), "c2:11:22:33:44:66".into()),
        ]
        .into();
        assert_eq!(node.attach(&pod), [ip("198.51.100.77")]);
        assert!(in_pod(&pod, "ip link show eth0").contains("c2:11:22:33:44:66"));
        let _server = tcp_server(Some(&out), "198.51.100.2:80", "out");
        let asked = within(&pod.netns, || ask(ip("198.51.100.2"), 80)).unwrap();
        assert_eq!(asked, "out 198.51.100.77");
        node.detach(&pod.id);
        assert_eq!(
            shell(&format!("ls {}/vlan | grep -c ^198 || true", data.display())),
            "0\n"
        );
        // The node's subnets, as the cluster gave them.
        node.network.set_pod_cidr("198.51.100.128/25").unwrap();
        pod.annotations.clear();
        assert_eq!(node.attach(&pod), [ip("198.51.100.130")]);
        node.detach(&pod.id);
    });
}

#[test]
fn newer_plugins_know_status_gc_and_check() {
    let Some(folder) = std::env::var("CNI_PLUGINS").ok() else {
        println!("skipped: CNI_PLUGINS names no folder with plugins of version 1.1 of the specification");
        return;
    };
    let Some(()) = have(&folder, &["bridge", "host-local", "portmap", "firewall"]) else {
        return;
    };
    on_a_node(|node| {
        node.config.cni_bin_dirs = vec![folder.into()];
        node.restart();
        let data = node.dir.path().join("ipam");
        with_conflist(
            node,
            &format!(
                r#"{{"cniVersion":"1.1.0","name":"new","plugins":[
                {{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{{"type":"host-local","dataDir":"{}",
                    "ranges":[[{{"subnet":"10.97.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
                {{"type":"portmap","capabilities":{{"portMappings":true}}}},
                {{"type":"firewall","backend":"iptables"}}]}}"#,
                data.display()
            ),
        );
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        let mut pod = node.pod(&id(62));
        pod.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        assert_eq!(node.attach(&pod), [ip("10.97.0.2")]);
        // They take GC, and leave what is in use (of 1.9, host-local frees nothing yet).
        let lease = data.join("new/10.97.0.2");
        let errors = node.run(node.network.collect_garbage());
        assert!(errors.is_empty(), "{errors:?}");
        assert!(lease.exists());
        node.run(node.network.check_pods()).unwrap();
        assert_eq!(node.network.broken(&pod.id), None);
        in_pod(&pod, "ip link set eth0 down");
        in_pod(&pod, "ip addr flush dev eth0");
        node.run(node.network.check_pods()).unwrap();
        assert!(
            node.network
                .broken(&pod.id)
                .unwrap()
                .contains("CHECK of plugin bridge")
        );
        node.detach(&pod.id);
        assert!(!lease.exists());
    });
}
