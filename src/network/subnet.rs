//! Subnets: arithmetic, and the choice of free ones.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A subnet: its first address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// 4 or 6, as the records have it.
    pub fn number(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

/// Offset of the gateway, which is the bridge itself.
const GATEWAY: u32 = 1;
/// Pods of a subnet get offsets up to this one, however large it is.
const LAST_OFFSET: u32 = 0x00ff_ffff;

impl Subnet {
    /// The subnet that the address is in.
    pub fn covering(address: IpAddr, prefix: u8) -> Subnet {
        let family = Family::of(address);
        let prefix = prefix.min(family.bits());
        let network = from_bits(family, to_bits(address) & mask(family, prefix));
        Subnet { network, prefix }
    }

    pub fn family(&self) -> Family {
        Family::of(self.network)
    }

    pub fn network(&self) -> IpAddr {
        self.network
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The prefix as a mask, in network order: 4 or 16 bytes.
    pub fn mask(&self) -> Vec<u8> {
        bytes(from_bits(self.family(), mask(self.family(), self.prefix)))
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        Subnet::covering(address, self.prefix) == *self
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.family() == other.family() && (self.contains(other.network) || other.contains(self.network))
    }

    /// The address at an offset from the first one.
    pub fn at(&self, offset: u32) -> IpAddr {
        from_bits(self.family(), to_bits(self.network) + u128::from(offset))
    }

    /// The bridge's own address, the first one that can be used.
    pub fn gateway(&self) -> IpAddr {
        self.at(GATEWAY)
    }

    /// First and last offset that pods can have. None: the subnet is too small.
    pub fn offsets(&self) -> Option<(u32, u32)> {
        let size = 1u128 << (self.family().bits() - self.prefix).min(127);
        // The last address of an IPv4 subnet is its broadcast address.
        let last = size.checked_sub(2)?;
        let last = u32::try_from(last).unwrap_or(LAST_OFFSET).min(LAST_OFFSET);
        (last > GATEWAY).then_some((GATEWAY + 1, last))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Subnet, String> {
        let wrong = || format!("{text:?} is not a subnet like 10.88.0.0/16 or fd00:88::/64");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix > Family::of(address).bits() {
            return Err(wrong());
        }
        let subnet = Subnet::covering(address, prefix);
        if subnet.network != address {
            return Err(format!("{text:?} is an address in {subnet}; write {subnet}"));
        }
        Ok(subnet)
    }
}

/// 4 or 16 bytes in network order.
pub fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A subnet for IPv4 that overlaps none of `taken`: `preferred`, else one of
/// 10.0.0.0/8, where `seed` says; when that is all routed (a VPN, a cloud), one
/// of 172.16.0.0/12 and then a smaller one of 192.168.0.0/16. None: all is taken.
pub fn choose_v4(seed: &[u8; 32], preferred: Option<Subnet>, taken: &[Subnet]) -> Option<Subnet> {
    let start = u32::from(seed[4]);
    let tens = (0..256).map(|i| subnet_v4(10, (start + i) % 256, 0, 16));
    let sixteens = (0..16).map(|i| subnet_v4(172, 16 + (start + i) % 16, 0, 16));
    let small = (0..16).map(|i| subnet_v4(192, 168, (start + i) % 16 * 16, 20));
    preferred
        .into_iter()
        .chain(tens)
        .chain(sixteens)
        .chain(small)
        .find(|it| is_free(it, taken))
}

/// A unique local subnet (RFC 4193) that overlaps none of `taken`.
pub fn choose_v6(seed: &[u8; 32], taken: &[Subnet]) -> Option<Subnet> {
    (0..=u8::MAX)
        .map(|i| {
            let mut octets = [0; 16];
            octets[0] = 0xfd;
            octets[1..8].copy_from_slice(&seed[8..15]);
            octets[7] = octets[7].wrapping_add(i);
            Subnet::covering(Ipv6Addr::from(octets).into(), 64)
        })
        .find(|it| is_free(it, taken))
}

/// Whether nothing of the node is in it.
pub fn is_free(subnet: &Subnet, taken: &[Subnet]) -> bool {
    !taken.iter().any(|other| other.overlaps(subnet))
}

fn subnet_v4(a: u32, b: u32, c: u32, prefix: u8) -> Subnet {
    Subnet::covering(Ipv4Addr::from(a << 24 | b << 16 | c << 8).into(), prefix)
}

fn mask(family: Family, prefix: u8) -> u128 {
    let all = match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    };
    let host = all.checked_shr(prefix.into()).unwrap_or(0);
    all & !host
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(0)).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn arithmetic() {
        let it = subnet("10.88.0.0/16");
        assert_eq!(it.gateway().to_string(), "10.88.0.1");
        assert_eq!(it.at(256).to_string(), "10.88.1.0");
        assert_eq!(it.offsets(), Some((2, 65534)));
        assert_eq!(it.mask(), [255, 255, 0, 0]);
        assert_eq!(subnet("10.0.0.0/30").offsets(), Some((2, 2)));
        assert_eq!(subnet("10.0.0.0/31").offsets(), None);
        assert_eq!(subnet("10.0.0.0/32").offsets(), None);
        assert_eq!(subnet("fd00::/64").offsets(), Some((2, LAST_OFFSET)));
        assert_eq!(subnet("::/0").offsets(), Some((2, LAST_OFFSET)));
        assert!(subnet("0.0.0.0/0").overlaps(&it) && it.overlaps(&subnet("10.88.3.0/24")));
        assert!(!it.overlaps(&subnet("10.89.0.0/16")) && !it.overlaps(&subnet("::/0")));
    }

    #[test]
    fn wrong_subnets_are_explained() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/-1",
            "fd00::/129",
        ] {
            assert!(
                text.parse::<Subnet>().unwrap_err().contains("not a subnet"),
                "{text}"
            );
        }
        let message = "10.88.0.1/16".parse::<Subnet>().unwrap_err();
        assert!(message.contains("write 10.88.0.0/16"), "{message}");
    }

    #[test]
    fn the_choice_avoids_what_is_taken() {
        let seed = [7; 32];
        let preferred = subnet("10.88.0.0/16");
        assert_eq!(choose_v4(&seed, Some(preferred), &[]), Some(preferred));
        let first = choose_v4(&seed, Some(preferred), &[subnet("10.88.3.0/24")]).unwrap();
        assert_eq!(first, subnet("10.7.0.0/16"));
        assert_eq!(choose_v4(&seed, None, &[first]), Some(subnet("10.8.0.0/16")));
        let tens = subnet("10.0.0.0/8");
        assert_eq!(choose_v4(&seed, None, &[tens]), Some(subnet("172.23.0.0/16")));
        let more = [tens, subnet("172.16.0.0/12")];
        assert_eq!(choose_v4(&seed, None, &more), Some(subnet("192.168.112.0/20")));
        assert_eq!(choose_v4(&seed, None, &[subnet("0.0.0.0/0")]), None);
        let v6 = choose_v6(&seed, &[]).unwrap();
        assert!(v6.to_string().starts_with("fd07:707:707:707:"), "{v6}");
        assert_ne!(choose_v6(&seed, &[v6]), Some(v6));
    }
}
