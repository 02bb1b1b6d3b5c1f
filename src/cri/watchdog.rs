//! systemd's watchdog is fed only while the CRI is really served: berthd asks
//! itself over its own socket, as a kubelet would.

use std::{path::Path, time::Duration};

use sd_notify::NotifyState;
use tonic::transport::Endpoint;

use crate::proto::cri::{VersionRequest, runtime_service_client::RuntimeServiceClient};

/// Feeds the watchdog until berthd ends, when the service manager has set one.
pub async fn feed(socket: &Path) {
    // Three tries in the time after which berthd is taken for dead.
    let Some(pause) = sd_notify::watchdog_enabled().map(|limit| limit / 3) else {
        return;
    };
    tracing::info!(?pause, "the service manager's watchdog is fed");
    loop {
        match probe(socket, pause).await {
            Ok(()) => drop(sd_notify::notify(&[NotifyState::Watchdog])),
            Err(error) => tracing::error!(error, "berthd does not answer itself; the watchdog is not fed"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// A new connection each time: to accept it is a part of the service.
async fn probe(socket: &Path, limit: Duration) -> Result<(), String> {
    let asked = async {
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
        let mut client = RuntimeServiceClient::new(endpoint.connect().await?);
        Ok::<_, tonic::transport::Error>(client.version(VersionRequest::default()).await)
    };
    match tokio::time::timeout(limit, asked).await {
        Err(_) => Err(format!("no answer within {limit:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(Err(status))) => Err(status.to_string()),
        Ok(Ok(Ok(_))) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_hangs_and_one_that_is_gone_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let limit = Duration::from_millis(50);
        assert!(probe(&socket, limit).await.is_err());
        // It accepts, for the kernel does, and says nothing.
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let error = probe(&socket, limit).await.unwrap_err();
        assert!(error.contains("no answer"), "{error}");
    }
}
