//! `hosts.toml`: which hosts serve a registry's images, in containerd's format.
//!
//! Read at each pull from `DIR/HOST_PORT_/hosts.toml`, `DIR/HOST:PORT/hosts.toml`
//! or `DIR/_default/hosts.toml`, the first folder that exists. Hosts are asked in
//! the order of the file, `server` (or the registry itself) last. A folder
//! without `hosts.toml` may hold Docker's `*.crt`, `*.cert` and `*.key`.
//!
//! Unlike containerd, a file that cannot be read stops the pull: to go on without
//! it would ask hosts that its author wanted to avoid.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::Authority};
use serde::Deserialize;
use toml::Spanned;

use super::error::Error;

/// One host that may serve a registry's images.
#[derive(Clone, Debug)]
pub struct Host {
    pub https: bool,
    /// The scheme is a guess (a loopback host that no file describes): plain
    /// HTTP first, TLS without verification when the answer is not HTTP.
    pub guessed: bool,
    /// `host[:port]`.
    pub authority: Authority,
    /// Where the API begins: `/v2`.
    pub path: String,
    /// May answer for blobs and for manifests by digest.
    pub pull: bool,
    /// May say what a tag means.
    pub resolve: bool,
    pub tls: Tls,
    /// Sent to this host and to no other; may be secret.
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
}

/// How TLS is spoken with a host, beside the system's certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files of certificate authorities.
    pub ca: Vec<PathBuf>,
    /// PEM files of certificate and key (`None`: in the same file).
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
}

/// The hosts of `registry` (the host of a reference), in the order to ask.
pub fn load(folder: &Path, registry: &str) -> Result<Vec<Host>, Error> {
    for name in [directory(registry), registry.to_owned(), "_default".to_owned()] {
        let dir = folder.join(name);
        let wrong = |path: PathBuf, message: String| Error::Hosts { path, message };
        let file = dir.join("hosts.toml");
        match fs::read_to_string(&file) {
            Ok(text) if !text.trim().is_empty() => {
                return parse(&dir, &text, registry).map_err(|message| wrong(file, message));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The configured folder or its parent is a file.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => continue,
            Err(e) => return Err(wrong(file, e.to_string())),
        }
        match certificates(&dir) {
            Ok(tls) => {
                let host = default_host(registry, Some(tls)).map_err(|message| wrong(dir, message))?;
                return Ok(vec![host]);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(wrong(dir, e.to_string())),
        }
    }
    let host = default_host(registry, None).map_err(|message| Error::Reference {
        reference: registry.to_owned(),
        message,
    })?;
    Ok(vec![host])
}

/// The folder of `host:port`: `host_port_`.
fn directory(registry: &str) -> String {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => format!("{host}_{port}_"),
        _ => registry.to_owned(),
    }
}

/// The registry itself. `tls` is what a file says about it, if one does.
fn default_host(registry: &str, tls: Option<Tls>) -> Result<Host, String> {
    let name = match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let authority: Authority = name.parse().map_err(|e| format!("{name:?} is not a host: {e}"))?;
    let configured = tls.as_ref().is_some_and(|tls| *tls != Tls::default());
    let mut tls = tls.unwrap_or_default();
    let (mut https, mut guessed) = (true, false);
    if is_loopback(authority.host()) && !configured {
        // As containerd: nothing on the way can be read or changed.
        tls.skip_verify = true;
        guessed = !matches!(authority.port_u16(), None | Some(443));
        https = !guessed;
    }
    Ok(Host {
        https,
        guessed,
        authority,
        path: "/v2".into(),
        pull: true,
        resolve: true,
        tls,
        headers: HeaderMap::new(),
        dial_timeout: None,
    })
}

/// `localhost`, 127.0.0.0/8 or `[::1]`.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Entry>,
    #[serde(flatten)]
    root: Entry,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    ca: Option<OneOrMore>,
    #[serde(default)]
    client: Option<Pairs>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    dial_timeout: String,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            OneOrMore::One(one) => std::slice::from_ref(one),
            OneOrMore::More(all) => all,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pairs {
    One(String),
    More(Vec<Pair>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Combined(String),
    Apart([String; 2]),
}

pub(super) fn parse(dir: &Path, text: &str, registry: &str) -> Result<Vec<Host>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut entries: Vec<_> = file.host.iter().collect();
    // The order of the file is the order of asking.
    entries.sort_by_key(|(url, _)| url.span().start);
    let mut hosts = Vec::new();
    for (url, entry) in entries {
        hosts.push(entry.host(dir, url.get_ref())?);
    }
    if file.server.is_empty() {
        let tls = file.root.tls(dir);
        let mut host = default_host(registry, Some(tls))?;
        file.root.settings(&mut host)?;
        hosts.push(host);
    } else {
        hosts.push(file.root.host(dir, &file.server)?);
    }
    Ok(hosts)
}

impl Entry {
    /// The host of `url`: `[https://]host[:port][/path]`.
    fn host(&self, dir: &Path, url: &str) -> Result<Host, String> {
        let full = if url.contains("://") {
            url.to_owned()
        } else {
            format!("https://{url}")
        };
        let uri: Uri = full.parse().map_err(|e| format!("{url:?} is not a URL: {e}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{url:?} is neither http nor https")),
        };
        let authority = uri
            .authority()
            .filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
            .ok_or_else(|| format!("{url:?} needs a host, and no user before it"))?
            .clone();
        let mut path = uri.path().trim_end_matches('/').to_owned();
        if !self.override_path && !path.ends_with("/v2") {
            path.push_str("/v2");
        }
        let mut host = Host {
            https,
            guessed: false,
            authority,
            path,
            pull: true,
            resolve: true,
            tls: self.tls(dir),
            headers: HeaderMap::new(),
            dial_timeout: None,
        };
        self.settings(&mut host)?;
        Ok(host)
    }

    fn tls(&self, dir: &Path) -> Tls {
        let ca = self.ca.as_ref().map(OneOrMore::all).unwrap_or_default();
        let client = match &self.client {
            None => Vec::new(),
            Some(Pairs::One(file)) => vec![(dir.join(file), None)],
            Some(Pairs::More(pairs)) => pairs
                .iter()
                .map(|pair| match pair {
                    Pair::Combined(file) => (dir.join(file), None),
                    Pair::Apart([certificate, key]) => (dir.join(certificate), Some(dir.join(key))),
                })
                .collect(),
        };
        Tls {
            ca: ca.iter().map(|file| dir.join(file)).collect(),
            client,
            skip_verify: self.skip_verify,
        }
    }

    /// Capabilities, headers and time-out.
    fn settings(&self, host: &mut Host) -> Result<(), String> {
        for key in self.unknown.keys() {
            tracing::warn!(key, host = %host.authority, "hosts.toml has a key that is not known and not used");
        }
        if !self.capabilities.is_empty() {
            host.pull = false;
            host.resolve = false;
        }
        for capability in &self.capabilities {
            match capability.to_lowercase().as_str() {
                "pull" => host.pull = true,
                "resolve" => host.resolve = true,
                // What this agent does not do.
                "push" | "referrers" => {}
                _ => {
                    return Err(format!(
                        "capability {capability:?} is none of pull, resolve, push"
                    ));
                }
            }
        }
        for (name, values) in &self.header {
            let key: HeaderName = name
                .parse()
                .map_err(|_| format!("{name:?} is not a header's name"))?;
            for value in values.all() {
                let mut value = HeaderValue::from_str(value)
                    .map_err(|_| format!("header {name:?} has a value that cannot be sent"))?;
                value.set_sensitive(true);
                host.headers.append(key.clone(), value);
            }
        }
        if !self.dial_timeout.is_empty() {
            let timeout = duration(&self.dial_timeout).ok_or_else(|| {
                format!(
                    "dial_timeout {:?} is not a duration like \"5s\"",
                    self.dial_timeout
                )
            })?;
            host.dial_timeout = Some(timeout);
        }
        Ok(())
    }
}

/// A duration in Go's words: `1m30s`, `500ms`, `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |n| end + n);
        let unit = match &rest[end..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!total.is_zero()).then_some(total)
}

/// Docker's files: `*.crt` are authorities, `X.cert` with `X.key` client pairs.
fn certificates(dir: &Path) -> io::Result<Tls> {
    let mut tls = Tls::default();
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                let key = key.exists().then_some(key);
                tls.client.push((file, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(hosts: &[Host]) -> Vec<String> {
        let scheme = |host: &Host| if host.https { "https" } else { "http" };
        hosts
            .iter()
            .map(|host| format!("{}://{}{}", scheme(host), host.authority, host.path))
            .collect()
    }

    #[test]
    fn without_a_file_the_registry_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        for (registry, url, guessed) in [
            ("docker.io", "https://registry-1.docker.io/v2", false),
            ("r.example:5000", "https://r.example:5000/v2", false),
            ("localhost:5000", "http://localhost:5000/v2", true),
            ("127.0.0.2:5000", "http://127.0.0.2:5000/v2", true),
            ("[::1]:5000", "http://[::1]:5000/v2", true),
            ("localhost", "https://localhost/v2", false),
            ("127.example:5000", "https://127.example:5000/v2", false),
        ] {
            let hosts = load(dir.path(), registry).unwrap();
            assert_eq!(shown(&hosts), [url]);
            assert_eq!(hosts[0].guessed, guessed, "{registry}");
        }
    }

    #[test]
    fn the_order_and_settings_of_the_file_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r.example_5000_");
        fs::create_dir(&folder).unwrap();
        let text = r#"
            server = "https://up.example"
            [host."https://z.example/base"]
              capabilities = ["pull"]
              ca = ["a.pem", "/etc/b.pem"]
              client = [["c.pem", "c.key"], "d.pem"]
              dial_timeout = "1m30s"
              [host."https://z.example/base".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."http://a.example:8080/x/v2"]
              skip_verify = true
            [host."m.example/api"]
              override_path = true
              client = "e.pem"
              ca = "f.pem"
        "#;
        fs::write(folder.join("hosts.toml"), text).unwrap();
        let hosts = load(dir.path(), "r.example:5000").unwrap();
        assert_eq!(
            shown(&hosts),
            [
                "https://z.example/base/v2",
                "http://a.example:8080/x/v2",
                "https://m.example/api",
                "https://up.example/v2"
            ]
        );
        assert!(hosts[0].pull && !hosts[0].resolve && hosts[1].resolve);
        assert_eq!(hosts[0].tls.ca, [folder.join("a.pem"), "/etc/b.pem".into()]);
        assert_eq!(
            hosts[0].tls.client,
            [
                (folder.join("c.pem"), Some(folder.join("c.key"))),
                (folder.join("d.pem"), None)
            ]
        );
        assert_eq!(hosts[0].dial_timeout, Some(Duration::from_secs(90)));
        assert_eq!(hosts[0].headers.get_all("x-two").iter().count(), 2);
        assert!(hosts[1].tls.skip_verify);
    }

    #[test]
    fn the_registry_follows_its_mirrors() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("_default")).unwrap();
        fs::write(
            dir.path().join("_default/hosts.toml"),
            "[host.\"http://m.example\"]\n",
        )
        .unwrap();
        let hosts = load(dir.path(), "docker.io").unwrap();
        assert_eq!(
            shown(&hosts),
            ["http://m.example/v2", "https://registry-1.docker.io/v2"]
        );
    }

    #[test]
    fn a_wrong_file_stops_the_pull_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("_default")).unwrap();
        for wrong in [
            "server = 1",
            "[host.\"ftp://x\"]",
            "[host.\"https://x\"]\ncapabilities = [\"pul\"]",
            "dial_timeout = \"5\"",
            "server = \"https://user:pass@x\"",
            "[host.\"http://:8080\"]",
            "[host.\"http://://x/v2\"]",
        ] {
            fs::write(dir.path().join("_default/hosts.toml"), wrong).unwrap();
            let message = load(dir.path(), "r.example").unwrap_err().to_string();
            assert!(message.contains("_default/hosts.toml"), "{message}");
        }
    }

    #[test]
    fn dockers_certificate_files_are_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("r.example")).unwrap();
        for name in ["ca.crt", "c.cert", "c.key"] {
            fs::write(dir.path().join("r.example").join(name), "").unwrap();
        }
        let tls = &load(dir.path(), "r.example").unwrap()[0].tls;
        assert_eq!((tls.ca.len(), tls.client.len()), (1, 1));
        assert!(tls.client[0].1.is_some());
    }
}
