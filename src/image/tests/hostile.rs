//! Registries that mean harm: they drip, never end, send elsewhere, and make bombs.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::kind::{HasKind as _, Kind};

const PAUSE: Duration = Duration::from_millis(50);

fn dripping(status: u16, body: &[u8], head: bool) -> Reply {
    let mut reply = Reply::new(status, body);
    reply.drip = Some((1, PAUSE, head));
    reply
}

/// One byte every now and then is no transfer: each step gives up after its patience
/// times its tries, whatever still comes.
#[tokio::test]
async fn who_drips_is_given_up() {
    let long = vec![b' '; 3000];
    let cases: Vec<(&str, Reply, &str)> = vec![
        ("manifests", dripping(200, &long, false), "stalled"),
        ("manifests", dripping(200, b"{}", true), "no answer within"),
        ("manifests", dripping(503, &long, false), "503"),
        ("/blobs/", dripping(200, &long, false), "stalled"),
        ("/blobs/", dripping(200, b"{}", true), "no answer within"),
    ];
    let mut attempts = tokio::task::JoinSet::new();
    for (part, reply, words) in cases {
        attempts.spawn(async move {
            let registry = Registry::start().await;
            let mut config = json!({});
            // A config that is longer than what drips.
            config["Labels"] = json!({"long": "x".repeat(4000)});
            registry.push("a", "v1", &[file("x", b"1")], config);
            registry.on(move |request| request.path.contains(part).then(|| reply.clone()));
            let node = Node::new();
            let begin = Instant::now();
            let error = node.pull(&registry.name("a:v1")).await.unwrap_err();
            assert!(error.to_string().contains(words), "{part}: {error}");
            // 3,000 bytes would take two and a half minutes.
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{part}: {:?}",
                begin.elapsed()
            );
            node.assert_empty();
        });
    }
    attempts.join_all().await;
}

/// A link of some kilobytes a second is one: what takes longer than the patience comes whole.
#[tokio::test]
async fn who_is_slow_is_waited_for() {
    let registry = Registry::start().await;
    let text: Vec<u8> = (0..6000u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes())
        .collect();
    let layer = file("x", &text);
    let (id, _) = registry.push("a", "v1", std::slice::from_ref(&layer), json!({}));
    let (path, blob) = (layer.digest().to_string(), layer.blob.clone());
    registry.on(move |request| {
        request.path.contains(&path).then(|| {
            let mut reply = Reply::new(200, &blob[..]);
            reply.drip = Some((blob.len() / 4 + 1, Duration::from_millis(700), false));
            reply
        })
    });
    let node = Node::new();
    let patience = Patience {
        stall: Duration::from_secs(2),
        tries: 1,
        ..Patience::default()
    };
    let settings = Settings {
        patience,
        ..Settings::of(&node.config)
    };
    *node.images.inner.settings.write().unwrap() = Arc::new(settings);
    let begin = Instant::now();
    assert_eq!(node.pull(&registry.name("a:v1")).await.unwrap(), id);
    assert!(begin.elapsed() > patience.stall, "it was not slow");
}

/// A body is read to the size that its descriptor names and not on.
#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    for (part, whole) in [("manifests", 4 << 20), ("/blobs/", 1 << 20)] {
        let registry = Registry::start().await;
        registry.push("a", "v1", &[file("x", b"1")], json!({}));
        let sent = Arc::new(AtomicU64::new(0));
        let mut reply = Reply::new(200, b" ");
        reply.length = Some(None);
        reply.endless = Some(Arc::clone(&sent));
        registry.on(move |request| request.path.contains(part).then(|| reply.clone()));
        let node = Node::new();
        let error = node.pull(&registry.name("a:v1")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss, "{error}");
        assert!(error.to_string().contains("larger than"), "{error}");
        // What sockets and the connection hold besides; all tries together.
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < whole + (16 << 20), "{part}: {sent}");
        node.assert_empty();
    }
}

/// The way back to the first host is the second host's idea: no password on it.
#[tokio::test]
async fn a_redirect_that_comes_back_has_lost_the_authorization() {
    let (registry, other) = (Registry::start().await, Registry::start().await);
    let layer = file("x", b"1");
    registry.push("a", "v1", std::slice::from_ref(&layer), json!({}));
    let path = format!("/v2/a/blobs/{}", layer.digest());
    let (home, away) = (registry.url(), other.url());
    let basic = |r: &registry::Request| r.header("authorization").starts_with("Basic ");
    registry.on(move |r| {
        let demand = Reply::new(401, "").with("www-authenticate", "Basic realm=\"r\"");
        (!basic(r) && !r.path.contains("back")).then_some(demand)
    });
    registry.on(move |r| (r.path == path).then(|| Reply::new(307, "").with("location", format!("{away}/x"))));
    other.on(move |_| Some(Reply::new(302, "").with("location", format!("{home}/back"))));
    registry.put("/back", "", &layer.blob);
    let auth = AuthConfig {
        username: "user".into(),
        password: "secret".into(),
        ..AuthConfig::default()
    };
    Node::new().pull_as(&registry.name("a:v1"), auth).await.unwrap();
    let seen = registry.log();
    let back: Vec<_> = seen.iter().filter(|r| r.path.contains("back")).collect();
    assert_eq!(back.len(), 1);
    assert!(back[0].header("authorization").is_empty());
    assert!(other.log().iter().all(|r| r.header("authorization").is_empty()));
    assert_eq!(other.log().len(), 1);
}

/// Two hosts that send to each other are asked a few times and no more.
#[tokio::test]
async fn two_hosts_that_send_to_each_other() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    let (first, second) = (one.url(), two.url());
    one.on(move |r| Some(Reply::new(307, "").with("location", format!("{second}{}", r.path))));
    two.on(move |r| Some(Reply::new(307, "").with("location", format!("{first}{}", r.path))));
    let node = Node::new();
    let error = node.pull(&one.name("a:v1")).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert!(one.log().len() + two.log().len() < 20);
    node.assert_empty();
}

/// `Retry-After` is waited for, in both of its forms; a wish beyond the bound ends it.
#[tokio::test]
async fn retry_after_is_honoured_within_bounds() {
    let date = |at: SystemTime| httpdate::fmt_http_date(at);
    let soon = |seconds| SystemTime::now() + Duration::from_secs(seconds);
    for (status, by_date) in [(429, false), (503, true)] {
        let registry = Registry::start().await;
        let (id, _) = registry.push("a", "v1", &[file("x", b"1")], json!({}));
        let (tries, refused) = (AtomicUsize::new(0), Arc::new(OnceLock::new()));
        let until = Arc::clone(&refused);
        registry.on(move |request| {
            let first = request.path.contains("manifests") && tries.fetch_add(1, Ordering::Relaxed) == 0;
            first.then(|| {
                let after = if by_date { date(soon(2)) } else { "1".to_owned() };
                // A date has whole seconds: two away is at least one away.
                until.set(soon(1)).unwrap();
                Reply::new(status, "busy").with("retry-after", after)
            })
        });
        assert_eq!(Node::new().pull(&registry.name("a:v1")).await.unwrap(), id);
        let early = refused.get().unwrap().duration_since(SystemTime::now());
        // A hair for clocks that are adjusted.
        assert!(
            early.is_err() || early.unwrap() < Duration::from_millis(100),
            "by date: {by_date}"
        );
    }
    for after in [
        "3600".to_owned(),
        date(soon(3600)),
        "18446744073709551615".to_owned(),
    ] {
        let registry = Registry::start().await;
        registry.push("a", "v1", &[file("x", b"1")], json!({}));
        let wish = after.clone();
        registry.on(move |_| Some(Reply::new(429, "slow down").with("retry-after", &wish[..])));
        let error = Node::new().pull(&registry.name("a:v1")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("slow down"), "{error}");
        assert_eq!(registry.log().len(), 1, "{after}");
    }
}

/// The error says which image, which layer, which limit, and where that is set.
#[tokio::test]
async fn bombs_are_refused_by_name() {
    let zeros = file("zeros", &vec![0; 8 << 20]);
    let many: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
    let entries: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let many = Layer::gzip(&tar(&entries));
    for (layer, limit, key) in [
        (zeros, "1048576 bytes", "image.max_layer_bytes"),
        (many, "100 entries", "image.max_layer_entries"),
    ] {
        let registry = Registry::start().await;
        assert!(layer.blob.len() < 100_000, "no bomb");
        let layers = [file("x", b"1"), layer.clone()];
        let (id, _) = registry.push("a", "v1", &layers, json!({}));
        let node = Node::with(|config| {
            config.image.max_layer_bytes = 1 << 20;
            config.image.max_layer_entries = 100;
        });
        let name = registry.name("a:v1");
        let error = node.pull(&name).await.unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{error}");
        let message = error.to_string();
        for word in [&name, &layer.digest().to_string(), limit, key] {
            assert!(message.contains(word), "{word}: {message}");
        }
        node.assert_empty();
        // With another limit, taken over while it runs, it is an image.
        let mut config = node.config.clone();
        config.image.max_layer_bytes = 0;
        config.image.max_layer_entries = 0;
        node.images.configure(&config).unwrap();
        assert_eq!(node.pull(&name).await.unwrap(), id);
    }
}

/// A host with a certificate of these times, for 127.0.0.1; its file of `ca`.
async fn with_certificate(node: &Node, from: i32, to: i32) -> std::net::SocketAddr {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(node.root.path().join("ca.pem"), certificate.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream
                        .write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")
                        .await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn certificates_that_are_not_valid_now() {
    for (from, to, kind, words) in [
        (2001, 2002, Kind::Unavailable, "expired"),
        (2101, 2102, Kind::Unavailable, "not valid yet"),
        // With a good one the host is asked, and has nothing.
        (2001, 2102, Kind::NotFound, "404"),
    ] {
        let node = Node::new();
        let address = with_certificate(&node, from, to).await;
        let ca = node.root.path().join("ca.pem");
        let text = format!("server = \"https://{address}\"\nca = \"{}\"\n", ca.display());
        node.mirror("r.example", &text);
        let error = node.pull("r.example/a:v1").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let message = error.to_string();
        assert!(
            message.contains(words) && message.contains(&address.to_string()),
            "{message}"
        );
        node.assert_empty();
    }
}
