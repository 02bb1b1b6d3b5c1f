//! Forgetting UDP flows.
//!
//! Addresses are translated when the kernel first sees a flow, and it remembers
//! the outcome for as long as packets keep coming. A UDP client that keeps its
//! port would go on talking to nobody after a host port came, or to a pod that
//! has gone. So flows to host ports are forgotten when these change; TCP clients
//! find out by themselves.

use std::net::IpAddr;

use super::{
    netlink::Netlink,
    nftables::HostPort,
    pod::Protocol,
    subnet::{Family, bytes},
    wire::{Attributes, Error, HEADER, NLM_F_ACK, NLM_F_DUMP, Wire, attributes_of, put},
};

// linux/netfilter/nfnetlink_conntrack.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// A header of nfnetlink: family, version, resource.
const FAMILY_HEADER: usize = 4;

/// Forgets the flows to these host ports, in the calling thread's namespace.
pub fn forget(ports: &[HostPort]) -> Result<(), Error> {
    let udp: Vec<&HostPort> = ports
        .iter()
        .filter(|port| port.protocol == Protocol::Udp)
        .collect();
    if udp.is_empty() {
        return Ok(());
    }
    let own: Vec<IpAddr> = Netlink::open()?
        .addresses()?
        .into_iter()
        .map(|(address, _)| address)
        .collect();
    let mut wire = Wire::open(netlink_sys::protocols::NETLINK_NETFILTER, "netfilter")?;
    for family in Family::BOTH {
        let ports: Vec<&HostPort> = udp
            .iter()
            .copied()
            .filter(|port| Family::of(port.pod_ip) == family)
            .collect();
        if ports.is_empty() {
            continue;
        }
        let own: Vec<&IpAddr> = own
            .iter()
            .filter(|address| Family::of(**address) == family)
            .collect();
        for tuple in flows(&mut wire, family, &ports, &own)? {
            delete(&mut wire, family, &tuple)?;
        }
    }
    Ok(())
}

/// The original tuples, as the kernel encodes them, of matching flows.
fn flows(
    wire: &mut Wire,
    family: Family,
    ports: &[&HostPort],
    own: &[&IpAddr],
) -> Result<Vec<Vec<u8>>, Error> {
    let sequence = wire.next();
    let mut request = Vec::new();
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    put(&mut request, kind, NLM_F_DUMP, sequence, &family_header(family));
    let mut found = Vec::new();
    let listed = wire.exchange(&request, sequence, "list", "tracked connections", |answer| {
        let body = answer.whole.get(HEADER + FAMILY_HEADER..).unwrap_or_default();
        for (kind, tuple) in attributes_of(body) {
            if kind == CTA_TUPLE_ORIG && matches(tuple, ports, own) {
                found.push(tuple.to_vec());
            }
        }
        Ok(())
    });
    match listed {
        // A kernel without this interface: flows end by their own time-outs.
        Err(e) if matches!(e.errno(), libc::EINVAL | libc::EOPNOTSUPP) => Ok(Vec::new()),
        other => other.map(|()| found),
    }
}

/// A UDP flow to an address of the node, at one of the ports.
fn matches(tuple: &[u8], ports: &[&HostPort], own: &[&IpAddr]) -> bool {
    let (mut destination, mut protocol, mut port) = (&[][..], &[][..], &[][..]);
    for (kind, nested) in attributes_of(tuple) {
        for (part, value) in attributes_of(nested) {
            match (kind, part) {
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => destination = value,
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = value,
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => port = value,
                _ => {}
            }
        }
    }
    let served = |it: &&HostPort| {
        port == it.host_port.to_be_bytes() && it.host_ip.is_none_or(|ip| destination == bytes(ip))
    };
    protocol == [Protocol::Udp.number()]
        && ports.iter().any(served)
        && own.iter().any(|address| destination == bytes(**address))
}

fn delete(wire: &mut Wire, family: Family, tuple: &[u8]) -> Result<(), Error> {
    let sequence = wire.next();
    let mut body = family_header(family).to_vec();
    body.extend(
        Attributes::new()
            .bytes(CTA_TUPLE_ORIG | Attributes::NESTED, tuple)
            .as_bytes(),
    );
    let mut request = Vec::new();
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
    put(&mut request, kind, NLM_F_ACK, sequence, &body);
    match wire.exchange(&request, sequence, "forget", "tracked connection", |_| Ok(())) {
        Err(e) if e.errno() == libc::ENOENT => Ok(()),
        done => done,
    }
}

fn family_header(family: Family) -> [u8; FAMILY_HEADER] {
    match family {
        Family::V4 => [2, 0, 0, 0],
        Family::V6 => [10, 0, 0, 0],
    }
}
