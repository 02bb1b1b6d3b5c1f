//! The built-in bridge: what a pod's network is made of when there is no CNI
//! configuration.
//!
//! ```text
//!   pod A (eth0)     pod B (eth0)        addresses of both families, default routes
//!      │ veth           │ veth
//!   ┌──┴────────────────┴──┐
//!   │ berth0, the gateway  │            first address of each subnet
//!   └──────────┬───────────┘
//!    forwarding, masquerade, host ports (one nftables table)
//! ```
//!
//! Order of every attach: claim in the records, links, addresses, routes, host
//! ports; of every detach the reverse. So what is in the kernel is always in the
//! records too, whenever berthd dies.
//!
//! The bridge and the table are made for the first pod and removed with the last
//! one. Attach and detach hold `up` shared while they work, making and removing
//! hold it alone.

mod error;
mod setup;
mod uplink;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

pub use error::Error;
pub use setup::probe;

use super::{
    conntrack,
    host::{inside, open_netns, read_sysctl, sysctl_path, write_sysctl},
    netlink::{Netlink, Veth},
    nftables::{HostPort, Nftables, Table},
    pod::{PodNetwork, PortMapping, Protocol},
    subnet::{Family, Subnet},
};
use crate::{
    config, failpoint,
    instance::Instance,
    store::{
        Store,
        network::{Pool, PortRow, Refused},
    },
};

/// The pod's end of the pair.
const POD_LINK: &str = "eth0";

/// How long the kernel may take to open a port of the bridge, and how often it is asked.
const PORT_PATIENCE: Duration = Duration::from_secs(1);
const PORT_PAUSE: Duration = Duration::from_micros(100);

/// The built-in bridge of one berthd.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    table: String,
    /// As configured; empty: chosen.
    subnets: Vec<Subnet>,
    mtu: u32,
    masquerade: bool,
    seed: [u8; 32],
    preferred: Option<Subnet>,
    store: Arc<Store>,
    up: RwLock<Option<Up>>,
}

/// A bridge that is there.
#[derive(Clone, Debug)]
struct Up {
    /// The primary one first.
    subnets: Vec<Subnet>,
    mtu: u32,
}

/// The pod's side, seen from within.
struct PodEnd {
    netlink: Netlink,
    /// The pod has not turned it off.
    ipv6: bool,
}

impl Bridge {
    /// Checks the configuration; makes nothing.
    pub fn new(config: &config::Network, instance: &Instance, store: Arc<Store>) -> Result<Bridge, Error> {
        let named = match config.bridge.as_str() {
            "" => &instance.bridge,
            name => name,
        };
        // While pods are on a bridge, it keeps its name.
        let name = match store.network_bridge()? {
            Some(name) if store.network_in_use()? => name,
            _ => named.to_owned(),
        };
        if name != named {
            tracing::warn!(
                bridge = name,
                "pods are on this bridge; {named} is used when they are gone"
            );
        }
        let preferred = Subnet::covering(IpAddr::from([10, 88, 0, 0]), 16);
        Ok(Bridge {
            name,
            table: instance.table.clone(),
            subnets: setup::configured(&config.subnets)?,
            mtu: config.mtu,
            masquerade: config.masquerade,
            seed: instance.seed,
            preferred: instance.is_default().then_some(preferred),
            store,
            up: RwLock::new(None),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects the pod. Blocks. `record` is what to remember with the claim.
    /// Gives the pod's addresses, the primary one first.
    pub fn attach(&self, pod: &PodNetwork, record: &str) -> Result<Vec<IpAddr>, Error> {
        match self.connect(pod, record) {
            Ok(ips) => Ok(ips),
            Err(e) => {
                // What cannot be removed now stays recorded; the first error counts.
                if let Err(left) = self.detach(&pod.id) {
                    tracing::warn!(sandbox = pod.id, error = %left, "network of a failed pod is not removed yet");
                }
                Err(e)
            }
        }
    }

    fn connect(&self, pod: &PodNetwork, record: &str) -> Result<Vec<IpAddr>, Error> {
        let netns = open_netns(&pod.netns)?;
        let mut end = inside(&netns, &pod.netns, enter)?;
        let mut netlink = Netlink::open()?;
        let (up, master) = self.hold(&mut netlink)?;
        let up = up.as_ref().ok_or(Error::Gone)?;

        let subnets: Vec<&Subnet> = up
            .subnets
            .iter()
            .filter(|subnet| end.ipv6 || subnet.family() == Family::V4)
            .collect();
        let ips = self.claim(pod, &subnets, record)?;
        let first = ips.first().copied().ok_or_else(|| Error::NoFamily {
            bridge: self.name.clone(),
        })?;

        let name = veth_name(&pod.id);
        netlink.create_veth(&Veth {
            name: &name,
            master,
            peer: POD_LINK,
            peer_mac: mac(first),
            peer_netns: netns.as_fd(),
            mtu: up.mtu,
        })?;
        failpoint::reach("attach to the bridge: link");
        let port = netlink.link(&name)?.ok_or(Error::Gone)?.index;
        netlink.set_no_own_address(&name, port)?;
        netlink.set_hairpin(&name, port)?;
        netlink.set_up(&name, port)?;
        end.configure(&ips, &subnets)?;
        failpoint::reach("attach to the bridge: ports");
        self.serve_ports(&self.host_ports(Some(&pod.id), &up.subnets)?)?;
        await_forwarding(&mut netlink, &name)?;
        Ok(ips)
    }

    /// Records the pod with free addresses and its host ports.
    pub(super) fn claim(
        &self,
        pod: &PodNetwork,
        subnets: &[&Subnet],
        record: &str,
    ) -> Result<Vec<IpAddr>, Error> {
        let mut pools = Vec::new();
        for subnet in subnets {
            let (first, last) = subnet.offsets().ok_or_else(|| Error::too_small(subnet))?;
            let family = subnet.family().number();
            pools.push(Pool { family, first, last });
        }
        let ports = port_rows(pod, subnets)?;
        if !ports.is_empty() && !self.masquerade {
            return Err(Error::PortsOff);
        }
        match self.store.network_claim(&pod.id, record, &pools, &ports)? {
            Ok(offsets) => Ok(subnets
                .iter()
                .zip(offsets)
                .map(|(subnet, offset)| subnet.at(offset))
                .collect()),
            Err(Refused::PortTaken { port, sandbox }) => Err(Error::port_taken(&port, sandbox)),
            Err(Refused::Exhausted { family }) => {
                let of_family = subnets.iter().find(|subnet| subnet.family().number() == family);
                let subnet = of_family.map(ToString::to_string).unwrap_or_default();
                Err(Error::Exhausted { subnet })
            }
        }
    }

    fn serve_ports(&self, ports: &[HostPort]) -> Result<(), Error> {
        if !ports.is_empty() {
            Nftables::open()?.add(&self.table(&[]), ports)?;
            conntrack::forget(ports)?;
        }
        Ok(())
    }

    /// Disconnects a sandbox, by its id alone. Blocks. Idempotent; what is
    /// missing is fine. The bridge goes with the last one.
    pub fn detach(&self, id: &str) -> Result<(), Error> {
        {
            let _up = self.up.read().unwrap_or_else(PoisonError::into_inner);
            let subnets = self.recorded()?;
            let ports = self.host_ports(Some(id), &subnets)?;
            if !ports.is_empty() {
                Nftables::open()?.remove(&self.table(&[]), &ports)?;
                conntrack::forget(&ports)?;
            }
            failpoint::reach("detach from the bridge: link");
            Netlink::open()?.delete_link(&veth_name(id))?;
            self.store.network_release(id)?;
        }
        self.remove_unused()
    }

    /// Removes bridge and table when no sandbox has an address.
    fn remove_unused(&self) -> Result<(), Error> {
        if self.store.network_in_use()? {
            return Ok(());
        }
        let mut up = self.up.write().unwrap_or_else(PoisonError::into_inner);
        if !self.store.network_in_use()? {
            *up = None;
            self.take_down()?;
        }
        Ok(())
    }

    /// Brings bridge and rules back for the recorded pods, or away when there are
    /// none; removes ports of the bridge that nobody in `known` has. Blocks.
    pub fn recover(&self, known: &BTreeSet<String>) -> Result<(), Error> {
        if !self.store.network_in_use()? {
            return self.remove_unused();
        }
        let mut netlink = Netlink::open()?;
        let (_up, master) = self.hold(&mut netlink)?;
        let names: BTreeSet<String> = known.iter().map(|id| veth_name(id)).collect();
        for link in netlink.links()? {
            if link.master == Some(master) && link.name.starts_with("bv") && !names.contains(&link.name) {
                netlink.delete_link(&link.name)?;
            }
        }
        Ok(())
    }

    /// The bridge, made if it is not there, and held: it stays until the guard
    /// goes. Gives its index.
    fn hold(&self, netlink: &mut Netlink) -> Result<(RwLockReadGuard<'_, Option<Up>>, u32), Error> {
        let up = self.up.read().unwrap_or_else(PoisonError::into_inner);
        if up.is_some()
            && let Some(index) = self.present(netlink)?
        {
            return Ok((up, index));
        }
        drop(up);
        let mut up = self.up.write().unwrap_or_else(PoisonError::into_inner);
        let index = match self.present(netlink)? {
            // Another pod has made it in the meantime.
            Some(index) if up.is_some() => index,
            _ => {
                let (made, index) = self.bring_up(netlink)?;
                *up = Some(made);
                index
            }
        };
        Ok((RwLockWriteGuard::downgrade(up), index))
    }

    /// The index of the bridge, if it and its table are there.
    fn present(&self, netlink: &mut Netlink) -> Result<Option<u32>, Error> {
        if self.masquerade && !Nftables::open()?.exists(&self.table(&[]))? {
            return Ok(None);
        }
        Ok(netlink.link(&self.name)?.map(|link| link.index))
    }

    fn table(&self, subnets: &[Subnet]) -> Table {
        Table {
            name: self.table.clone(),
            bridge: self.name.clone(),
            subnets: subnets.to_vec(),
        }
    }

    /// The recorded host ports of one sandbox or of all, with the addresses that
    /// they lead to.
    fn host_ports(&self, sandbox: Option<&str>, subnets: &[Subnet]) -> Result<Vec<HostPort>, Error> {
        let ports = self.store.network_ports(sandbox)?;
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        let addresses = self.store.network_addresses(sandbox)?;
        let mut found = Vec::with_capacity(ports.len());
        for row in &ports {
            let address = addresses
                .iter()
                .find(|a| a.sandbox == row.sandbox && a.family == row.family);
            let subnet = subnets
                .iter()
                .find(|subnet| subnet.family().number() == row.family);
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                .into_iter()
                .find(|protocol| protocol.number() == row.protocol);
            if let (Some(address), Some(subnet), Some(protocol)) = (address, subnet, protocol) {
                found.push(HostPort {
                    protocol,
                    host_ip: row.host_ip.parse().ok(),
                    host_port: row.host_port,
                    pod_ip: subnet.at(address.offset),
                    pod_port: row.pod_port,
                });
            }
        }
        Ok(found)
    }
}

/// Waits until the bridge passes frames to the pod. The kernel opens a port a
/// moment after both of its ends are up, and what is sent before that is lost: the
/// first packet of a pod would come a second late, with the next question for its
/// hardware address.
fn await_forwarding(netlink: &mut Netlink, port: &str) -> Result<(), Error> {
    let begin = Instant::now();
    while !netlink.link(port)?.ok_or(Error::Gone)?.forwards {
        if begin.elapsed() > PORT_PATIENCE {
            tracing::warn!(port, "the bridge does not pass frames to the pod yet");
            break;
        }
        std::thread::sleep(PORT_PAUSE);
    }
    Ok(())
}

/// In the pod's namespace: a socket, and what has to be so before `eth0` is made.
fn enter() -> Result<PodEnd, Error> {
    let ipv6 = ipv6_enabled()?;
    if ipv6 {
        // A neighbour on the bridge must not become the pod's router by an
        // advertisement (CVE-2020-10749).
        let accept = sysctl_path(&["net", "ipv6", "conf", "default", "accept_ra"]);
        if read_sysctl(&accept)?.as_deref() == Some("1") {
            write_sysctl(&accept, "0")?;
        }
    }
    let netlink = Netlink::open()?;
    Ok(PodEnd { netlink, ipv6 })
}

impl PodEnd {
    fn configure(&mut self, ips: &[IpAddr], subnets: &[&Subnet]) -> Result<(), Error> {
        let link = self.netlink.link(POD_LINK)?.ok_or(Error::Gone)?;
        if subnets.iter().all(|subnet| subnet.family() == Family::V4) {
            // An IPv6 address that nobody gave it would be announced to all pods, and let
            // them meet past policies that know the given ones only.
            self.netlink.set_no_own_address(POD_LINK, link.index)?;
        }
        self.netlink.set_up(POD_LINK, link.index)?;
        for (ip, subnet) in ips.iter().zip(subnets) {
            self.netlink
                .add_address(POD_LINK, link.index, *ip, subnet.prefix())?;
        }
        for subnet in subnets {
            self.netlink
                .add_default_route(POD_LINK, link.index, subnet.gateway())?;
        }
        Ok(())
    }
}

/// Whether new links of the calling thread's namespace get IPv6.
fn ipv6_enabled() -> Result<bool, Error> {
    let path = sysctl_path(&["net", "ipv6", "conf", "default", "disable_ipv6"]);
    Ok(read_sysctl(&path)?.as_deref() == Some("0"))
}

/// The rows of the pod's host ports: one for each family that is served.
fn port_rows(pod: &PodNetwork, subnets: &[&Subnet]) -> Result<Vec<PortRow>, Error> {
    let mut rows: Vec<PortRow> = Vec::new();
    for mapping in pod.ports.iter().filter(|mapping| mapping.host_port != 0) {
        let before = rows.len();
        for subnet in subnets {
            let family = subnet.family();
            let host_ip = match mapping.host_ip {
                Some(ip) if Family::of(ip) != family => continue,
                Some(ip) if !ip.is_unspecified() => ip.to_string(),
                _ => String::new(),
            };
            let row = PortRow {
                protocol: mapping.protocol.number(),
                family: family.number(),
                host_port: mapping.host_port,
                host_ip,
                pod_port: mapping.container_port,
                sandbox: pod.id.clone(),
            };
            if let Some(twin) = rows.iter().find(|other| collide(other, &row)) {
                if *twin != row {
                    return Err(Error::port_taken(&row, pod.id.clone()));
                }
                continue;
            }
            rows.push(row);
        }
        if rows.len() == before && !rows.iter().any(|row| row.host_port == mapping.host_port) {
            return Err(no_such_family(mapping));
        }
    }
    Ok(rows)
}

/// As the records decide it between pods.
fn collide(a: &PortRow, b: &PortRow) -> bool {
    let key = |row: &PortRow| (row.protocol, row.family, row.host_port);
    key(a) == key(b) && (a.host_ip == b.host_ip || a.host_ip.is_empty() || b.host_ip.is_empty())
}

fn no_such_family(mapping: &PortMapping) -> Error {
    Error::PortFamily {
        host_ip: mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        port: mapping.host_port,
    }
}

/// The node's end of a sandbox's pair, from the id alone: "bv" and eleven
/// digits of the id (of its digest, when it is not hexadecimal).
pub fn veth_name(id: &str) -> String {
    let plain = id.len() >= 11
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let digits: String = if plain {
        id.chars().take(11).collect()
    } else {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(id.as_bytes());
        let all: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        all.chars().take(11).collect()
    };
    format!("bv{digits}")
}

/// A locally administered hardware address made from the IP address: when that
/// is used again, what neighbours remember of it stays right.
fn mac(ip: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    [0x0a, 0x58, a, b, c, d]
}
