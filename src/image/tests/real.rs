//! The registry that everyone runs (Debian's docker-registry), with passwords
//! and with TLS.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::{
    image::{
        auth::Token,
        digest::Digest,
        hosts::Host,
        http_client::{Answer, Ask, exchange},
        tls::{self, HttpClient, Roots},
    },
    kind::{HasKind as _, Kind},
};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::json;

/// `user` with the password `secret`, in bcrypt.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A running docker-registry; it ends with the test.
struct Real {
    addr: SocketAddr,
    dir: tempfile::TempDir,
    child: Child,
    client: HttpClient,
    scheme: &'static str,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    async fn start(tls: bool) -> Option<Real> {
        let program = "/usr/bin/docker-registry";
        if !Path::new(program).exists() {
            eprintln!("skipped: {program} is not installed (apt-get install docker-registry)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        // The port is free until someone else takes it; nobody else is on this address.
        let ip = format!(
            "127.{}.{}.{}",
            1 + std::process::id() % 250,
            u8::from(tls),
            std::process::id() / 250 % 250 + 1
        );
        let addr = std::net::TcpListener::bind(format!("{ip}:0"))
            .unwrap()
            .local_addr()
            .unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             auth: {{htpasswd: {{realm: r, path: {}}}}}\nhttp:\n  addr: {addr}\n",
            path("data"),
            path("htpasswd")
        );
        if tls {
            let made = Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                ])
                .args([
                    "-days",
                    "2",
                    "-subj",
                    "/CN=test",
                    "-addext",
                    &format!("subjectAltName=IP:{ip}"),
                ])
                .args(["-keyout", &path("key.pem"), "-out", &path("ca.pem")])
                .stderr(Stdio::null())
                .status();
            if !made.is_ok_and(|status| status.success()) {
                eprintln!("skipped: openssl is not installed (apt-get install openssl)");
                return None;
            }
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                path("ca.pem"),
                path("key.pem")
            );
        }
        std::fs::write(path("config.yml"), config).unwrap();
        let child = Command::new(program)
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let host = Host {
            https: tls,
            guessed: false,
            authority: addr.to_string().parse().unwrap(),
            path: "/v2".into(),
            pull: true,
            resolve: true,
            tls: crate::image::hosts::Tls {
                skip_verify: true,
                ..Default::default()
            },
            headers: HeaderMap::new(),
            dial_timeout: None,
        };
        let real = Real {
            addr,
            dir,
            child,
            client: tls::client(&host, &Roots::default()).unwrap(),
            scheme: if tls { "https" } else { "http" },
        };
        for _ in 0..200 {
            if std::net::TcpStream::connect(addr).is_ok() {
                return Some(real);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("docker-registry does not answer");
    }

    async fn send(&self, method: Method, uri: &str, media_type: &str, body: Vec<u8>) -> Answer {
        let mut public = HeaderMap::new();
        let token = Token::basic("user", "secret");
        public.insert(header::AUTHORIZATION, token.header.parse().unwrap());
        public.insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        let ask = Ask {
            method,
            uri: uri.parse().unwrap(),
            public,
            private: HeaderMap::new(),
            body: body.into(),
        };
        exchange(&self.client, ask, Duration::from_secs(10))
            .await
            .unwrap()
    }

    async fn push_blob(&self, name: &str, blob: &[u8]) -> Digest {
        let url = format!("{}://{}/v2/{name}/blobs/uploads/", self.scheme, self.addr);
        let answer = self
            .send(Method::POST, &url, "application/octet-stream", vec![])
            .await;
        assert_eq!(answer.response.status(), StatusCode::ACCEPTED);
        let place = answer.response.headers()[header::LOCATION]
            .to_str()
            .unwrap()
            .to_owned();
        let digest = Digest::of(blob);
        let url = format!("{place}&digest={digest}");
        let answer = self
            .send(Method::PUT, &url, "application/octet-stream", blob.to_vec())
            .await;
        assert_eq!(answer.response.status(), StatusCode::CREATED);
        digest
    }

    /// Pushes an image of Docker's media types; the answer is its id and manifest's digest.
    async fn push(&self, name: &str, layers: &[Layer]) -> (String, Digest) {
        let mut descriptors = Vec::new();
        for layer in layers {
            let digest = self.push_blob(name, &layer.blob).await;
            descriptors.push(
                json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "digest": digest.to_string(), "size": layer.blob.len()}),
            );
        }
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({"architecture": crate::image::platform::Platform::host().architecture, "os": "linux",
            "config": {"Env": null}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let id = self.push_blob(name, &config).await;
        let media_type = "application/vnd.docker.distribution.manifest.v2+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "layers": descriptors,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": id.to_string(), "size": config.len()}});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let url = format!("{}://{}/v2/{name}/manifests/v1", self.scheme, self.addr);
        let answer = self.send(Method::PUT, &url, media_type, manifest.clone()).await;
        assert_eq!(answer.response.status(), StatusCode::CREATED);
        (id.to_string(), Digest::of(&manifest))
    }
}

fn password(password: &str) -> AuthConfig {
    AuthConfig {
        username: "user".into(),
        password: password.into(),
        ..AuthConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_registry_with_passwords() {
    let Some(real) = Real::start(false).await else {
        return;
    };
    let layers: Vec<Layer> = (0..6)
        .map(|n| file(&format!("f{n}"), &vec![n; 300_000]))
        .collect();
    let (id, digest) = real.push("some/image", &layers).await;
    let node = Node::new();
    let name = format!("{}/some/image", real.addr);
    let tag = format!("{name}:v1");
    for refused in [None, Some(password("wrong"))] {
        let error = node.images.pull(&tag, refused).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");
        node.assert_empty();
    }
    assert_eq!(node.pull_as(&tag, password("secret")).await.unwrap(), id);
    assert_eq!(
        node.pull_as(&format!("{name}@{digest}"), password("secret"))
            .await
            .unwrap(),
        id
    );
    assert_eq!(node.read(&id, "f5").unwrap(), vec![5; 300_000]);
    let missing = node
        .pull_as(&format!("{name}:v2"), password("secret"))
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound, "{missing}");
    node.images.remove(&tag).unwrap();
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_registry_with_tls() {
    let Some(real) = Real::start(true).await else {
        return;
    };
    let (id, _) = real.push("a", &[file("x", b"1")]).await;
    let tag = format!("{}/a:v1", real.addr);
    // A loopback host that turns out to speak TLS.
    assert_eq!(Node::new().pull_as(&tag, password("secret")).await.unwrap(), id);

    let node = Node::new();
    node.mirror("r.example", &format!("server = \"https://{}\"\n", real.addr));
    let error = node
        .pull_as("r.example/a:v1", password("secret"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("certificate"), "{error}");

    let ca = real.dir.path().join("ca.pem");
    let key = real.dir.path().join("key.pem");
    node.mirror(
        "r.example",
        &format!(
            "server = \"https://{}\"\nca = \"{}\"\nclient = [[\"{}\", \"{}\"]]\n",
            real.addr,
            ca.display(),
            ca.display(),
            key.display()
        ),
    );
    assert_eq!(
        node.pull_as("r.example/a:v1", password("secret")).await.unwrap(),
        id
    );
    node.mirror(
        "r.example",
        &format!("server = \"https://{}\"\nca = \"missing.pem\"\n", real.addr),
    );
    let error = node
        .pull_as("r.example/a:v1", password("secret"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
}
