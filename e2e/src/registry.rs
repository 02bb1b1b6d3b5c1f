//! A real registry: Debian's docker-registry on a free port of loopback.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use tempfile::TempDir;

use crate::{Result, http};

pub const USER: &str = "berth";
pub const PASSWORD: &str = "s3cret:with colon";

/// The header by which a registry is known from others, and from whatever else has its port.
const OWN: &str = "X-E2e-Folder";

/// Runs as long as the value lives.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    process: Child,
    authenticated: bool,
    folder: TempDir,
}

impl Registry {
    /// Keeps everything in memory.
    pub async fn start() -> Result<Registry> {
        Registry::launch(false, None).await
    }

    /// Keeps blobs in files of a folder: what many megabytes are served from without
    /// the registry being what is measured.
    pub async fn keeping_in(folder: &Path) -> Result<Registry> {
        Registry::launch(false, Some(folder)).await
    }

    /// One that demands [`USER`] and [`PASSWORD`] for everything.
    pub async fn with_password() -> Result<Registry> {
        Registry::launch(true, None).await
    }

    async fn launch(authenticated: bool, blobs: Option<&Path>) -> Result<Registry> {
        // The port may be taken between the look and the start: try again.
        for _ in 0..5 {
            if let Some(registry) = Registry::try_launch(authenticated, blobs).await? {
                return Ok(registry);
            }
        }
        bail!("docker-registry does not start")
    }

    async fn try_launch(authenticated: bool, blobs: Option<&Path>) -> Result<Option<Registry>> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let storage = match blobs {
            None => "inmemory: {}".to_owned(),
            Some(blobs) => format!("filesystem: {{rootdirectory: \"{}\"}}", blobs.display()),
        };
        let mut config = format!(
            "version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{{storage}, delete: {{enabled: true}}}}
http: {{addr: \"127.0.0.1:{port}\", headers: {{{OWN}: [\"{}\"]}}}}
",
            folder.path().display()
        );
        if authenticated {
            let path = folder.path().join("htpasswd");
            fs::write(&path, password_line()?)?;
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: e2e, path: \"{}\"}}}}\n",
                path.display()
            ));
        }
        let file = folder.path().join("config.yml");
        fs::write(&file, config)?;
        let log = fs::File::create(folder.path().join("log"))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry (package docker-registry)")?;
        let mut registry = Registry {
            port,
            process,
            authenticated,
            folder,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        let url = format!("{}/v2/", registry.url());
        while Instant::now() < deadline {
            if registry.process.try_wait()?.is_some() {
                return Ok(None);
            }
            if let Ok(answer) = http::send(Method::GET, &url, &[], Vec::new()).await {
                // Somebody else has the port, and ours is about to say so and end.
                let own = registry.folder.path().as_os_str().as_encoded_bytes();
                let is_ours = answer.headers.get(OWN).is_some_and(|name| name == own);
                return Ok(is_ours.then_some(registry));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(None)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// For pushes: the header, empty when none is wanted.
    pub fn authorization(&self) -> String {
        if self.authenticated {
            format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
        } else {
            String::new()
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port of loopback on which nobody listens now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// docker-registry reads bcrypt only.
fn password_line() -> Result<Vec<u8>> {
    let output = Command::new("htpasswd")
        .args(["-nbB", USER, PASSWORD])
        .output()
        .context("run htpasswd (package apache2-utils)")?;
    Ok(output.stdout)
}
