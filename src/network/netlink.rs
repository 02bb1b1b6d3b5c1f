//! Links, addresses and routes, over rtnetlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
    sync::mpsc,
    thread,
    time::Duration,
};

use netlink_packet_core::{
    DefaultNla, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, BridgePortState, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkProtoInfoBridge,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

pub use super::wire::Error;
use super::{
    subnet::Subnet,
    wire::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, Wire},
};

/// The loopback link has this index in every namespace.
pub const LOOPBACK: u32 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

/// Of the thread that deletes a link, which calls nothing deep.
const STACK: usize = 256 << 10;
/// How often it is looked whether a link that is being deleted is still to be found.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    pub is_bridge: bool,
    /// It is a port of a bridge that passes frames.
    pub forwards: bool,
}

/// A route, as far as the choice of subnets and of the MTU needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// None: the default route.
    pub destination: Option<Subnet>,
    pub link: Option<u32>,
    pub priority: u32,
    /// Learnt by the kernel from router advertisements.
    pub advertised: bool,
}

/// One end of a pair of links.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The end that stays.
    pub name: &'a str,
    /// Index of the bridge it becomes a port of.
    pub master: u32,
    /// Name, hardware address and namespace of the other end.
    pub peer: &'a str,
    pub peer_mac: [u8; 6],
    pub peer_netns: BorrowedFd<'a>,
    pub mtu: u32,
}

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    wire: Wire,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Netlink, Error> {
        Ok(Netlink {
            wire: Wire::open(netlink_sys::protocols::NETLINK_ROUTE, "route")?,
        })
    }

    /// The link of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(link_message(0, name));
        let mut found = None;
        let asked = self.exchange(request, NLM_F_ACK, "look up link", name, |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                found = Some(read_link(message));
            }
        });
        match asked {
            Err(e) if e.errno() == libc::ENODEV => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Every link of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut links = Vec::new();
        self.exchange(request, NLM_F_DUMP, "list links", "of the node", |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                links.push(read_link(message));
            }
        })?;
        Ok(links)
    }

    /// Makes a bridge and sets it up.
    pub fn create_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) -> Result<(), Error> {
        let mut message = up(link_message(0, name));
        message.attributes.extend([
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ]);
        self.create(RouteNetlinkMessage::NewLink(message), "create bridge", name)
    }

    /// Makes both ends at once: one a port of the bridge, the other already in the
    /// pod's namespace. Both are down: an end cannot be up before it has the other.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<(), Error> {
        let mut peer = link_message(0, veth.peer);
        peer.attributes.extend([
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Address(veth.peer_mac.to_vec()),
            LinkAttribute::NetNsFd(veth.peer_netns.as_raw_fd()),
        ]);
        let mut message = link_message(0, veth.name);
        message.attributes.extend([
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Controller(veth.master),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        self.create(RouteNetlinkMessage::NewLink(message), "create veth", veth.name)
    }

    /// Keeps a link from making itself an IPv6 address when it is set up: a port
    /// of a bridge needs none, nor a pod that was given none. (Kernels refuse this at the
    /// link's creation.)
    pub fn set_no_own_address(&mut self, name: &str, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        match self.set(message, "set address mode of", name) {
            // There is no IPv6.
            Err(e) if matches!(e.errno(), libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Ok(()),
            done => done,
        }
    }

    /// Lets the bridge send a frame back out of the port it came from. With
    /// br_netfilter (kube-proxy turns it on) a pod that reaches itself through a
    /// host port or a service needs that.
    pub fn set_hairpin(&mut self, name: &str, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = index;
        let mode = LinkProtoInfoBridge::Other(DefaultNla::new(IFLA_BRPORT_MODE, vec![1]));
        message
            .attributes
            .push(LinkAttribute::ProtoInfoBridge(vec![mode]));
        self.set(message, "set hairpin mode of", name)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, name: &str, index: u32) -> Result<(), Error> {
        let mut message = up(LinkMessage::default());
        message.header.index = index;
        self.set(message, "set up link", name)
    }

    fn set(&mut self, message: LinkMessage, operation: &'static str, name: &str) -> Result<(), Error> {
        let request = RouteNetlinkMessage::SetLink(message);
        self.exchange(request, NLM_F_ACK, operation, name, |_| {})
    }

    /// Deletes a link (of a veth both ends); one that is not there is fine. Returns when
    /// nobody finds it any more, which is after 1 or 2 ms. The kernel answers only when all
    /// of its memory is free, after an RCU barrier that takes 20 to 100 ms: a thread of its
    /// own sits that out, and should it be killed, the kernel does it all the same.
    pub fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        let Some(Link { index, .. }) = self.link(name)? else {
            return Ok(());
        };
        let (say, heard) = mpsc::channel();
        let taken = name.to_owned();
        // By index: whoever gets the name next is not meant.
        let delete = move || {
            let deleted = Netlink::open().and_then(|mut netlink| netlink.delete_index(index, &taken));
            // Nobody waits for it any more, when the link was gone before.
            let _ = say.send(deleted);
        };
        let thread = thread::Builder::new().name("link".into()).stack_size(STACK);
        let started = thread.spawn(delete);
        started.map_err(|error| Error::new("delete link", name, error))?;
        loop {
            match heard.recv_timeout(LOOK_AGAIN) {
                Ok(deleted) => return deleted,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let error = io::Error::other("the thread that does it has ended");
                    return Err(Error::new("delete link", name, error));
                }
            }
            if self.link(name)?.is_none_or(|found| found.index != index) {
                return Ok(());
            }
        }
    }

    fn delete_index(&mut self, index: u32, name: &str) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelLink(link_message(index, name));
        match self.exchange(request, NLM_F_ACK, "delete link", name, |_| {}) {
            Err(e) if e.errno() == libc::ENODEV => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address; one that it has already is fine. IPv6 addresses
    /// skip the detection of duplicates: ours are unique by the records, and are
    /// usable at once.
    pub fn add_address(&mut self, name: &str, index: u32, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![
            AddressAttribute::Address(address),
            AddressAttribute::Local(address),
        ];
        match address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let broadcast = Ipv4Addr::from(u32::from(address) | host);
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
            IpAddr::V6(_) => {
                message.header.flags = AddressHeaderFlags::Nodad;
                message
                    .attributes
                    .push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        let object = format!("{address}/{prefix} to {name}");
        match self.create(RouteNetlinkMessage::NewAddress(message), "add address", &object) {
            Err(e) if e.errno() == libc::EEXIST => Ok(()),
            other => other,
        }
    }

    /// Adds the default route of the gateway's family.
    pub fn add_default_route(&mut self, name: &str, index: u32, gateway: IpAddr) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Gateway(gateway.into()),
            RouteAttribute::Oif(index),
        ];
        let object = format!("via {gateway} on {name}");
        self.create(
            RouteNetlinkMessage::NewRoute(message),
            "add default route",
            &object,
        )
    }

    /// Every address of the namespace, with its prefix.
    pub fn addresses(&mut self) -> Result<Vec<(IpAddr, u8)>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut addresses = Vec::new();
        self.exchange(request, NLM_F_DUMP, "list addresses", "of the node", |answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else {
                return;
            };
            let prefix = message.header.prefix_len;
            for attribute in message.attributes {
                if let AddressAttribute::Address(address) = attribute {
                    addresses.push((address, prefix));
                }
            }
        })?;
        Ok(addresses)
    }

    /// Every unicast route of every table.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let mut routes = Vec::new();
        self.exchange(request, NLM_F_DUMP, "list routes", "of the node", |answer| {
            if let RouteNetlinkMessage::NewRoute(message) = answer
                && message.header.kind == RouteType::Unicast
            {
                routes.push(read_route(message));
            }
        })?;
        Ok(routes)
    }

    fn create(
        &mut self,
        request: RouteNetlinkMessage,
        operation: &'static str,
        object: &str,
    ) -> Result<(), Error> {
        self.exchange(
            request,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            operation,
            object,
            |_| {},
        )
    }

    pub(super) fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        operation: &'static str,
        object: &str,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), Error> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.wire.next();
        let sequence = header.sequence_number;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.wire.exchange(&bytes, sequence, operation, object, |answer| {
            let answer = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer.whole) {
                Ok(answer) => answer,
                // One exotic link of the node must not keep pods from starting.
                Err(_) if flags & NLM_F_DUMP != 0 => return Ok(()),
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e.to_string())),
            };
            if let NetlinkPayload::InnerMessage(inner) = answer.payload {
                each(inner);
            }
            Ok(())
        })
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn link_message(index: u32, name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        master: None,
        is_bridge: false,
        forwards: false,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::LinkInfo(info) => {
                link.is_bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                link.forwards = info.iter().any(|part| match part {
                    LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                        port.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
                    }
                    _ => false,
                });
            }
            _ => {}
        }
    }
    link
}

fn read_route(message: RouteMessage) -> Route {
    let mut route = Route {
        destination: None,
        link: None,
        priority: 0,
        advertised: message.header.protocol == RouteProtocol::Ra,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => {
                let address = match destination {
                    netlink_packet_route::route::RouteAddress::Inet(address) => IpAddr::V4(address),
                    netlink_packet_route::route::RouteAddress::Inet6(address) => IpAddr::V6(address),
                    _ => continue,
                };
                route.destination = Some(Subnet::covering(
                    address,
                    message.header.destination_prefix_length,
                ));
            }
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Priority(priority) => route.priority = priority,
            _ => {}
        }
    }
    route
}
