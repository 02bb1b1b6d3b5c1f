//! Host ports, and the table as nft(8) reads it.

use std::io::ErrorKind::WouldBlock;

use super::*;
use crate::kind::{HasKind, Kind};

#[test]
fn the_table_is_what_nft_lists() {
    on_a_node(|node| {
        let mut pod = node.pod(&id(1));
        pod.ports = vec![
            port(Protocol::Tcp, 8080, 80, None),
            port(Protocol::Udp, 53, 5353, Some("198.51.100.1")),
            port(Protocol::Sctp, 9999, 9999, Some("::")),
            port(Protocol::Tcp, 0, 81, None),
        ];
        let ips = node.attach(&pod);
        let (v4, v6) = (ips[0], ips[1]);
        let subnets = node.store.network_subnets().unwrap();
        let (s4, s6) = (&subnets[0].subnet, &subnets[1].subnet);
        let (bridge, table) = (node.bridge(), node.table());
        let expected = format!(
            r#"table inet {table} {{
	map ports_v4 {{
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = {{ tcp . 8080 : {v4} . 80 }}
	}}
	map bound_v4 {{
		type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = {{ udp . 198.51.100.1 . 53 : {v4} . 5353 }}
	}}
	set targets_v4 {{
		type inet_proto . ipv4_addr . inet_service
		elements = {{ tcp . {v4} . 80,
			     udp . {v4} . 5353 }}
	}}
	map ports_v6 {{
		type inet_proto . inet_service : ipv6_addr . inet_service
		elements = {{ tcp . 8080 : {v6} . 80,
			     sctp . 9999 : {v6} . 9999 }}
	}}
	map bound_v6 {{
		type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service
	}}
	set targets_v6 {{
		type inet_proto . ipv6_addr . inet_service
		elements = {{ tcp . {v6} . 80,
			     sctp . {v6} . 9999 }}
	}}
	chain martians {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{bridge}" ip daddr 127.0.0.0/8 drop
	}}
	chain hostports {{
		dnat ip to meta l4proto . ip daddr . th dport map @bound_v4
		meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports_v4
		dnat ip6 to meta l4proto . ip6 daddr . th dport map @bound_v6
		meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports_v6
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type local jump hostports
	}}
	chain output {{
		type nat hook output priority -100; policy accept;
		ip6 daddr ::1 return
		fib daddr type local jump hostports
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
		ip saddr {s4} ip daddr != {s4} ip daddr != 224.0.0.0/4 masquerade
		ip saddr {s4} ct status dnat meta l4proto . ip daddr . th dport @targets_v4 masquerade
		ip6 saddr {s6} ip6 daddr != {s6} ip6 daddr != ff00::/8 masquerade
		ip6 saddr {s6} ct status dnat meta l4proto . ip6 daddr . th dport @targets_v6 masquerade
	}}
}}
"#
        );
        assert_eq!(sorted(&shell("nft list ruleset")), sorted(&expected));
        node.detach(&pod.id);
        node.assert_clean();
    });
}

/// Without empty lines, and elements (which a hash keeps) by order of text.
fn sorted(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut elements: Vec<String> = Vec::new();
    let mut inside = false;
    for line in listing.lines().filter(|line| !line.trim().is_empty()) {
        inside |= line.contains("elements = {");
        if !inside {
            lines.push(line.trim_end().to_owned());
            continue;
        }
        let text = line
            .trim()
            .trim_start_matches("elements = {")
            .trim_end_matches('}');
        elements.push(text.trim().trim_end_matches(',').to_owned());
        if line.ends_with('}') {
            elements.sort();
            lines.append(&mut elements);
            inside = false;
        }
    }
    lines
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    on_a_node(|node| {
        let out = outside(node);
        let (mut a, b) = (node.pod(&id(2)), node.pod(&id(3)));
        a.ports = vec![
            port(Protocol::Tcp, 8080, 80, None),
            port(Protocol::Tcp, 8081, 80, None),
        ];
        node.attach(&a);
        node.attach(&b);
        let _server = tcp_server(Some(&a.netns), "[::]:80", "a");
        let is_a = |answer: std::io::Result<String>| assert!(answer.unwrap().starts_with("a "));
        for to in ["127.0.0.1", "127.5.5.5", "198.51.100.1", "2001:db8::1"] {
            for port in [8080, 8081] {
                is_a(ask(ip(to), port));
            }
        }
        for to in ["198.51.100.1", "2001:db8::1"] {
            is_a(within(&out, || ask(ip(to), 8080)));
            // From a neighbour, and from itself.
            is_a(within(&b.netns, || ask(ip(to), 8080)));
            is_a(within(&a.netns, || ask(ip(to), 8080)));
            assert!(within(&out, || refused(ip(to), 80)), "only the host port");
        }
        let seen = within(&out, || ask(ip("198.51.100.1"), 8080)).unwrap();
        assert_eq!(seen, "a ::ffff:198.51.100.2", "the pod sees who calls");
        // [::1] stays the node's own.
        let _own = tcp_server(None, "[::1]:8080", "node");
        assert!(ask(ip("::1"), 8080).unwrap().starts_with("node"));
        node.detach(&a.id);
        assert!(refused(ip("127.0.0.1"), 8080) && within(&out, || refused(ip("198.51.100.1"), 8080)));
        node.detach(&b.id);
        node.assert_clean();
    });
}

#[test]
fn a_bound_host_port_is_served_there_only() {
    on_a_node(|node| {
        let out = outside(node);
        shell("ip addr add 203.0.113.9/32 dev lo");
        let mut pod = node.pod(&id(4));
        pod.ports = vec![
            port(Protocol::Tcp, 8080, 80, Some("203.0.113.9")),
            port(Protocol::Tcp, 8081, 80, Some("127.0.0.1")),
            port(Protocol::Tcp, 8082, 80, Some("0.0.0.0")),
        ];
        node.attach(&pod);
        let _server = tcp_server(Some(&pod.netns), "[::]:80", "pod");
        assert!(ask(ip("203.0.113.9"), 8080).is_ok() && refused(ip("198.51.100.1"), 8080));
        assert!(ask(ip("127.0.0.1"), 8081).is_ok() && refused(ip("198.51.100.1"), 8081));
        assert!(ask(ip("198.51.100.1"), 8082).is_ok() && refused(ip("2001:db8::1"), 8082));
        // A neighbour of the node cannot reach what is bound to its loopback.
        within(&out, || {
            shell("sysctl -qw net.ipv4.conf.all.route_localnet=1 && ip route del local 127.0.0.0/8 dev lo table local;
                   ip route del local 127.0.0.1 dev lo table local; ip route add 127.0.0.0/8 via 198.51.100.1");
            assert!(refused(ip("127.0.0.1"), 8081));
        });
    });
}

#[test]
fn a_bound_udp_port_answers_from_its_address() {
    on_a_node(|node| {
        let out = outside(node);
        shell("ip addr add 203.0.113.9/32 dev lo && ip addr add 2001:db8:9::9/128 dev lo");
        for (ours, via) in [
            ("203.0.113.9/32", "198.51.100.1"),
            ("2001:db8:9::9/128", "2001:db8::1"),
        ] {
            within(&out, || shell(&format!("ip route add {ours} via {via}")));
        }
        let mut pod = node.pod(&id(12));
        pod.ports = ["203.0.113.9", "2001:db8:9::9"]
            .map(|ip| port(Protocol::Udp, 53, 5353, Some(ip)))
            .into();
        node.attach(&pod);
        let _server = udp_server(&pod.netns, "[::]:5353", "pod");
        // Connected sockets: an answer from another address does not come through.
        let asked = |to: &str, tries: u32| {
            let own = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let client = UdpSocket::bind(own).unwrap();
            client.connect(SocketAddr::new(ip(to), 53)).unwrap();
            client.set_read_timeout(Some(SHORT)).unwrap();
            (0..tries).any(|_| {
                let mut answer = [0; 64];
                let sent = client.send(b"?");
                sent.is_ok()
                    && client
                        .recv(&mut answer)
                        .is_ok_and(|_| answer.starts_with(b"pod "))
            })
        };
        for to in ["203.0.113.9", "2001:db8:9::9"] {
            assert!(asked(to, 20), "{to} from the node");
            assert!(within(&out, || asked(to, 20)), "{to} from outside");
            assert!(within(&pod.netns, || asked(to, 20)), "{to} from the pod itself");
        }
        for to in ["198.51.100.1", "2001:db8::1"] {
            assert!(!within(&out, || asked(to, 1)), "{to} is not served");
        }
        node.detach(&pod.id);
        assert!(!within(&out, || asked("203.0.113.9", 1)));
        node.assert_clean();
    });
}

#[test]
fn a_pod_does_not_reach_the_loopback_of_the_node() {
    on_a_node(|node| {
        let pod = node.pod(&id(5));
        node.attach(&pod);
        let socket = UdpSocket::bind("127.0.0.1:7777").unwrap();
        socket.set_read_timeout(Some(SHORT)).unwrap();
        let send = || {
            within(&pod.netns, || {
                let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
                sender.send_to(b"x", "127.0.0.1:7777").unwrap();
            });
            socket.recv_from(&mut [0; 8]).is_ok()
        };
        within(&pod.netns, || {
            shell(
                "sysctl -qw net.ipv4.conf.all.route_localnet=1 && ip addr del 127.0.0.1/8 dev lo;
                   ip route add 127.0.0.0/8 dev eth0 via $(ip -4 route show default | cut -d' ' -f3)",
            );
        });
        assert!(!send());
        // The rule it is: without it the packet comes.
        shell(&format!("nft flush chain inet {} martians", node.table()));
        assert!(send(), "the test itself does not work");
    });
}

#[test]
fn udp_flows_follow_the_pod() {
    on_a_node(|node| {
        let out = outside(node);
        let (mut a, mut b) = (node.pod(&id(6)), node.pod(&id(7)));
        a.ports = vec![port(Protocol::Udp, 53, 5353, None)];
        b.ports = a.ports.clone();
        let _servers = [
            udp_server(&a.netns, "[::]:5353", "a"),
            udp_server(&b.netns, "[::]:5353", "b"),
        ];
        // One client each that keeps its port, from before the first pod.
        let clients = [
            (UdpSocket::bind("127.0.0.1:0").unwrap(), ip("127.0.0.1")),
            (
                within(&out, || UdpSocket::bind("0.0.0.0:0").unwrap()),
                ip("198.51.100.1"),
            ),
            (
                within(&out, || UdpSocket::bind("[::]:0").unwrap()),
                ip("2001:db8::1"),
            ),
        ];
        let ask_all = |expected: Option<&str>| {
            for (client, to) in &clients {
                // On a busy machine an answer may come after the time that silence takes.
                let tries = if expected.is_some() { 20 } else { 1 };
                let mut answers = (0..tries).map(|_| ask_udp(client, *to, 53));
                let answer = answers
                    .find(Result::is_ok)
                    .unwrap_or_else(|| Err(WouldBlock.into()));
                match expected {
                    Some(name) => assert!(
                        answer.as_ref().is_ok_and(|a| a.starts_with(name)),
                        "{to}: {answer:?}, not {name}"
                    ),
                    None => assert!(answer.is_err(), "{to}"),
                }
            }
        };
        node.attach(&node.pod(&id(8)));
        ask_all(None);
        node.attach(&a);
        ask_all(Some("a "));
        node.detach(&a.id);
        node.attach(&b);
        ask_all(Some("b "));
        node.detach(&b.id);
        node.detach(&id(8));
        node.assert_clean();
    });
}

#[test]
fn a_host_port_has_one_pod() {
    on_a_node(|node| {
        let (mut a, mut b) = (node.pod(&id(9)), node.pod(&id(10)));
        a.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
        node.attach(&a);
        b.ports = vec![port(Protocol::Tcp, 8080, 81, Some("127.0.0.1"))];
        let error = node.run(node.network.attach(&b)).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        let message = error.to_string();
        assert!(
            message.contains("8080/tcp") && message.contains(&a.id),
            "{message}"
        );
        // A pod that asks twice for the same gets it, for different things not.
        b.ports = vec![
            port(Protocol::Udp, 8080, 80, None),
            port(Protocol::Udp, 8080, 80, None),
        ];
        node.attach(&b);
        b.ports[1].container_port = 81;
        assert!(node.run(node.network.attach(&b)).is_err());
        node.detach(&a.id);
        node.detach(&b.id);
        node.assert_clean();
    });
}

#[test]
fn without_masquerade_there_are_no_rules() {
    on_a_node_with(
        |config| config.masquerade = false,
        |node| {
            let mut pod = node.pod(&id(11));
            node.attach(&pod);
            assert_eq!(shell("nft list tables"), "");
            pod.ports = vec![port(Protocol::Tcp, 8080, 80, None)];
            let error = node.run(node.network.attach(&pod)).unwrap_err();
            assert!(error.to_string().contains("network.masquerade"), "{error}");
            node.assert_clean();
        },
    );
}
