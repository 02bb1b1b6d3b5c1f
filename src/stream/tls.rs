//! TLS for the streaming server, with a certificate that is read again when its
//! files change.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::Error;

/// Accepts TLS connections; None of the files means none is needed.
pub(super) fn acceptor(cert: &Path, key: &Path) -> Result<Option<TlsAcceptor>, Error> {
    if cert.as_os_str().is_empty() {
        return Ok(None);
    }
    let provider = Arc::new(ring::default_provider());
    let files = Files::open(cert.into(), key.into(), provider.clone())?;
    let wrong = |e: rustls::Error| Error::Certificate {
        path: cert.into(),
        message: e.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(files));
    // Upgrades are of HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// A certificate chain and its key, as files.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamp: Stamp,
    key: Arc<CertifiedKey>,
}

/// What changes when a file is written or replaced: inode, size, time of change.
type Stamp = [Option<(u64, u64, i64, i64)>; 2];

impl Files {
    fn open(cert: PathBuf, key: PathBuf, provider: Arc<CryptoProvider>) -> Result<Files, Error> {
        let stamp = stamp(&cert, &key);
        let loaded = load(&cert, &key, &provider)?;
        let loaded = Mutex::new(Loaded {
            stamp,
            key: Arc::new(loaded),
        });
        Ok(Files {
            cert,
            key,
            provider,
            loaded,
        })
    }

    /// The certificate of now; the last good one while the files are not.
    fn current(&self) -> Arc<CertifiedKey> {
        let stamp = stamp(&self.cert, &self.key);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.stamp != stamp {
            loaded.stamp = stamp;
            match load(&self.cert, &self.key, &self.provider) {
                Ok(key) => {
                    loaded.key = Arc::new(key);
                    info!(path = %self.cert.display(), "streaming certificate read again");
                }
                Err(error) => warn!(%error, "the streaming certificate before is still served"),
            }
        }
        loaded.key.clone()
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("cert", &self.cert)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

fn stamp(cert: &Path, key: &Path) -> Stamp {
    [cert, key].map(|path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
    })
}

fn load(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let wrong = |path: &Path, message: String| Error::Certificate {
        path: path.into(),
        message,
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(cert, e.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(cert, "holds no certificate in PEM form".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e.to_string()))?;
    // Fails when certificate and key do not belong together: one of the two files
    // may not have been replaced yet.
    CertifiedKey::from_der(chain, private, provider).map_err(|e| wrong(cert, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(dir.join("cert"), made.cert.pem()).unwrap();
        fs::write(dir.join("key"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().to_vec()
    }

    #[test]
    fn a_replaced_certificate_is_served_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
        let first = write(dir.path(), "one");
        let provider = Arc::new(ring::default_provider());
        let files = Files::open(cert.clone(), key.clone(), provider).unwrap();
        assert_eq!(files.current().cert[0].to_vec(), first);
        let second = write(dir.path(), "two");
        assert_eq!(files.current().cert[0].to_vec(), second);
        fs::write(&cert, "nothing").unwrap();
        assert_eq!(files.current().cert[0].to_vec(), second);
        let third = write(dir.path(), "three");
        assert_eq!(files.current().cert[0].to_vec(), third);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "one");
        let key = fs::read(dir.path().join("key")).unwrap();
        write(dir.path(), "two");
        fs::write(dir.path().join("key"), key).unwrap();
        let error = acceptor(&dir.path().join("cert"), &dir.path().join("key"))
            .err()
            .unwrap();
        assert!(matches!(error, Error::Certificate { .. }), "{error}");
    }
}
