//! Words of the command line turned into what the CRI wants: mounts, ports,
//! users, limits. Pure, and strict: what is not understood is refused.

use std::{env, net::IpAddr, str::FromStr};

use super::Error;
use crate::proto::cri;

/// `USER:PASSWORD`.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    password: String,
}

/// `KEY=VALUE`, or `KEY` for the value it has here.
#[derive(Clone, Debug)]
pub struct EnvVar {
    key: String,
    value: Option<String>,
}

/// `HOST:CONTAINER[:OPTIONS]`.
#[derive(Clone, Debug)]
pub struct Volume(pub cri::Mount);

/// `[IP:]HOST:CONTAINER[/PROTOCOL]`.
#[derive(Clone, Debug)]
pub struct Port(pub cri::PortMapping);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Pod,
    Host,
}

/// `USER[:GROUP]`, the group by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: Option<i64>,
    /// Looked up in the image when there is no uid.
    pub name: String,
    pub gid: Option<i64>,
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(pub i64);

/// Microseconds of processor time in each period of [`Cpus::PERIOD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus(pub i64);

impl Cpus {
    pub const PERIOD: i64 = 100_000;
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?}, ...)", self.user)
    }
}

impl FromStr for Credentials {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, password) = text.split_once(':').ok_or("not of the form USER:PASSWORD")?;
        Ok(Credentials {
            user: user.into(),
            password: password.into(),
        })
    }
}

impl Credentials {
    /// Those given, else those of BERTH_CREDS.
    pub fn or_environment(given: Option<&Credentials>) -> Option<cri::AuthConfig> {
        let found = given
            .cloned()
            .or_else(|| env::var("BERTH_CREDS").ok()?.parse().ok())?;
        Some(cri::AuthConfig {
            username: found.user,
            password: found.password,
            ..Default::default()
        })
    }
}

impl FromStr for EnvVar {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() {
            return Err("the name of the variable is empty".into());
        }
        Ok(EnvVar {
            key: key.into(),
            value,
        })
    }
}

impl EnvVar {
    pub fn resolve(&self) -> Result<cri::KeyValue, Error> {
        let value = match &self.value {
            Some(value) => value.clone(),
            None => env::var(&self.key).map_err(|_| Error::NoVariable(self.key.clone()))?,
        };
        Ok(cri::KeyValue {
            key: self.key.clone(),
            value: value.into_bytes(),
        })
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let (host, container) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if !host.starts_with('/') {
            return Err(format!(
                "{host:?} is not an absolute path; named volumes are not known here"
            ));
        }
        if !container.starts_with('/') {
            return Err(format!("{container:?} is not an absolute path in the container"));
        }
        let mut mount = cri::Mount {
            host_path: host.into(),
            container_path: container.into(),
            ..Default::default()
        };
        for option in parts.next().into_iter().flat_map(|options| options.split(',')) {
            match option {
                "ro" => mount.readonly = true,
                "rw" => mount.readonly = false,
                "rprivate" => mount.set_propagation(cri::MountPropagation::PropagationPrivate),
                "rslave" => mount.set_propagation(cri::MountPropagation::PropagationHostToContainer),
                "rshared" => mount.set_propagation(cri::MountPropagation::PropagationBidirectional),
                other => {
                    return Err(format!(
                        "option {other:?} is none of ro, rw, rprivate, rslave, rshared"
                    ));
                }
            }
        }
        Ok(Volume(mount))
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => cri::Protocol::Tcp,
            "udp" => cri::Protocol::Udp,
            "sctp" => cri::Protocol::Sctp,
            other => return Err(format!("protocol {other:?} is none of tcp, udp, sctp")),
        };
        let (rest, container) = ports
            .rsplit_once(':')
            .ok_or("not of the form HOST:CONTAINER; both ports are needed")?;
        let (ip, host) = rest.rsplit_once(':').unwrap_or(("", rest));
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            return Err(format!("{ip:?} is not an IP address"));
        }
        Ok(Port(cri::PortMapping {
            protocol: protocol.into(),
            container_port: port(container)?,
            host_port: port(host)?,
            host_ip: ip.into(),
        }))
    }
}

fn port(text: &str) -> Result<i32, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port.into()),
        _ => Err(format!("{text:?} is not a port: 1 to 65535")),
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pod" => Ok(Network::Pod),
            "host" => Ok(Network::Host),
            other => Err(format!("{other:?} is neither \"pod\" nor \"host\"")),
        }
    }
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() {
            return Err("the user is empty".into());
        }
        let id = |text: &str| u32::try_from(text.parse::<i64>().ok()?).ok().map(i64::from);
        let gid = match group {
            Some(group) => Some(id(group).ok_or_else(|| format!("group {group:?} is not a number"))?),
            None => None,
        };
        let uid = id(user);
        let name = if uid.is_some() { "" } else { user };
        Ok(User {
            uid,
            name: name.into(),
            gid,
        })
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_lowercase();
        let number = lower.trim_end_matches('b').trim_end_matches('i');
        let (digits, shift) = match number.chars().last() {
            Some('k') => (&number[..number.len() - 1], 10),
            Some('m') => (&number[..number.len() - 1], 20),
            Some('g') => (&number[..number.len() - 1], 30),
            _ => (number, 0),
        };
        digits
            .parse::<i64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << shift))
            .filter(|bytes| *bytes > 0)
            .map(Memory)
            .ok_or_else(|| format!("{text:?} is not a size such as 64m or 1g"))
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a number of processors such as 0.5 or 2");
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.chars().all(|c| c.is_ascii_digit()) || fraction.len() > 5 {
            return Err(wrong());
        }
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| wrong())?
        };
        // Five digits behind the point are microseconds of a period.
        let part: i64 = format!("{fraction:0<5}").parse().map_err(|_| wrong())?;
        let quota = whole
            .checked_mul(Cpus::PERIOD)
            .and_then(|quota| quota.checked_add(part))
            .ok_or_else(wrong)?;
        // The kernel takes no quota below a millisecond.
        if whole < 0 || quota < 1_000 {
            return Err(wrong());
        }
        Ok(Cpus(quota))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let Volume(mount) = "/a:/b".parse().unwrap();
        assert_eq!(
            (mount.host_path.as_str(), mount.container_path.as_str()),
            ("/a", "/b")
        );
        assert!(!mount.readonly);
        let Volume(mount) = "/a:/b:ro,rslave".parse().unwrap();
        assert!(mount.readonly);
        assert_eq!(
            mount.propagation(),
            cri::MountPropagation::PropagationHostToContainer
        );
        for wrong in ["a:/b", "/a:b", "/a", "/a:/b:rx", ""] {
            assert!(wrong.parse::<Volume>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports() {
        let parse = |text: &str| {
            let Port(p) = text.parse().unwrap();
            (p.host_ip.clone(), p.host_port, p.container_port, p.protocol())
        };
        assert_eq!(parse("80:8080"), (String::new(), 80, 8080, cri::Protocol::Tcp));
        assert_eq!(
            parse("127.0.0.1:53:5353/udp"),
            ("127.0.0.1".into(), 53, 5353, cri::Protocol::Udp)
        );
        assert_eq!(parse("[::1]:1:2/sctp"), ("::1".into(), 1, 2, cri::Protocol::Sctp));
        for wrong in ["80", "0:80", "80:0", "80:65536", "x:80:80", "80:80/icmp", ":", ""] {
            assert!(wrong.parse::<Port>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn users() {
        let user = |text: &str| text.parse::<User>().unwrap();
        assert_eq!(user("7:8").uid, Some(7));
        assert_eq!(user("7:8").gid, Some(8));
        assert_eq!((user("www").uid, user("www").name.as_str()), (None, "www"));
        for wrong in ["", ":1", "1:staff"] {
            assert!(wrong.parse::<User>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits() {
        let memory = ["1024", "64m", "64MiB", "2g", "3kb"].map(|t| t.parse::<Memory>().unwrap().0);
        assert_eq!(memory, [1024, 64 << 20, 64 << 20, 2 << 30, 3 << 10]);
        for wrong in ["", "m", "-1", "0", "1x", "99999999999g"] {
            assert!(wrong.parse::<Memory>().is_err(), "{wrong}");
        }
        let cpus = ["1", "0.5", ".25", "2.125"].map(|t| t.parse::<Cpus>().unwrap().0);
        assert_eq!(cpus, [100_000, 50_000, 25_000, 212_500]);
        for wrong in ["", "0", "-1", "0.001", "1.5.5", "x"] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_never_printed() {
        let credentials: Credentials = "user:pa:ss".parse().unwrap();
        assert_eq!(credentials.password, "pa:ss");
        assert!(!format!("{credentials:?}").contains("pa:ss"));
    }
}
