//! Expressions: the instructions that rules are made of.
//!
//! A rule runs its expressions from left to right and ends at the first one that
//! does not match. Data is in 4-byte registers (numbers 8 to 23); the names and
//! numbers are those of linux/netfilter/nf_tables.h.

use crate::network::{
    subnet::{Family, Subnet, bytes},
    wire::Attributes,
};

/// The first data register: most expressions use only this one.
const REG: u32 = 8;
/// Register of the verdict.
const REG_VERDICT: u32 = 0;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const CT_STATUS: u32 = 2;
/// Conntrack: the destination was translated (IPS_DST_NAT).
const STATUS_DNAT: u32 = 0x20;
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NAT_DNAT: u32 = 1;
const NF_DROP: i32 = 0;
const NFT_RETURN: i32 = -5;
const NFT_JUMP: i32 = -3;

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    Equal,
    NotEqual,
}

/// Which address of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// The expressions of one rule.
#[derive(Debug, Default)]
pub struct Rule(Attributes);

impl Rule {
    pub fn new() -> Rule {
        Rule::default()
    }

    pub fn into_attributes(self) -> Attributes {
        self.0
    }

    /// The packet came in by this link.
    pub fn came_by(self, link: &str) -> Rule {
        self.meta(META_IIFNAME, REG).compare(Is::Equal, &link_name(link))
    }

    /// The packet leaves by this link.
    pub fn leaves_by(self, link: &str) -> Rule {
        self.meta(META_OIFNAME, REG).compare(Is::Equal, &link_name(link))
    }

    pub fn family(self, family: Family) -> Rule {
        let number: u8 = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        self.meta(META_NFPROTO, REG).compare(Is::Equal, &[number])
    }

    /// The packet's address is (not) in the subnet. The family must have been
    /// asked for before.
    pub fn address(self, end: End, is: Is, subnet: &Subnet) -> Rule {
        let length = address_length(subnet.family());
        self.payload(BASE_NETWORK, address_offset(subnet.family(), end), length, REG)
            .and(&subnet.mask())
            .compare(is, &bytes(subnet.network()))
    }

    /// The packet's destination is an address of the node.
    pub fn goes_to_the_node(self) -> Rule {
        let fib = Attributes::new()
            .number(1, REG)
            .number(2, FIB_ADDRTYPE)
            .number(3, FIB_DADDR);
        self.expression("fib", &fib)
            .compare(Is::Equal, &RTN_LOCAL.to_ne_bytes())
    }

    /// The connection's destination was translated, by whomever.
    pub fn was_translated(self) -> Rule {
        let ct = Attributes::new().number(1, REG).number(2, CT_STATUS);
        self.expression("ct", &ct)
            .and(&STATUS_DNAT.to_ne_bytes())
            .compare(Is::NotEqual, &[0; 4])
    }

    /// Loads protocol, destination address (when `address`) and destination port
    /// side by side: the key of the sets.
    pub fn load_key(self, family: Family, address: bool) -> Rule {
        let mut rule = self.meta(META_L4PROTO, REG);
        let mut port = REG + 1;
        if address {
            let length = address_length(family);
            rule = rule.payload(
                BASE_NETWORK,
                address_offset(family, End::Destination),
                length,
                REG + 1,
            );
            port += length / 4;
        }
        rule.payload(BASE_TRANSPORT, 2, 2, port)
    }

    /// The loaded key is in the set.
    pub fn found_in(self, set: &str) -> Rule {
        self.expression("lookup", &Attributes::new().text(1, set).number(2, REG))
    }

    /// Translates the destination to address and port that the map has for the
    /// loaded key.
    pub fn translate_by(self, map: &str, family: Family) -> Rule {
        let lookup = Attributes::new().text(1, map).number(2, REG).number(3, REG);
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let nat = Attributes::new()
            .number(1, NAT_DNAT)
            .number(2, number)
            .number(3, REG)
            .number(5, REG + address_length(family) / 4);
        self.expression("lookup", &lookup).expression("nat", &nat)
    }

    /// The source becomes the address of the link that the packet leaves by.
    pub fn masquerade(self) -> Rule {
        self.expression("masq", &Attributes::new())
    }

    pub fn drop(self) -> Rule {
        self.verdict(NF_DROP, None)
    }

    pub fn give_back(self) -> Rule {
        self.verdict(NFT_RETURN, None)
    }

    pub fn jump(self, chain: &str) -> Rule {
        self.verdict(NFT_JUMP, Some(chain))
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Rule {
        let mut verdict = Attributes::new().bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict = verdict.text(2, chain);
        }
        let data = Attributes::new().nested(2, &verdict);
        self.expression(
            "immediate",
            &Attributes::new().number(1, REG_VERDICT).nested(2, &data),
        )
    }

    fn meta(self, key: u32, register: u32) -> Rule {
        self.expression("meta", &Attributes::new().number(1, register).number(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Rule {
        let payload = Attributes::new()
            .number(1, register)
            .number(2, base)
            .number(3, offset)
            .number(4, length);
        self.expression("payload", &payload)
    }

    fn and(self, mask: &[u8]) -> Rule {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let bitwise = Attributes::new()
            .number(1, REG)
            .number(2, REG)
            .number(3, length)
            .nested(4, &value(mask))
            .nested(5, &value(&vec![0; mask.len()]));
        self.expression("bitwise", &bitwise)
    }

    fn compare(self, is: Is, to: &[u8]) -> Rule {
        let operator = match is {
            Is::Equal => 0,
            Is::NotEqual => 1,
        };
        let cmp = Attributes::new()
            .number(1, REG)
            .number(2, operator)
            .nested(3, &value(to));
        self.expression("cmp", &cmp)
    }

    fn expression(self, name: &str, data: &Attributes) -> Rule {
        let expression = Attributes::new().text(1, name).nested(2, data);
        Rule(self.0.nested(1, &expression))
    }
}

/// Plain data as nf_tables wraps it.
pub fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

/// As registers hold a link's name: IFNAMSIZ bytes.
fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}

fn address_length(family: Family) -> u32 {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn address_offset(family: Family, end: End) -> u32 {
    match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    }
}
