//! HTTP clients: rustls with ring, the system's certificates and what
//! `hosts.toml` adds. The crypto provider is named here and nowhere else.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use super::{error::Error, hosts::Host};

/// A client with its own pool of connections.
pub type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// How long the system's certificates are believed before they are read again.
const ROOTS_AGE: Duration = Duration::from_secs(60);
/// Longest wait for a connection, when `dial_timeout` says nothing (as containerd).
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The system's certificate authorities, read when first needed.
#[derive(Debug, Default)]
pub struct Roots(Mutex<Option<(Instant, Arc<RootCertStore>)>>);

impl Roots {
    fn get(&self) -> Arc<RootCertStore> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, roots)) = &*cached
            && read.elapsed() < ROOTS_AGE
        {
            return Arc::clone(roots);
        }
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate of the system could not be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        let roots = Arc::new(roots);
        *cached = Some((Instant::now(), Arc::clone(&roots)));
        roots
    }
}

/// The client for `host`. Reads certificate files: call it where blocking is allowed.
pub fn client(host: &Host, roots: &Roots) -> Result<HttpClient, Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(Duration::from_secs(30)));
    http.set_connect_timeout(Some(host.dial_timeout.unwrap_or(DIAL_TIMEOUT)));
    // HTTP/1.1 only: each layer gets a connection of its own, so that a slow
    // disk behind one layer does not hold back the others.
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config(host, roots)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(256 << 10)
        .build(connector))
}

fn config(host: &Host, roots: &Roots) -> Result<ClientConfig, Error> {
    let wrong = |path: &Path, message: String| Error::Hosts {
        path: path.to_owned(),
        message,
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(Path::new("TLS"), e.to_string()))?;
    let tls = &host.tls;
    let builder = if tls.skip_verify {
        let verifier = NoVerifier(Arc::clone(&provider));
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
    } else {
        let mut all = roots.get();
        let mut named = Vec::new();
        for path in &tls.ca {
            let all = Arc::make_mut(&mut all);
            for certificate in certificates(path)? {
                all.add(certificate.clone())
                    .map_err(|e| wrong(path, e.to_string()))?;
                named.push(certificate);
            }
        }
        if named.is_empty() {
            builder.with_root_certificates(all)
        } else {
            let usual = WebPkiServerVerifier::builder_with_provider(all, Arc::clone(&provider))
                .build()
                .map_err(|e| wrong(Path::new("TLS"), e.to_string()))?;
            let verifier = NamedVerifier { usual, named };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    if tls.client.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let mut pairs = Vec::new();
    for (certificate, key) in &tls.client {
        let key_path = key.as_ref().unwrap_or(certificate);
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key_path)
            .map_err(|e| wrong(key_path, format!("private key: {e}")))?;
        let pair =
            CertifiedKey::from_der(chain, key, &provider).map_err(|e| wrong(key_path, e.to_string()))?;
        pairs.push(Arc::new(pair));
    }
    Ok(builder.with_client_cert_resolver(Arc::new(ClientPairs(pairs))))
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |message: String| Error::Hosts {
        path: path.to_owned(),
        message,
    };
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(format!("certificates: {e}")))?;
    if found.is_empty() {
        return Err(wrong("has no certificate in PEM".into()));
    }
    Ok(found)
}

/// Client certificates, of which the first that the server can check is shown.
#[derive(Debug)]
struct ClientPairs(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientPairs {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0
            .iter()
            .find(|pair| pair.key.choose_scheme(schemes).is_some())
            .cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The usual verification, and beside it: a server whose own certificate stands
/// in a file of `ca`, as `openssl req -x509` makes one for server and authority
/// in one. Go takes those, webpki by itself does not.
#[derive(Debug)]
struct NamedVerifier {
    usual: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for NamedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self
            .usual
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        // Any other reason (expired, not yet valid) stands.
        if let Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) = &usual
            && self.named.contains(end_entity)
        {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        usual
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// `skip_verify`: any certificate will do, but the handshake must be made with it.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
