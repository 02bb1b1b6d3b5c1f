//! Names of images: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, read by the rules of
//! Docker and containerd (github.com/distribution/reference): a short name is
//! one of docker.io, a name without tag and digest means `latest`, and beside a
//! digest the tag says nothing and is dropped.

use std::fmt;

use super::digest::Digest;

/// The registry of names that begin with no host.
const DEFAULT_HOST: &str = "docker.io";
/// Longest name without tag and digest, in bytes.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// What a [`Reference`] points at in its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Tag(tag) => f.write_str(tag),
            Version::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A full reference. Shown as `docker.io/library/busybox:1.36` or
/// `docker.io/library/busybox@sha256:...`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host with port, as it was written: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub host: String,
    /// Path in the registry: `library/busybox`.
    pub path: String,
    pub version: Version,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}:{tag}", self.name()),
            Version::Digest(digest) => write!(f, "{}@{digest}", self.name()),
        }
    }
}

impl Reference {
    /// Reads a reference; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Reference, String> {
        if text.is_empty() {
            return Err("it is empty".into());
        }
        if let Some((scheme @ ("http" | "https"), _)) = text.split_once("://") {
            return Err(format!("it begins with {scheme}://, which is no part of a name"));
        }
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err("it is an image id; an image is pulled by its name".into());
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        };
        let (host, path) = split_host(rest);
        // The last colon behind the host begins the tag.
        let (path, tag) = match path.split_once(':') {
            None => (path, None),
            Some((path, tag)) => (path, Some(check_tag(tag)?)),
        };
        check_path(path)?;
        if !host.is_empty() {
            check_host(host)?;
        }
        let host = match host {
            "" | "index.docker.io" => DEFAULT_HOST,
            host => host,
        };
        let path = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(format!("its name is longer than {MAX_NAME} bytes"));
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Reference {
            host: host.to_owned(),
            path,
            version,
        })
    }

    /// Name without tag and digest: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The same repository by digest, as it stands in `repo_digests`.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }

    /// The tag, of a reference that has one.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }
}

/// Splits the host off: the first part is a host when it could be nothing else,
/// having a dot, a colon, an upper-case letter, or being `localhost`.
fn split_host(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("", text),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let wrong = || format!("{host:?} is not a host, a host:port or an [IPv6]:port");
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            match port {
                "" => (None, None),
                port => (None, Some(port.strip_prefix(':').ok_or_else(wrong)?)),
            }
        }
        None => match host.split_once(':') {
            None => (Some(host), None),
            Some((name, port)) => (Some(name), Some(port)),
        },
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|c| c.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err(format!("{port:?} in {host:?} is not a port"));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name {
        Some(name) if !name.split('.').all(label) => Err(wrong()),
        _ => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<&str, String> {
    if tag.len() > MAX_TAG {
        return Err(format!("its tag is longer than {MAX_TAG} bytes"));
    }
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let rest = |c: u8| word(c) || c == b'.' || c == b'-';
    if tag.bytes().next().is_some_and(word) && tag.bytes().all(rest) {
        Ok(tag)
    } else {
        Err(format!(
            "{tag:?} is not a tag: letters, digits, _, . and -, beginning with none of the last two"
        ))
    }
}

fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("it has no name".into());
    }
    if path.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(format!(
            "{path:?} has upper-case letters; names of images are lower case"
        ));
    }
    match path.split('/').find(|part| !is_component(part)) {
        None => Ok(()),
        Some("") => Err(format!("{path:?} has an empty part between slashes")),
        Some(part) => Err(format!(
            "{part:?} is not a name: lower-case letters and digits, with single . or _, __ or dashes between them"
        )),
    }
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or dashes.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !part.starts_with(alphanumeric) || !part.ends_with(alphanumeric) {
        return false;
    }
    part.split(alphanumeric)
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|c| c == b'-'))
}

fn is_lower_hex(c: u8) -> bool {
    c.is_ascii_digit() || (b'a'..=b'f').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_become_full() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("a/b", "docker.io/a/b:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:x", "docker.io/a/b:x"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[fd00::1]/a", "[fd00::1]/a:latest"),
            ("r.example/a__b/c-d.e--f", "r.example/a__b/c-d.e--f:latest"),
            ("Host/a", "Host/a:latest"),
            ("localhost:5", "docker.io/library/localhost:5"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), full, "{short}");
        }
    }

    #[test]
    fn beside_a_digest_the_tag_is_dropped() {
        let parsed = Reference::parse(&format!("r.example:1/a:x@sha256:{HEX}")).unwrap();
        assert_eq!(parsed.to_string(), format!("r.example:1/a@sha256:{HEX}"));
        assert_eq!(parsed.tag(), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (wrong, said) in [
            ("", "empty"),
            (HEX, "image id"),
            ("Busybox", "upper-case"),
            ("r.example/Busybox", "upper-case"),
            ("busybox:", "not a tag"),
            ("busybox:-x", "not a tag"),
            ("busybox:a:b", "not a tag"),
            (&format!("busybox:{}", "x".repeat(129)), "128"),
            ("a//b", "empty part"),
            ("/a", "empty part"),
            ("r.example/", "no name"),
            ("a___b", "not a name"),
            ("a..b", "not a name"),
            ("-a", "not a name"),
            ("../a", "not a host"),
            ("a/../b", "not a name"),
            ("r.example:x/a", "not a port"),
            ("r.example:99999/a", "not a port"),
            ("[::1/a", "not a host"),
            ("a@md5:00", "md5"),
            ("a@sha256:00", "64"),
            ("a b", "not a name"),
            ("https://r.example/a", "no part of a name"),
            (&format!("r.example/{}", "a".repeat(250)), "255"),
        ] {
            let message = Reference::parse(wrong).unwrap_err();
            assert!(message.contains(said), "{wrong}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _ = Reference::parse(&text);
        }

        #[test]
        fn a_full_reference_reads_as_itself(
            host in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,5}|localhost|127\\.0\\.0\\.1|\\[::1\\])(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,8}([._-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}",
            digest in proptest::option::of("[0-9a-f]{64}"),
        ) {
            let text = match digest {
                Some(hex) => format!("{host}/{path}@sha256:{hex}"),
                None => format!("{host}/{path}:{tag}"),
            };
            let parsed = Reference::parse(&text).unwrap();
            prop_assert_eq!(parsed.to_string(), text.clone());
            prop_assert_eq!(Reference::parse(&parsed.to_string()).unwrap(), parsed);
        }

        #[test]
        fn what_was_read_has_no_way_out_of_its_url(text in "[a-zA-Z0-9./:@?#%&_-]{1,40}") {
            if let Ok(parsed) = Reference::parse(&text) {
                let shown = format!("{}/{}", parsed.path, parsed.version);
                prop_assert!(!shown.contains(['?', '#', '%', '&', '@']));
                prop_assert!(shown.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            }
        }
    }
}
