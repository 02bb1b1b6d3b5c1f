//! What the links of a pod have carried.

use std::path::Path;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};

use super::{
    host::{self, inside, open_netns},
    netlink::{self, LOOPBACK, Netlink},
    wire::NLM_F_DUMP,
};

/// The pod's own link, by the name that CNI and the kubelet give it.
pub const DEFAULT_LINK: &str = "eth0";

/// Totals since the link was made, from inside the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub name: String,
    pub received: Traffic,
    pub sent: Traffic,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Why counters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Step(#[from] host::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// The counters of every link of a pinned network namespace but loopback. None when
/// the namespace is no longer pinned: the pod has been stopped in between. Blocks
/// for a system call or two.
pub fn read(netns: &Path) -> Result<Option<Vec<LinkCounters>>, Error> {
    let opened = match open_netns(netns) {
        Ok(opened) => opened,
        Err(e) if e.is_missing() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // A file that was unpinned and not yet removed is a plain one.
    match inside(&opened, netns, || Ok::<_, Error>(Netlink::open()?.counters()?)) {
        Err(Error::Step(e)) if e.source.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        done => done.map(Some),
    }
}

impl Netlink {
    /// The counters of every link but loopback, in the order of their indices.
    pub fn counters(&mut self) -> Result<Vec<LinkCounters>, netlink::Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut links = Vec::new();
        self.exchange(request, NLM_F_DUMP, "count traffic", "of a pod", |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer
                && message.header.index != LOOPBACK
            {
                links.push(counters(message));
            }
        })?;
        Ok(links)
    }
}

fn counters(message: LinkMessage) -> LinkCounters {
    let mut link = LinkCounters::default();
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Stats64(stats) => {
                link.received = Traffic {
                    bytes: stats.rx_bytes,
                    packets: stats.rx_packets,
                    errors: stats.rx_errors,
                    dropped: stats.rx_dropped,
                };
                link.sent = Traffic {
                    bytes: stats.tx_bytes,
                    packets: stats.tx_packets,
                    errors: stats.tx_errors,
                    dropped: stats.tx_dropped,
                };
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::netns::{self, Wanted};

    #[test]
    fn counters_are_those_of_the_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let want = Wanted {
            user: None,
            net: true,
            ipc: false,
            uts: false,
            hostname: "",
            sysctls: &Default::default(),
        };
        netns::create(dir.path(), &want).unwrap();
        let path = dir.path().join("net");
        // Loopback is not the pod's traffic.
        let fresh = read(&path).unwrap();
        netns::remove(dir.path()).unwrap();
        let own = fresh.unwrap();
        assert!(
            own.iter()
                .all(|link| link.name != "lo" && link.received.bytes == 0),
            "{own:?}"
        );
        assert_eq!(read(&path).unwrap(), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
