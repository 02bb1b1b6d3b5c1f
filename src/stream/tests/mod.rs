//! The server against raw clients, with local processes and sockets behind it.

mod backend;
mod command;
mod forward;
mod hostile;
mod spdy_client;
mod websocket_client;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    config,
    kind::Kind,
    stream::{self, AttachRequest, ExecRequest, PortForwardRequest, Server, Urls},
};
use backend::Local;
use spdy_client::{Event, SpdyClient};
use websocket_client::WebSocketClient;

/// A server of this process.
struct Served {
    urls: Urls,
    backend: Arc<Local>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Served {
    async fn start() -> Served {
        Served::with(config::Streaming::default()).await
    }

    async fn with(config: config::Streaming) -> Served {
        let backend = Arc::new(Local::default());
        let server = Server::bind(&config, backend.clone()).await.unwrap();
        let urls = server.urls();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        let stop = Some(stop);
        Served {
            urls,
            backend,
            stop,
            task,
        }
    }

    /// A URL for a command of this host, without a terminal.
    fn exec(&self, command: &[&str], stdin: bool) -> String {
        let request = ExecRequest {
            container: "c".into(),
            command: command.iter().map(ToString::to_string).collect(),
            stdin,
            stdout: true,
            stderr: true,
            tty: false,
        };
        self.urls.exec(request).unwrap()
    }

    fn attach(&self, container: &str) -> String {
        let request = AttachRequest {
            container: container.into(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: false,
        };
        self.urls.attach(request).unwrap()
    }

    fn forward(&self, ports: &[u16]) -> String {
        let request = PortForwardRequest {
            sandbox: "s".into(),
            ports: ports.to_vec(),
        };
        self.urls.port_forward(request).unwrap()
    }

    /// Waits until no session is alive.
    async fn quiet(&self) {
        let late = Instant::now() + Duration::from_secs(20);
        while self.backend.alive.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < late, "a session is left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Bytes that the large transfers carry: 32 MiB, or as many MiB as the environment
/// variable BERTH_TEST_STREAM_MIB says.
fn large() -> u64 {
    let mib = std::env::var("BERTH_TEST_STREAM_MIB")
        .ok()
        .and_then(|mib| mib.parse().ok());
    mib.unwrap_or(32_u64) << 20
}

/// Bytes that do not repeat within a transfer's pieces, and their hash.
struct Pattern {
    state: u64,
    left: u64,
    hash: Sha256,
}

impl Pattern {
    fn new(length: u64) -> Pattern {
        Pattern {
            state: 0x9e37_79b9_7f4a_7c15,
            left: length,
            hash: Sha256::new(),
        }
    }

    /// The next piece; None at the end.
    fn next(&mut self) -> Option<Vec<u8>> {
        let size = usize::try_from(self.left.min(32 * 1024)).unwrap();
        if size == 0 {
            return None;
        }
        let mut piece = Vec::with_capacity(size + 8);
        while piece.len() < size {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            piece.extend_from_slice(&self.state.to_ne_bytes());
        }
        piece.truncate(size);
        self.left -= u64::try_from(size).unwrap();
        self.hash.update(&piece);
        Some(piece)
    }

    fn digest(self) -> Vec<u8> {
        self.hash.finalize().to_vec()
    }
}

fn say_throughput(what: &str, bytes: u64, since: Instant) {
    let mib = bytes >> 20;
    let seconds = since.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(mib).unwrap()) / seconds;
    eprintln!("{what}: {mib} MiB in {seconds:.2} s, {rate:.0} MiB/s");
}
