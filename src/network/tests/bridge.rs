//! The built-in bridge: addresses, reach, masquerade, order and disorder.

use std::{collections::BTreeSet, time::Instant};

use rustix::net::sockopt;

use super::*;
use crate::{
    kind::{HasKind, Kind},
    network::{AttachmentKind, netns, subnet::Subnet},
    store::network::SubnetRow,
};

#[test]
fn pods_reach_each_other_and_the_gateway() {
    on_a_node(|node| {
        let (a, b) = (node.pod(&id(1)), node.pod(&id(2)));
        let attachment = node.run(node.network.attach(&a)).unwrap();
        let bridge = node.bridge();
        assert_eq!(
            attachment.kind,
            AttachmentKind::Bridge {
                bridge: bridge.clone()
            }
        );
        assert_eq!(node.network.attachment(&a.id).unwrap(), Some(attachment.clone()));
        let (of_a, of_b) = (attachment.ips, node.attach(&b));
        assert_eq!(of_a.len(), 2, "{of_a:?}");
        assert!(of_a[0].is_ipv4() && of_a[1].is_ipv6());
        let _servers = [
            tcp_server(Some(&b.netns), "[::]:80", "b"),
            tcp_server(None, "[::]:80", "node"),
        ];
        for (mine, theirs) in of_a.iter().zip(&of_b) {
            let shown = if mine.is_ipv4() {
                format!("::ffff:{mine}")
            } else {
                mine.to_string()
            };
            let asked = within(&a.netns, || ask(*theirs, 80)).unwrap();
            assert_eq!(asked, format!("b {shown}"), "sources are seen as they are");
            assert!(ask(*theirs, 80).unwrap().starts_with("b "), "from the node");
        }
        for line in ["ip -4 route show default", "ip -6 route show default"] {
            let route = shell(&format!("nsenter --net={} {line}", a.netns.display()));
            let gateway = ip(route.split_whitespace().nth(2).unwrap());
            assert!(
                within(&a.netns, || ask(gateway, 80))
                    .unwrap()
                    .starts_with("node "),
                "{route}"
            );
        }
        let addresses = shell(&format!("nsenter --net={} ip addr show eth0", a.netns.display()));
        assert!(!addresses.contains("tentative scope global"), "{addresses}");
        node.detach(&a.id);
        assert!(refused(of_a[0], 80));
        node.detach(&b.id);
        node.assert_clean();
    });
}

#[test]
fn the_outside_sees_the_node() {
    on_a_node(|node| {
        let out = outside(node);
        let pod = node.pod(&id(3));
        node.attach(&pod);
        let _servers = [tcp_server(Some(&out), "[::]:80", "out")];
        let asked = |to: &str| within(&pod.netns, || ask(ip(to), 80)).unwrap();
        assert_eq!(asked("198.51.100.2"), "out ::ffff:198.51.100.1");
        assert_eq!(asked("2001:db8::2"), "out 2001:db8::1");
        node.detach(&pod.id);
        node.assert_clean();
    });
}

#[test]
fn the_mtu_is_the_uplinks_or_the_configured_one() {
    let mtus = |node: &Node, pod: &PodNetwork| {
        let of_pod = within(&pod.netns, || {
            Netlink::open().unwrap().link("eth0").unwrap().unwrap().mtu
        });
        let mut netlink = Netlink::open().unwrap();
        let mut of = |name: &str| netlink.link(name).unwrap().unwrap().mtu;
        let veth = crate::network::bridge::veth_name(&pod.id);
        [of_pod, of(&veth), of(&node.bridge())]
    };
    on_a_node(|node| {
        outside(node);
        let pod = node.pod(&id(3));
        node.attach(&pod);
        assert_eq!(mtus(node, &pod), [1400; 3], "of the default route's link");
        // A packet of that size passes, a larger one is not sent.
        let send = |bytes: usize| {
            within(&pod.netns, || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DO).unwrap();
                socket.send_to(&vec![0; bytes - 28], "198.51.100.2:9").map(drop)
            })
        };
        send(1400).unwrap();
        assert!(send(1401).is_err());
        node.detach(&pod.id);
    });
    on_a_node_with(
        |config| config.mtu = 9000,
        |node| {
            outside(node);
            let pod = node.pod(&id(3));
            node.attach(&pod);
            assert_eq!(mtus(node, &pod), [9000; 3]);
            node.detach(&pod.id);
            node.assert_clean();
        },
    );
}

#[test]
fn an_address_is_used_again_when_all_others_were() {
    let change = |config: &mut config::Network| config.subnets = vec!["10.77.0.0/29".into()];
    on_a_node_with(change, |node| {
        // Six addresses, of which the bridge has one; pods come and go.
        let mut seen = Vec::new();
        for n in 0..10 {
            let pod = node.pod(&id(100 + n));
            let ip = node.attach(&pod)[0];
            // Whoever has the address is who answers, though the neighbours remember
            // its last owner.
            let _server = tcp_server(Some(&pod.netns), "0.0.0.0:80", "pod");
            assert!(ask(ip, 80).unwrap().starts_with("pod "));
            seen.push(ip);
            node.detach(&pod.id);
            assert!(refused(ip, 80));
        }
        let expected = (0..10).map(|n| IpAddr::from([10, 77, 0, 2 + n % 5]));
        assert!(seen.iter().copied().eq(expected), "{seen:?}");
        node.assert_clean();
    });
}

#[test]
fn detach_is_idempotent_and_needs_no_namespace() {
    on_a_node(|node| {
        node.detach("never-was");
        let (a, b) = (node.pod(&id(4)), node.pod("not hexadecimal"));
        node.attach(&a);
        node.attach(&b);
        netns::remove(a.netns.parent().unwrap()).unwrap();
        node.detach(&a.id);
        node.detach(&a.id);
        shell(&format!(
            "ip link del {}",
            crate::network::bridge::veth_name(&b.id)
        ));
        node.detach(&b.id);
        node.assert_clean();
        // The bridge is gone; the next pod gets it back, with the same subnets
        // and not the address that was used last.
        let before = node.store.network_subnets().unwrap();
        let c = node.pod(&id(5));
        let ips = node.attach(&c);
        assert_eq!(node.store.network_subnets().unwrap(), before);
        assert!(ips[0].to_string().ends_with(".0.4"), "{ips:?}");
        node.detach(&c.id);
        node.assert_clean();
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    on_a_node(|node| {
        let mut pod = node.pod(&id(6));
        let netns = std::mem::replace(&mut pod.netns, "/nonexistent/net".into());
        let message = node.run(node.network.attach(&pod)).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/net"), "{message}");
        node.assert_clean();
        pod.netns = "/proc/self/ns/uts".into();
        assert!(node.run(node.network.attach(&pod)).is_err());
        node.assert_clean();
        // Something of the name is in the pod already.
        pod.netns = netns;
        within(&pod.netns, || shell("ip link add eth0 type veth peer name other"));
        let message = node.run(node.network.attach(&pod)).unwrap_err().to_string();
        assert!(
            message.contains("create veth bv") && message.contains("exists"),
            "{message}"
        );
        node.assert_clean();
        // And the name of the bridge is somebody's.
        within(&pod.netns, || shell("ip link del eth0"));
        for kind in ["veth peer name other", "bridge"] {
            shell(&format!("ip link add {} type {kind}", node.bridge()));
            let error = node.run(node.network.attach(&pod)).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains("not made by this berthd"), "{error}");
            node.run(node.network.recover()).unwrap();
            shell(&format!("ip link del {}", node.bridge()));
        }
        node.assert_clean();
        // Again for the same id, over an attachment.
        node.attach(&pod);
        within(&pod.netns, || shell("ip link show eth0"));
        node.attach(&pod);
        node.detach(&pod.id);
        node.assert_clean();
    });
}

#[test]
fn a_pod_without_ipv6_gets_ipv4_only() {
    on_a_node(|node| {
        let sysctls = [
            ("net.ipv6.conf.all.disable_ipv6", "1"),
            ("net.ipv6.conf.default.disable_ipv6", "1"),
        ];
        let pod = node.pod_with(&id(7), &sysctls);
        let ips = node.attach(&pod);
        assert!(ips.len() == 1 && ips[0].is_ipv4(), "{ips:?}");
    });
    on_a_node_with(
        |config| config.subnets = vec!["10.78.0.0/29".into()],
        |node| {
            let pod = node.pod(&id(8));
            node.attach(&pod);
            let shown = shell(&format!("nsenter --net={} ip -6 addr", pod.netns.display()));
            assert!(!shown.contains("eth0"), "{shown}");
        },
    );
}

#[test]
fn configured_subnets_are_used_until_they_are_full() {
    let change = |config: &mut config::Network| {
        config.subnets = vec!["fd12:3::/64".into(), "10.77.0.0/29".into()];
        config.mtu = 1300;
    };
    on_a_node_with(change, |node| {
        let pods: Vec<_> = (10..16).map(|n| node.pod(&id(n))).collect();
        let ips: Vec<_> = pods.iter().take(5).map(|pod| node.attach(pod)).collect();
        assert_eq!(
            ips[0],
            [ip("fd12:3::2"), ip("10.77.0.2")],
            "the first configured is primary"
        );
        let error = node.run(node.network.attach(&pods[5])).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert!(error.to_string().contains("10.77.0.0/29"), "{error}");
        node.detach(&pods[0].id);
        assert_eq!(node.attach(&pods[5])[1], ips[0][1]);
    });
    on_a_node(|node| {
        for wrong in [
            vec!["10.0.0.0/31"],
            vec!["10.0.0.1/8"],
            vec!["10.1.0.0/16", "10.2.0.0/16"],
        ] {
            let config = config::Network {
                subnets: wrong.into_iter().map(String::from).collect(),
                ..node.config.clone()
            };
            let message = Network::open(
                &config,
                BTreeMap::new(),
                &instance(node.dir.path()),
                node.store.clone(),
            );
            assert!(message.unwrap_err().to_string().contains("network.subnets"));
        }
    });
}

#[test]
fn three_hundred_pods_have_three_hundred_addresses() {
    on_a_node(|node| {
        let pods: Vec<_> = (1000..1300).map(|n| node.pod(&id(n))).collect();
        let start = Instant::now();
        let mut all: Vec<IpAddr> = pods.iter().flat_map(|pod| node.attach(pod)).collect();
        let each = start.elapsed() / 300;
        println!("attach of a pod: {each:?}");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 600);
        let _server = tcp_server(Some(&pods[299].netns), "0.0.0.0:80", "last");
        let last = node.network.attachment(&pods[299].id).unwrap().unwrap().ips[0];
        within(&pods[0].netns, || ask(last, 80)).unwrap();
        let start = Instant::now();
        for pod in &pods {
            node.detach(&pod.id);
        }
        println!("detach of a pod: {:?}", start.elapsed() / 300);
        node.assert_clean();
    });
}

/// The claims alone, as attach makes them before anything is in the kernel: a
/// thousand pods at once, in order and after half of them went.
#[test]
fn a_thousand_pods_claim_a_thousand_addresses() {
    on_a_node(|node| {
        let bridge = &node.network.inner.bridge;
        let subnets: [Subnet; 2] = ["10.66.0.0/22", "fd66::/64"].map(|it| it.parse().unwrap());
        let row = |subnet: &Subnet| SubnetRow {
            family: subnet.family().number(),
            subnet: subnet.to_string(),
        };
        node.store
            .network_set_subnets(&subnets.each_ref().map(row))
            .unwrap();
        let pod = |n: u32| PodNetwork {
            id: id(n),
            ..PodNetwork::default()
        };
        let claim = |n: u32| bridge.claim(&pod(n), &subnets.each_ref(), "{}");
        let mut all: Vec<IpAddr> = (0..1000).flat_map(|n| claim(n).unwrap()).collect();
        let in_order = (0..1000).flat_map(|n| subnets.map(|subnet| subnet.at(n + 2)));
        assert!(all.iter().copied().eq(in_order));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 2000);
        for n in (0..1000).step_by(2) {
            node.store.network_release(&id(n)).unwrap();
        }
        // First what was never used, up to the broadcast address; then what was freed.
        let more: Vec<_> = (1000..1521).map(|n| claim(n).unwrap()[0]).collect();
        assert_eq!((more[0], more[20]), (ip("10.66.3.234"), ip("10.66.3.254")));
        assert_eq!((more[21], more[520]), (ip("10.66.0.2"), ip("10.66.3.232")));
        let rows = node.store.network_addresses(None).unwrap();
        assert_eq!(rows.iter().filter(|row| row.family == 4).count(), 1021);
        let message = claim(1521).unwrap_err().to_string();
        assert!(message.contains("10.66.0.0/22"), "{message}");
    });
}

#[test]
fn thirty_pods_come_and_go_at_once() {
    on_a_node(|node| {
        let pods: Vec<_> = (2000..2030).map(|n| node.pod(&id(n))).collect();
        let network = Arc::new(Network {
            inner: node.network.inner.clone(),
        });
        for _ in 0..2 {
            node.run(async {
                let mut tasks = tokio::task::JoinSet::new();
                for (n, mut pod) in (0u16..).zip(pods.clone()) {
                    let network = network.clone();
                    pod.ports = vec![port(Protocol::Tcp, 9000 + n, 80, None)];
                    tasks.spawn(async move {
                        for _ in 0..3 {
                            network.attach(&pod).await.unwrap();
                            // Two at once: the second finds nothing to do.
                            let (one, two) = tokio::join!(network.detach(&pod.id), network.detach(&pod.id));
                            one.unwrap();
                            two.unwrap();
                        }
                    });
                }
                while let Some(done) = tasks.join_next().await {
                    done.unwrap();
                }
            });
            node.assert_clean();
        }
        assert!(node.network.inner.busy.lock().unwrap().is_empty());
    });
}

#[test]
fn after_a_crash_everything_is_found_again() {
    on_a_node(|node| {
        let (mut a, b) = (node.pod(&id(20)), node.pod(&id(21)));
        a.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        let ips = node.attach(&a);
        node.attach(&b);
        let _server = tcp_server(Some(&a.netns), "[::]:80", "a");
        let table = shell("nft -s list ruleset");
        // Somebody clears all rules, and a link is left that no record has.
        shell("nft flush ruleset");
        shell(&format!(
            "ip link add bv00000000bad type veth peer name x && ip link set bv00000000bad master {}",
            node.bridge()
        ));
        node.restart();
        node.run(node.network.recover()).unwrap();
        assert_eq!(shell("nft -s list ruleset"), table);
        assert!(!shell("ip link").contains("bv00000000bad"));
        assert!(ask(ip("127.0.0.1"), 8080).is_ok());
        // The bridge itself goes, as by a careless hand; the next pod brings it back.
        shell(&format!("ip link del {}", node.bridge()));
        let c = node.pod(&id(22));
        node.attach(&c);
        node.detach(&c.id);
        // The pods whose sandboxes are not known any more go.
        let errors = node.run(node.network.sweep(&[b.id.clone()].into()));
        assert!(errors.is_empty(), "{errors:?}");
        assert!(refused(ips[0], 80));
        assert_eq!(node.store.network_sandboxes().unwrap(), [b.id.as_str()]);
        node.detach(&b.id);
        node.run(node.network.recover()).unwrap();
        node.assert_clean();
    });
}

#[test]
fn what_only_the_records_know_goes_too() {
    on_a_node(|node| {
        // As after a reboot: records, and nothing of theirs in the kernel.
        let mut pod = node.pod(&id(23));
        pod.ports = vec![
            port(Protocol::Tcp, 8080, 80, None),
            port(Protocol::Udp, 8080, 80, None),
        ];
        node.attach(&pod);
        shell(&format!("ip link del {} && nft flush ruleset", node.bridge()));
        netns::remove(pod.netns.parent().unwrap()).unwrap();
        node.restart();
        let errors = node.run(node.network.sweep(&BTreeSet::new()));
        assert!(errors.is_empty(), "{errors:?}");
        node.assert_clean();
        // Half of the elements are gone, as when somebody edits the table.
        pod = node.pod(&id(24));
        pod.ports = vec![
            port(Protocol::Tcp, 8080, 80, None),
            port(Protocol::Tcp, 8081, 81, None),
        ];
        let other = node.pod(&id(23));
        node.attach(&other);
        let ips = node.attach(&pod);
        let table = node.table();
        shell(&format!(
            "nft delete element inet {table} ports_v4 '{{ tcp . 8080 : {} . 80 }}'",
            ips[0]
        ));
        node.detach(&pod.id);
        assert!(!shell("nft list ruleset").contains("808"));
        node.detach(&other.id);
        node.assert_clean();
    });
}

#[test]
fn a_bridge_keeps_its_name_while_pods_are_on_it() {
    on_a_node(|node| {
        let (a, b) = (node.pod(&id(25)), node.pod(&id(26)));
        node.attach(&a);
        let old = node.bridge();
        node.config.bridge = "renamed0".into();
        node.restart();
        node.attach(&b);
        assert!(shell("ip link").contains(&old) && !shell("ip link").contains("renamed0"));
        node.detach(&a.id);
        node.detach(&b.id);
        node.assert_clean();
        node.restart();
        node.attach(&a);
        assert!(shell("ip link").contains("renamed0:"));
        node.detach(&a.id);
        node.assert_clean();
    });
}

#[test]
fn two_berthds_on_one_node_do_not_meet() {
    on_a_node(|node| {
        let other_dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&other_dir.path().join("berth.db")).unwrap());
        // As if both had chosen the same subnet while no bridge was there.
        let a = node.pod(&id(30));
        node.attach(&a);
        node.detach(&a.id);
        store
            .network_set_subnets(&node.store.network_subnets().unwrap())
            .unwrap();
        let other = Network::open(
            &node.config,
            BTreeMap::new(),
            &instance(other_dir.path()),
            store.clone(),
        )
        .unwrap();
        let b = node.pod(&id(31));
        let (of_a, of_b) = (node.attach(&a), node.run(other.attach(&b)).unwrap().ips);
        let subnets = |store: &Store| store.network_subnets().unwrap();
        assert_ne!(subnets(&node.store), subnets(&store));
        assert_ne!(of_a, of_b);
        node.run(other.detach(&b.id)).unwrap();
        assert!(ask(of_a[0], 1).is_err() && shell("nft list tables").contains(&node.table()));
        node.detach(&a.id);
        node.assert_clean();
    });
}

#[test]
fn the_status_is_from_a_trial() {
    on_a_node(|node| {
        assert_eq!(node.run(node.network.status("berth")), Ok(()));
        node.assert_clean();
    });
}
