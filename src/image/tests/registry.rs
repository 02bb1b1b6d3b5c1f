//! A registry in the test's own process, which does what a rule tells it:
//! raw HTTP/1.1, one request a connection, so that it can break anywhere.

use std::{
    collections::HashMap,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::image::digest::Digest;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `N` of `Range: bytes=N-`.
    pub fn range(&self) -> Option<usize> {
        self.header("range")
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// An answer, and how it goes wrong.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    pub cut: Option<usize>,
    /// Nothing more comes after so many bytes.
    pub hang: Option<usize>,
    /// The length that is announced, if not the body's; `None` in it: chunked.
    pub length: Option<Option<usize>>,
    pub delay: Duration,
    /// The bytes sent at a time, and the pause after them; of the head too with `true`.
    pub drip: Option<(usize, Duration, bool)>,
    /// The body's last byte again and again; counts what was sent.
    pub endless: Option<Arc<AtomicU64>>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status,
            headers: vec![],
            body: body.into(),
            cut: None,
            hang: None,
            length: None,
            delay: Duration::ZERO,
            drip: None,
            endless: None,
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Rule = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    content: Mutex<HashMap<String, (String, Vec<u8>)>>,
    log: Mutex<Vec<Request>>,
    rules: Mutex<Vec<Rule>>,
    no_ranges: Mutex<bool>,
}

#[derive(Clone)]
pub struct Registry {
    pub addr: SocketAddr,
    state: Arc<State>,
}

/// A layer as it is pushed.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
}

impl Layer {
    pub fn gzip(tar: &[u8]) -> Layer {
        Layer {
            blob: gzip(tar),
            diff_id: Digest::of(tar),
        }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

impl Registry {
    pub async fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Registry {
            addr: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let state = Arc::clone(&registry.state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    let _ = serve(stream, &state).await;
                });
            }
        });
        registry
    }

    /// `127.0.0.1:PORT/NAME`
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.addr)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers by `rule` where it has an answer; later rules first.
    pub fn on(&self, rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.state.rules.lock().unwrap().push(Box::new(rule));
    }

    pub fn forget_rules(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    pub fn without_ranges(&self) {
        *self.state.no_ranges.lock().unwrap() = true;
    }

    pub fn log(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    /// How often a path with `part` was asked for with GET.
    pub fn count(&self, part: &str) -> usize {
        let gets = |r: &&Request| r.method == "GET" && r.path.contains(part);
        self.log().iter().filter(gets).count()
    }

    pub fn put(&self, path: &str, media_type: &str, body: &[u8]) -> Digest {
        let mut content = self.state.content.lock().unwrap();
        content.insert(path.to_owned(), (media_type.to_owned(), body.to_vec()));
        Digest::of(body)
    }

    pub fn put_manifest(&self, name: &str, tag: &str, body: &[u8]) -> Digest {
        let media_type = serde_json::from_slice::<serde_json::Value>(body).unwrap()["mediaType"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let digest = Digest::of(body);
        self.put(&format!("/v2/{name}/manifests/{tag}"), &media_type, body);
        self.put(&format!("/v2/{name}/manifests/{digest}"), &media_type, body)
    }

    /// What it would answer without rules.
    pub fn answer(&self, request: &Request) -> Reply {
        stored(&self.state, request)
    }

    /// The size of what is at `path`, in bytes.
    pub fn size(&self, path: &str) -> usize {
        self.state.content.lock().unwrap()[path].1.len()
    }

    /// Pushes an image; the answer is its id and its manifest's digest.
    pub fn push(
        &self,
        name: &str,
        tag: &str,
        layers: &[Layer],
        config: serde_json::Value,
    ) -> (String, Digest) {
        let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let config = serde_json::json!({
            "architecture": crate::image::platform::Platform::host().architecture, "os": "linux",
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let id = Digest::of(&config);
        self.put(&format!("/v2/{name}/blobs/{id}"), "", &config);
        let mut descriptors = Vec::new();
        for layer in layers {
            self.put(&format!("/v2/{name}/blobs/{}", layer.digest()), "", &layer.blob);
            descriptors.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest().to_string(), "size": layer.blob.len(),
            }));
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": id.to_string(), "size": config.len()},
            "layers": descriptors,
        });
        let digest = self.put_manifest(name, tag, &serde_json::to_vec(&manifest).unwrap());
        (id.to_string(), digest)
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let mut request = Request {
        method: first.next().unwrap_or_default(),
        path: first.next().unwrap_or_default(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body: String::new(),
    };
    let mut body = vec![0; request.header("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    state.log.lock().unwrap().push(request.clone());
    let ruled = state
        .rules
        .lock()
        .unwrap()
        .iter()
        .rev()
        .find_map(|rule| rule(&request));
    let reply = ruled.unwrap_or_else(|| stored(state, &request));
    write(&mut stream, &request, reply).await
}

fn stored(state: &State, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    let content = state.content.lock().unwrap();
    let Some((media_type, body)) = content.get(path) else {
        let unknown = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}"#;
        return Reply::new(404, unknown);
    };
    let ranges = !*state.no_ranges.lock().unwrap();
    let reply = match request.range().filter(|start| ranges && *start < body.len()) {
        Some(start) => Reply::new(206, &body[start..]).with(
            "content-range",
            format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
        ),
        None => Reply::new(200, body.clone()),
    };
    let reply = match path.contains("/manifests/") {
        true => reply.with("docker-content-digest", Digest::of(body).to_string()),
        false => reply,
    };
    reply.with("content-type", media_type.clone())
}

async fn write(stream: &mut TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
    tokio::time::sleep(reply.delay).await;
    let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", reply.status);
    match reply.length {
        None => head.push_str(&format!("content-length: {}\r\n", reply.body.len())),
        Some(Some(length)) => head.push_str(&format!("content-length: {length}\r\n")),
        // The end of the connection is the end of the body.
        Some(None) => {}
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    match reply.drip {
        Some((piece, pause, true)) => drip(stream, head.as_bytes(), piece, pause).await?,
        _ => stream.write_all(head.as_bytes()).await?,
    }
    if request.method == "HEAD" {
        return stream.shutdown().await;
    }
    let stop = reply
        .cut
        .or(reply.hang)
        .unwrap_or(reply.body.len())
        .min(reply.body.len());
    match reply.drip {
        Some((piece, pause, _)) => drip(stream, &reply.body[..stop], piece, pause).await?,
        None => stream.write_all(&reply.body[..stop]).await?,
    }
    stream.flush().await?;
    if let (Some(sent), Some(last)) = (&reply.endless, reply.body.last()) {
        let more = [*last; 4096];
        loop {
            stream.write_all(&more).await?;
            sent.fetch_add(4096, Ordering::Relaxed);
        }
    }
    if reply.hang.is_some() {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    stream.shutdown().await
}

async fn drip(stream: &mut TcpStream, bytes: &[u8], piece: usize, pause: Duration) -> std::io::Result<()> {
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// A tar archive: names ending in a slash are folders.
pub fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in entries {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(
            100,
            if name.ends_with('/') {
                b"0000755\0"
            } else {
                b"0000644\0"
            },
        );
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, if name.ends_with('/') { b"5" } else { b"0" });
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A layer with one file.
pub fn file(name: &str, content: &[u8]) -> Layer {
    Layer::gzip(&tar(&[(name, content)]))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
