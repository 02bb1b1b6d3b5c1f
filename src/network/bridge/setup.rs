//! Making the bridge for the first pod, and removing it after the last one.

use std::{fs::File, path::Path, thread, time::Duration};

use rustix::fs::{FlockOperation, flock};

use super::{Bridge, Error, Up, ipv6_enabled, mac, uplink};
use crate::{
    network::{
        host::{self, OWN_NETNS, in_thread, sysctl_path, write_sysctl},
        netlink::Netlink,
        nftables::{Nftables, Table},
        subnet::{Family, Subnet, choose_v4, choose_v6, is_free},
    },
    store::network::SubnetRow,
    sys::unshare::unshare,
};

/// How often and how long apart the choice of subnets tries to be alone.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The setting that holds what the cluster gave this node.
const POD_CIDR: &str = "pod cidr";

fn split(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The subnets of the configuration: at most one of each family.
pub fn configured(texts: &[String]) -> Result<Vec<Subnet>, Error> {
    let mut subnets: Vec<Subnet> = Vec::new();
    for text in texts {
        let subnet: Subnet = text.parse().map_err(|message| Error::Config { message })?;
        if subnet.offsets().is_none() {
            return Err(Error::too_small(&subnet));
        }
        if let Some(other) = subnets.iter().find(|other| other.family() == subnet.family()) {
            let message = format!("{other} and {subnet} are of one family: give one of each");
            return Err(Error::Config { message });
        }
        subnets.push(subnet);
    }
    Ok(subnets)
}

/// Whether this kernel has what the bridge needs: it is made once, with a pair of
/// links and a table, in a network namespace that is thrown away.
pub fn probe(masquerade: bool) -> Result<(), Error> {
    in_thread(Path::new("a trial of the bridge"), || {
        unshare(true, false, false)
            .map_err(|e| host::Error::new("make a network namespace for", "a trial of the bridge", e))?;
        let mut netlink = Netlink::open()?;
        netlink.create_bridge("trial", [0x0a, 0x58, 0, 0, 0, 1], 1500)?;
        let master = netlink.link("trial")?.ok_or(Error::Gone)?.index;
        let here = host::open_netns(Path::new(OWN_NETNS))?;
        netlink.create_veth(&super::Veth {
            name: "bvtrial",
            master,
            peer: super::POD_LINK,
            peer_mac: [0x0a, 0x58, 0, 0, 0, 2],
            peer_netns: std::os::fd::AsFd::as_fd(&here),
            mtu: 1500,
        })?;
        if masquerade {
            let table = Table {
                name: "trial".into(),
                bridge: "trial".into(),
                subnets: configured(&["10.88.0.0/16".into(), "fd00::/64".into()])?,
            };
            Nftables::open()?.install(&table, &[])?;
        }
        Ok(())
    })
}

impl Bridge {
    /// Makes what is missing of bridge, addresses, settings and table. Gives the
    /// bridge's index. The caller holds `up` alone.
    pub(super) fn bring_up(&self, netlink: &mut Netlink) -> Result<(Up, u32), Error> {
        let in_use = self.store.network_in_use()?;
        let made = self.make(netlink, in_use);
        if made.is_err() && !in_use {
            // The first error is the one to tell.
            let _ = self.take_down();
        }
        made
    }

    fn make(&self, netlink: &mut Netlink, in_use: bool) -> Result<(Up, u32), Error> {
        let _alone = lock()?;
        let ours = self.store.network_bridge()?.as_deref() == Some(&self.name);
        if let Some(link) = netlink.link(&self.name)? {
            if !ours || !link.is_bridge {
                return Err(Error::NotOurs { name: link.name });
            }
            if !in_use {
                // Left by a berthd that died between its two last steps.
                netlink.delete_link(&self.name)?;
            }
        }
        let subnets = if in_use {
            self.recorded()?
        } else {
            self.decide(netlink)?
        };
        let gateway = subnets.first().ok_or(Error::NoSubnet)?.gateway();
        let mtu = if self.mtu == 0 {
            uplink::mtu(netlink)?
        } else {
            self.mtu
        };
        if self.masquerade {
            // Before `route_localnet`: the table has the rule that makes it safe.
            let ports = self.host_ports(None, &subnets)?;
            Nftables::open()?.install(&self.table(&subnets), &ports)?;
        }
        let link = match netlink.link(&self.name)? {
            Some(link) => link,
            None => {
                self.store.network_set_bridge(Some(&self.name))?;
                netlink.create_bridge(&self.name, mac(gateway), mtu)?;
                netlink.link(&self.name)?.ok_or(Error::Gone)?
            }
        };
        self.set_sysctls(netlink, &subnets)?;
        for subnet in &subnets {
            netlink.add_address(&self.name, link.index, subnet.gateway(), subnet.prefix())?;
        }
        // Of a bridge that was there already: what it has.
        let mtu = if link.mtu == 0 { mtu } else { link.mtu };
        Ok((Up { subnets, mtu }, link.index))
    }

    /// Removes bridge and table. The caller holds `up` alone. Settings of the
    /// whole node (forwarding) stay: others may count on them by now.
    pub(super) fn take_down(&self) -> Result<(), Error> {
        if let Some(name) = self.store.network_bridge()? {
            let mut netlink = Netlink::open()?;
            if netlink.link(&name)?.is_some_and(|link| link.is_bridge) {
                netlink.delete_link(&name)?;
            }
            self.store.network_set_bridge(None)?;
        }
        if self.masquerade {
            Nftables::open()?.delete(&self.table(&[]))?;
        }
        Ok(())
    }

    /// The recorded subnets, the primary one first.
    pub(super) fn recorded(&self) -> Result<Vec<Subnet>, Error> {
        let rows = self.store.network_subnets()?;
        let parse = |row: SubnetRow| {
            row.subnet
                .parse()
                .map_err(|_| Error::Recorded { subnet: row.subnet })
        };
        rows.into_iter().map(parse).collect()
    }

    /// Takes the subnets of the node that the cluster gave (UpdateRuntimeConfig),
    /// separated by commas, from the next time on that no pod is there.
    pub fn set_pod_cidr(&self, text: &str) -> Result<(), Error> {
        configured(&split(text)).map_err(|error| match error {
            Error::Config { message } => Error::PodCidr { message },
            other => other,
        })?;
        Ok(self.store.put_setting(POD_CIDR, text)?)
    }

    /// The subnets that the cluster gave, if it did.
    pub fn pod_cidrs(&self) -> Result<Vec<String>, Error> {
        Ok(split(&self.store.setting(POD_CIDR, "")?))
    }

    /// With no pod there: the configured subnets, else those that the cluster gave,
    /// else the recorded ones as far as they are still free, else new ones.
    fn decide(&self, netlink: &mut Netlink) -> Result<Vec<Subnet>, Error> {
        let recorded = self.recorded()?;
        let ipv6 = ipv6_enabled()?;
        let mut subnets = self.subnets.clone();
        if subnets.is_empty() {
            subnets = configured(&self.pod_cidrs()?)?;
        }
        let given = !subnets.is_empty();
        subnets.retain(|subnet| ipv6 || subnet.family() == Family::V4);
        if !given {
            let taken = taken(netlink)?;
            for family in Family::BOTH
                .into_iter()
                .filter(|family| ipv6 || *family == Family::V4)
            {
                let known = recorded
                    .iter()
                    .find(|it| it.family() == family && is_free(it, &taken));
                let chosen = known.copied().or_else(|| match family {
                    Family::V4 => choose_v4(&self.seed, self.preferred, &taken),
                    Family::V6 => choose_v6(&self.seed, &taken),
                });
                subnets.push(chosen.ok_or(Error::NoSubnet)?);
            }
        }
        if subnets != recorded {
            let row = |subnet: &Subnet| SubnetRow {
                family: subnet.family().number(),
                subnet: subnet.to_string(),
            };
            let rows: Vec<SubnetRow> = subnets.iter().map(row).collect();
            self.store.network_set_subnets(&rows)?;
        }
        Ok(subnets)
    }

    fn set_sysctls(&self, netlink: &mut Netlink, subnets: &[Subnet]) -> Result<(), Error> {
        let of_bridge = |family, key| sysctl_path(&["net", family, "conf", &self.name, key]);
        let has = |family| subnets.iter().any(|subnet| subnet.family() == family);
        if has(Family::V4) {
            if self.masquerade {
                write_sysctl(&of_bridge("ipv4", "route_localnet"), "1")?;
            }
            uplink::forward_v4()?;
        }
        if has(Family::V6) {
            // A pod must not become the node's router by an advertisement
            // (CVE-2020-10749).
            write_sysctl(&of_bridge("ipv6", "accept_ra"), "0")?;
            // While its link-local address is tentative (RFC 4862: up to 2 s) a bridge
            // asks for no neighbour, and what comes from outside never reaches the
            // first pod. Its hardware address is its own: there is nothing to detect.
            write_sysctl(&of_bridge("ipv6", "accept_dad"), "0")?;
            uplink::forward_v6(netlink)?;
        }
        Ok(())
    }
}

/// What the node's addresses and routes take.
fn taken(netlink: &mut Netlink) -> Result<Vec<Subnet>, Error> {
    let mut taken: Vec<Subnet> = netlink
        .addresses()?
        .into_iter()
        .map(|(address, prefix)| Subnet::covering(address, prefix))
        .collect();
    taken.extend(
        netlink
            .routes()?
            .into_iter()
            .filter_map(|route| route.destination),
    );
    // The halves of the default route, as VPNs set them, say nothing.
    taken.retain(|subnet| subnet.prefix() > 1);
    Ok(taken)
}

/// Several berthd choose subnets one after the other, each seeing the addresses
/// that the others have set. What is locked is the network namespace itself.
/// Whoever opens its file could hold the lock, so it is not waited for for ever.
fn lock() -> Result<File, Error> {
    let failed = |e| host::Error::new("lock network namespace", OWN_NETNS, e);
    let file = File::open(OWN_NETNS).map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            Err(e) => return Err(failed(e.into()).into()),
        }
    }
    tracing::warn!("somebody keeps the network namespace locked; subnets are chosen without the lock");
    Ok(file)
}
