//! The way out of the node: its MTU, and forwarding towards it.

use super::Error;
use crate::network::{
    host::{read_sysctl, sysctl_path, write_sysctl},
    netlink::{Netlink, Route},
};

/// The MTU of Ethernet, when nothing says otherwise.
const DEFAULT_MTU: u32 = 1500;

/// The MTU of the link that the default route leaves by.
pub fn mtu(netlink: &mut Netlink) -> Result<u32, Error> {
    let routes = netlink.routes()?;
    let defaults = routes
        .iter()
        .filter(|route| route.destination.is_none() && route.link.is_some());
    let Some(Route {
        link: Some(index), ..
    }) = defaults.min_by_key(|route| route.priority)
    else {
        return Ok(DEFAULT_MTU);
    };
    let link = netlink.links()?.into_iter().find(|link| link.index == *index);
    Ok(link.map_or(DEFAULT_MTU, |link| link.mtu))
}

/// Lets the node forward IPv4.
pub fn forward_v4() -> Result<(), Error> {
    let path = sysctl_path(&["net", "ipv4", "ip_forward"]);
    if read_sysctl(&path)?.as_deref() == Some("0") {
        write_sysctl(&path, "1")?;
    }
    Ok(())
}

/// Lets the node forward IPv6. A node that forwards throws away what it learnt
/// from routers unless a link's `accept_ra` is 2: a node that got its default
/// route so would lose it. So links with such routes are set to 2 first.
pub fn forward_v6(netlink: &mut Netlink) -> Result<(), Error> {
    let path = sysctl_path(&["net", "ipv6", "conf", "all", "forwarding"]);
    if read_sysctl(&path)?.as_deref() != Some("0") {
        return Ok(());
    }
    let routes = netlink.routes()?;
    let learnt: Vec<u32> = routes
        .iter()
        .filter(|it| it.advertised)
        .filter_map(|it| it.link)
        .collect();
    if !learnt.is_empty() {
        for link in netlink
            .links()?
            .iter()
            .filter(|link| learnt.contains(&link.index))
        {
            let accept = sysctl_path(&["net", "ipv6", "conf", &link.name, "accept_ra"]);
            if read_sysctl(&accept)?.as_deref() == Some("1") {
                write_sysctl(&accept, "2")?;
            }
        }
    }
    write_sysctl(&path, "1")?;
    Ok(())
}
