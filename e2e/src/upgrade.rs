//! From the URL of a streaming answer to an upgraded connection, over TCP or TLS.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::Result;

/// The bytes under a protocol. Dropping it closes the connection.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// Connects to an `http` URL and upgrades with these header lines.
pub async fn upgrade(url: &str, headers: &str) -> Result<Box<dyn Bytes>> {
    upgrade_trusting(url, headers, None).await
}

/// The same, also for an `https` URL whose certificate must be the one in `trusted`.
pub async fn upgrade_trusting(url: &str, headers: &str, trusted: Option<&Path>) -> Result<Box<dyn Bytes>> {
    let (scheme, rest) = url.split_once("://").context("not a URL")?;
    let (host, path) = rest.split_once('/').context("a URL without a path")?;
    let stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn Bytes> = match (scheme, trusted) {
        ("http", _) => Box::new(stream),
        ("https", Some(trusted)) => Box::new(encrypt(stream, host, trusted).await?),
        _ => bail!("{url}: no certificate to trust"),
    };
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte: what follows the head is the protocol's.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("closed instead of an answer")?);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 101"), "answer: {head}");
    Ok(stream)
}

async fn encrypt(stream: TcpStream, host: &str, trusted: &Path) -> Result<impl Bytes + use<>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = host.rsplit_once(':').context("a host without a port")?.0;
    let name = ServerName::try_from(name.to_owned())?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}
