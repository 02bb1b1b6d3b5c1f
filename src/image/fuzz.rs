//! Names, and what registries and `hosts.toml` say.

use std::path::Path;

use http::{HeaderValue, Uri};

use super::{
    auth::{AuthConfig, Challenge, Credentials, Token, form},
    hosts,
    manifest::{ConfigFile, Document},
    platform::{self, Platform},
    reference::{Reference, Version},
};

/// A reference that is taken reads as it is shown, and makes a URL and no way out of a folder.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let reference = match Reference::parse(text) {
        Ok(reference) => reference,
        Err(message) => return assert!(!message.is_empty()),
    };
    let shown = reference.to_string();
    assert_eq!(Reference::parse(&shown).as_ref(), Ok(&reference), "{shown}");
    assert!(reference.name().len() <= 255 && shown.len() <= 255 + 1 + 128);
    assert!(
        !reference.host.is_empty() && !reference.host.contains(['/', '\\', '@']),
        "{shown}"
    );
    assert!(!reference.host.contains(".."), "{shown}");
    let part = |part: &str| !matches!(part, "" | "." | "..");
    assert!(reference.path.split('/').all(part), "{shown}");
    if let Version::Tag(tag) = &reference.version {
        assert!((1..=128).contains(&tag.len()), "{shown}");
    }
    let url = format!(
        "https://{}/v2/{}/manifests/{}",
        reference.host, reference.path, reference.version
    );
    let uri: Uri = url.parse().unwrap_or_else(|e| panic!("{url}: {e}"));
    assert_eq!(
        uri.authority().map(|authority| authority.as_str()),
        Some(&reference.host[..])
    );
    assert!(uri.query().is_none());
}

/// A document is one thing, whatever its sender calls it (CVE-2021-41190); what is
/// chosen of an index is in it; a config is read the same twice.
pub fn manifest(data: &[u8]) {
    const TYPES: [&str; 5] = [
        "",
        "application/json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ];
    let mut seen: Option<Document> = None;
    for media_type in TYPES {
        match Document::parse("it", media_type, data) {
            Ok(document) => {
                if let Document::Index(entries) = &document
                    && let Ok(chosen) = platform::choose(&Platform::host(), entries)
                {
                    assert!(entries.contains(chosen));
                }
                assert_eq!(seen.get_or_insert_with(|| document.clone()), &document);
            }
            Err(error) => assert!(error.to_string().len() < data.len() + 1000),
        }
    }
    if let Ok(file) = ConfigFile::parse("it", data) {
        assert!(file.config.volumes.is_sorted());
        assert!(file.rootfs.diff_ids.len() <= data.len() / 64);
    }
}

/// Answers of token services, and credentials in base64.
pub fn token(data: &[u8]) {
    if let Some(token) = Token::parse(data) {
        assert!(token.is_fresh(), "it was never good");
        assert!(
            token
                .header
                .strip_prefix("Bearer ")
                .is_some_and(|token| !token.is_empty())
        );
        assert!(!format!("{token:?}").contains(&token.header));
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let auth = AuthConfig {
        auth: text.to_owned(),
        ..AuthConfig::default()
    };
    match auth.for_host("r.example") {
        Ok(Credentials::Password { user, password }) => {
            let basic = Token::basic(&user, &password);
            HeaderValue::from_str(&basic.header).expect("base64 can be sent");
        }
        Ok(other) => assert!(text.is_empty(), "{other:?}"),
        // It says what is wrong and never what was given.
        Err(error) => assert!(error.to_string().len() < 150),
    }
}

/// The challenges of an answer, a header a line: what is read can be written and is
/// then read as the same.
pub fn challenge(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some(challenge) = Challenge::parse(text.lines()) else {
        return;
    };
    let Challenge::Bearer {
        realm,
        service,
        scope,
        error,
    } = &challenge
    else {
        return;
    };
    assert!(!realm.is_empty());
    assert!(realm.len() + service.len() + scope.len() + error.len() <= 4 * text.len());
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let written = format!(
        "Basic realm=\"x\", Bearer realm=\"{}\", service=\"{}\",scope=\"{}\" , error=\"{}\"",
        quoted(realm),
        quoted(service),
        quoted(scope),
        quoted(error)
    );
    assert_eq!(
        Challenge::parse([&written[..]].into_iter()),
        Some(challenge.clone())
    );
    let query = form(&[("service", service), ("scope", scope)]);
    let url = format!("https://t.example/?{query}");
    assert!(
        url.parse::<Uri>().is_ok() || url.len() > usize::from(u16::MAX) - 2,
        "{url}"
    );
}

/// A file that is taken names hosts that can be asked, and keeps what is secret so.
pub fn hosts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for registry in ["r.example:5000", "docker.io", "localhost:5000"] {
        let hosts = match hosts::parse(Path::new("/etc/certs.d/it"), text, registry) {
            Ok(hosts) => hosts,
            Err(message) => {
                assert!(!message.is_empty());
                continue;
            }
        };
        assert!(!hosts.is_empty());
        for host in &hosts {
            assert!(!host.authority.as_str().contains('@') && !host.authority.host().is_empty());
            assert!(
                host.path.is_empty() || host.path.starts_with('/'),
                "{:?}",
                host.path
            );
            assert!(host.headers.values().all(HeaderValue::is_sensitive));
            assert!(host.dial_timeout.is_none_or(|timeout| !timeout.is_zero()));
            assert!(host.tls.ca.iter().all(|path| path.is_absolute()));
            let url = format!("https://{}{}/a/manifests/b?ns=x", host.authority, host.path);
            let uri = url.parse::<Uri>().unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(uri.authority(), Some(&host.authority));
        }
    }
}
