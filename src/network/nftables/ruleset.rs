//! Our table: masquerade for pods that leave the node, host ports by maps.
//!
//! As `nft list table inet berth` shows it (and the tests hold it so):
//!
//! ```text
//! table inet berth {
//!     map ports_v4 { type inet_proto . inet_service : ipv4_addr . inet_service }
//!     map bound_v4 { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service }
//!     set targets_v4 { type inet_proto . ipv4_addr . inet_service }
//!     (and the same for v6)
//!     chain martians {
//!         type filter hook prerouting priority raw; policy accept;
//!         iifname "berth0" ip daddr 127.0.0.0/8 drop
//!     }
//!     chain hostports {
//!         dnat ip to meta l4proto . ip daddr . th dport map @bound_v4
//!         meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports_v4
//!     }
//!     chain prerouting {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         ip daddr 127.0.0.0/8 return
//!         fib daddr type local jump hostports
//!     }
//!     chain output {
//!         type nat hook output priority -100; policy accept;
//!         ip6 daddr ::1 return
//!         fib daddr type local jump hostports
//!     }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         oifname "berth0" ip saddr 127.0.0.0/8 masquerade
//!         ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 ip daddr != 224.0.0.0/4 masquerade
//!         ip saddr 10.88.0.0/16 ct status dnat meta l4proto . ip daddr . th dport @targets_v4 masquerade
//!     }
//! }
//! ```
//!
//! However many pods there are, a packet meets these rules and two lookups; a
//! pod adds and removes elements only.
//!
//! - `martians`: `route_localnet` on the bridge (127.0.0.1:PORT of the node leads
//!   to a pod) would let a pod reach what listens on the node's loopback
//!   (CVE-2020-8558). Answers to our own connections have the bridge's address
//!   when they come in; nothing with a loopback destination is honest there.
//! - `prerouting` leaves 127.0.0.0/8 alone: a neighbour on the node's own network
//!   could else reach a host port that is bound to 127.0.0.1.
//! - `[::1]:PORT` does not lead to a pod: IPv6 has no `route_localnet`, the
//!   kernel drops what would have to leave with that source.
//! - The last rule: a pod that comes to a pod of the same bridge through a host
//!   port must see the answer come from there, so its source is hidden.
//! - Nothing is accepted in `forward`: where the node's own firewall drops what
//!   is forwarded, its owner has to let the bridge through, as with the
//!   `bridge` plugin of CNI. A firewall is not ours to open.

use std::net::IpAddr;

use super::{
    expression::{End, Is, Rule, value},
    message::{Batch, Verb},
};
use crate::network::{
    pod::Protocol,
    subnet::{Family, Subnet, bytes},
    wire::Attributes,
};

/// What the table is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub bridge: String,
    pub subnets: Vec<Subnet>,
}

/// One host port, of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: Protocol,
    /// None: every address of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub pod_ip: IpAddr,
    pub pod_port: u16,
}

/// The sets of the table, of which each family has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// Host ports on every address of the node: where they lead.
    Ports,
    /// Host ports on one address.
    Bound,
    /// Where host ports lead.
    Targets,
}

impl Set {
    fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Set::Ports, Family::V4) => "ports_v4",
            (Set::Ports, Family::V6) => "ports_v6",
            (Set::Bound, Family::V4) => "bound_v4",
            (Set::Bound, Family::V6) => "bound_v6",
            (Set::Targets, Family::V4) => "targets_v4",
            (Set::Targets, Family::V6) => "targets_v6",
        }
    }
}

/// Elements in one message, so that it stays far below the 64 KiB of a netlink
/// attribute.
const ELEMENTS: usize = 256;
/// Data types of nft(8), 6 bits each in a concatenation.
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;
const SET_IS_MAP: u32 = 8;

impl Table {
    /// Makes the table anew, whatever was in it, with these ports.
    pub fn install(&self, ports: &[HostPort]) -> Batch {
        let mut batch = Batch::default();
        let table = || Attributes::new().text(1, &self.name);
        // Deleting one that may not exist: it is made first.
        batch.push(Verb::NewTable, table());
        batch.push(Verb::DeleteTable, table());
        batch.push(Verb::NewTable, table());
        self.sets(&mut batch);
        self.chain(&mut batch, "martians", Some(("filter", 0, -300)));
        self.chain(&mut batch, "hostports", None);
        self.chain(&mut batch, "prerouting", Some(("nat", 0, -100)));
        self.chain(&mut batch, "output", Some(("nat", 3, -100)));
        self.chain(&mut batch, "postrouting", Some(("nat", 4, 100)));
        self.host_port_rules(&mut batch);
        self.postrouting_rules(&mut batch);
        self.elements(&mut batch, Verb::NewElements, ports);
        batch
    }

    /// Deletes the table.
    pub fn delete(&self) -> Batch {
        let mut batch = Batch::default();
        batch.push(Verb::DeleteTable, Attributes::new().text(1, &self.name));
        batch
    }

    pub fn add(&self, ports: &[HostPort]) -> Batch {
        let mut batch = Batch::default();
        self.elements(&mut batch, Verb::NewElements, ports);
        batch
    }

    pub fn remove(&self, ports: &[HostPort]) -> Batch {
        let mut batch = Batch::default();
        self.elements(&mut batch, Verb::DeleteElements, ports);
        batch
    }

    /// As [`Table::remove`], each element in a batch of its own.
    pub fn remove_one(&self, port: &HostPort) -> Vec<Batch> {
        let all = self.remove(std::slice::from_ref(port));
        all.into_single()
    }

    fn sets(&self, batch: &mut Batch) {
        for (family, address_type, length) in [(Family::V4, 7, 4), (Family::V6, 8, 16)] {
            let port = INET_PROTO << 6 | INET_SERVICE;
            let bound = (INET_PROTO << 6 | address_type) << 6 | INET_SERVICE;
            let target = (address_type << 6 | INET_SERVICE, length + 4);
            self.set(batch, Set::Ports.name(family), (port, 8), Some(target));
            self.set(batch, Set::Bound.name(family), (bound, length + 8), Some(target));
            self.set(batch, Set::Targets.name(family), (bound, length + 8), None);
        }
    }

    /// `key` and `data`: type and length.
    fn set(&self, batch: &mut Batch, name: &str, key: (u32, u32), data: Option<(u32, u32)>) {
        let mut set = Attributes::new()
            .text(1, &self.name)
            .text(2, name)
            .number(3, data.map_or(0, |_| SET_IS_MAP))
            .number(4, key.0)
            .number(5, key.1);
        if let Some((kind, length)) = data {
            set = set.number(6, kind).number(7, length);
        }
        // The id is for references inside the batch; we refer by name.
        batch.push(Verb::NewSet, set.number(10, 1));
    }

    /// `base`: type, hook and priority.
    fn chain(&self, batch: &mut Batch, name: &str, base: Option<(&str, u32, i32)>) {
        let mut chain = Attributes::new().text(1, &self.name).text(3, name);
        if let Some((kind, hook, priority)) = base {
            let hook = Attributes::new()
                .number(1, hook)
                .bytes(2, &priority.to_be_bytes());
            chain = chain.nested(4, &hook).number(5, 1).text(7, kind);
        }
        batch.push(Verb::NewChain, chain);
    }

    fn rule(&self, batch: &mut Batch, chain: &str, rule: Rule) {
        let attributes = Attributes::new()
            .text(1, &self.name)
            .text(2, chain)
            .nested(4, &rule.into_attributes());
        batch.push(Verb::NewRule, attributes);
    }

    fn host_port_rules(&self, batch: &mut Batch) {
        let loopback_v4 = Subnet::covering(IpAddr::from([127, 0, 0, 0]), 8);
        let loopback_v6 = Subnet::covering(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), 128);
        let to = |family: Family, subnet: &Subnet| {
            Rule::new()
                .family(family)
                .address(End::Destination, Is::Equal, subnet)
        };
        let martian = Rule::new().came_by(&self.bridge).family(Family::V4);
        self.rule(
            batch,
            "martians",
            martian.address(End::Destination, Is::Equal, &loopback_v4).drop(),
        );
        for family in Family::BOTH {
            for (set, address) in [(Set::Bound, true), (Set::Ports, false)] {
                let rule = Rule::new().family(family).load_key(family, address);
                self.rule(batch, "hostports", rule.translate_by(set.name(family), family));
            }
        }
        self.rule(batch, "prerouting", to(Family::V4, &loopback_v4).give_back());
        self.rule(batch, "output", to(Family::V6, &loopback_v6).give_back());
        for chain in ["prerouting", "output"] {
            self.rule(batch, chain, Rule::new().goes_to_the_node().jump("hostports"));
        }
    }

    fn postrouting_rules(&self, batch: &mut Batch) {
        let loopback = Subnet::covering(IpAddr::from([127, 0, 0, 0]), 8);
        let from_loopback = Rule::new().leaves_by(&self.bridge).family(Family::V4);
        self.rule(
            batch,
            "postrouting",
            from_loopback
                .address(End::Source, Is::Equal, &loopback)
                .masquerade(),
        );
        for subnet in &self.subnets {
            let family = subnet.family();
            let multicast = match family {
                Family::V4 => Subnet::covering(IpAddr::from([224, 0, 0, 0]), 4),
                Family::V6 => Subnet::covering(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
            };
            let from = || Rule::new().family(family).address(End::Source, Is::Equal, subnet);
            let leaving = from().address(End::Destination, Is::NotEqual, subnet).address(
                End::Destination,
                Is::NotEqual,
                &multicast,
            );
            self.rule(batch, "postrouting", leaving.masquerade());
            let back = from().was_translated().load_key(family, true);
            self.rule(
                batch,
                "postrouting",
                back.found_in(Set::Targets.name(family)).masquerade(),
            );
        }
    }

    fn elements(&self, batch: &mut Batch, verb: Verb, ports: &[HostPort]) {
        for family in Family::BOTH {
            let ours = || ports.iter().filter(move |port| Family::of(port.pod_ip) == family);
            let any = ours().filter(|port| port.host_ip.is_none());
            let mapped = any.map(|port| (key(port.protocol, None, port.host_port), Some(target(port))));
            self.put(batch, verb, Set::Ports.name(family), mapped.collect());
            let bound = ours().filter(|port| port.host_ip.is_some());
            let mapped = bound.map(|port| {
                (
                    key(port.protocol, port.host_ip, port.host_port),
                    Some(target(port)),
                )
            });
            self.put(batch, verb, Set::Bound.name(family), mapped.collect());
            // Two host ports may lead to one port of the pod.
            let mut targets: Vec<_> = ours()
                .map(|port| (key(port.protocol, Some(port.pod_ip), port.pod_port), None))
                .collect();
            targets.sort();
            targets.dedup();
            self.put(batch, verb, Set::Targets.name(family), targets);
        }
    }

    fn put(&self, batch: &mut Batch, verb: Verb, set: &str, elements: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        for part in elements.chunks(ELEMENTS) {
            let list = part.iter().fold(Attributes::new(), |list, (key, data)| {
                let mut element = Attributes::new().nested(1, &value(key));
                if let Some(data) = data {
                    element = element.nested(2, &value(data));
                }
                list.nested(1, &element)
            });
            let attributes = Attributes::new()
                .text(1, &self.name)
                .text(2, set)
                .nested(3, &list);
            batch.push(verb, attributes);
        }
    }
}

/// Protocol, address and port, each padded to whole registers.
fn key(protocol: Protocol, address: Option<IpAddr>, port: u16) -> Vec<u8> {
    let mut key = vec![protocol.number(), 0, 0, 0];
    key.extend(address.map(bytes).unwrap_or_default());
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn target(port: &HostPort) -> Vec<u8> {
    let mut target = bytes(port.pod_ip);
    target.extend(port.pod_port.to_be_bytes());
    target.extend([0, 0]);
    target
}
