//! The platform of an image, and which of an index is this node's.

use std::fmt;

use serde::Deserialize;

use super::manifest::Descriptor;

/// Operating system and processor of an image, in Go's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    /// `v8`, `v2`...; empty where there is only one.
    #[serde(default)]
    pub variant: String,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl Platform {
    /// The platform of this build.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// The same platform in one spelling.
    fn normalised(&self) -> Platform {
        let os = self.os.to_lowercase();
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8") => ("arm64", "v8"),
            ("aarch64", variant) => ("arm64", variant),
            other => other,
        };
        Platform {
            os,
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// Whether an image whose config names `other` can run here. The variant is
    /// left out: configs often lack it.
    pub fn runs(&self, other: &Platform) -> bool {
        let (ours, other) = (self.normalised(), other.normalised());
        (other.os.is_empty() || ours.os == other.os)
            && (other.architecture.is_empty() || ours.architecture == other.architecture)
    }

    /// How well an image of `other` runs here: 0 best, `None` not at all.
    ///
    /// Variants of amd64 above v1 are not chosen: the processor may lack them.
    fn rank(&self, other: &Platform) -> Option<u8> {
        let (ours, other) = (self.normalised(), other.normalised());
        if ours == other {
            return Some(0);
        }
        (ours.os == other.os && ours.architecture == other.architecture && other.variant.is_empty())
            .then_some(1)
    }
}

/// What stands in the index entry that is this node's: the best match, of equal
/// ones the first. Entries without platform are taken when nothing fits
/// (`artifacts` that name none), attestations (`unknown/unknown`) never.
///
/// `Err` lists the platforms that are there.
pub fn choose<'a>(host: &Platform, index: &'a [Descriptor]) -> Result<&'a Descriptor, String> {
    let known = |platform: &Platform| platform.os != "unknown" && platform.architecture != "unknown";
    let best = index
        .iter()
        .filter_map(|entry| match &entry.platform {
            // Nested indexes and old tools leave the platform out.
            None => Some((2, entry)),
            Some(platform) if platform.os.is_empty() && platform.architecture.is_empty() => Some((2, entry)),
            Some(platform) if known(platform) => host.rank(platform).map(|rank| (rank, entry)),
            Some(_) => None,
        })
        .min_by_key(|(rank, _)| *rank);
    if let Some((_, entry)) = best {
        return Ok(entry);
    }
    let mut present: Vec<String> = index
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|platform| known(platform))
        .map(Platform::to_string)
        .collect();
    present.sort();
    present.dedup();
    present.truncate(32);
    Err(if present.is_empty() {
        "none".into()
    } else {
        present.join(", ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;

    fn entry(platform: &str) -> Descriptor {
        let mut parts = platform.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(platform.as_bytes()),
            size: 1,
            platform: (!platform.is_empty()).then(|| Platform {
                os: next(),
                architecture: next(),
                variant: next(),
            }),
            urls: vec![],
        }
    }

    fn chosen(host: &str, index: &[&str]) -> Result<Digest, String> {
        let host = entry(host).platform.unwrap();
        let index: Vec<Descriptor> = index.iter().map(|p| entry(p)).collect();
        choose(&host, &index).map(|d| d.digest)
    }

    #[test]
    fn the_best_match_wins_wherever_it_stands() {
        let amd = [
            "windows/amd64",
            "linux/arm64/v8",
            "linux/amd64/v3",
            "linux/amd64",
            "unknown/unknown",
        ];
        assert_eq!(chosen("linux/amd64", &amd), Ok(Digest::of(b"linux/amd64")));
        assert_eq!(
            chosen("linux/arm64/v8", &["linux/amd64", "linux/arm64"]),
            Ok(Digest::of(b"linux/arm64"))
        );
        assert_eq!(
            chosen("linux/amd64", &["", "linux/amd64"]),
            Ok(Digest::of(b"linux/amd64"))
        );
        assert_eq!(chosen("linux/amd64", &["linux/arm64", ""]), Ok(Digest::of(b"")));
    }

    #[test]
    fn what_is_present_is_named() {
        assert_eq!(
            chosen("linux/amd64", &["linux/s390x", "linux/arm/v7", "unknown/unknown"]),
            Err("linux/arm/v7, linux/s390x".into())
        );
        assert_eq!(
            chosen("linux/amd64", &["linux/amd64/v3"]),
            Err("linux/amd64/v3".into())
        );
    }
}
