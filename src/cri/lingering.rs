//! A connection that is closed when its client has closed it.
//!
//! HTTP/2 ends a connection politely with a GOAWAY that names the last call that is
//! answered (RFC 9113, 6.8); what was sent behind it the client makes again elsewhere. But
//! a client that is just writing such a call finds a closed socket, and may give up before
//! it has read why. So what ended here stays open for a moment, and what comes is
//! read and dropped.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::UnixStream,
    sync::mpsc,
};
use tonic::transport::server::Connected;

/// How long a client is waited for that does not close. Those that are there close in
/// milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection; `open` is dropped when it is closed on both sides, or was waited for.
#[derive(Debug)]
pub struct Lingering {
    stream: Option<UnixStream>,
    open: mpsc::Sender<()>,
}

impl Lingering {
    pub fn new(stream: UnixStream, open: mpsc::Sender<()>) -> Lingering {
        let stream = Some(stream);
        Lingering { stream, open }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut UnixStream> {
        let stream = self.get_mut().stream.as_mut();
        Pin::new(stream.expect("it is there until this is dropped"))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        // Most often the client has closed it.
        if matches!(stream.try_read(&mut [0]), Ok(0)) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let open = self.open.clone();
            runtime.spawn(async move {
                let _ = tokio::time::timeout(PATIENCE, read_out(stream)).await;
                drop(open);
            });
        }
    }
}

async fn read_out(mut stream: UnixStream) -> io::Result<()> {
    // The client sees that no answer comes any more.
    stream.shutdown().await?;
    let mut dropped = [0; 1024];
    while stream.read(&mut dropped).await? > 0 {}
    Ok(())
}

impl Connected for Lingering {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Lingering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client writes after the end is taken, and it reads what it was told before.
    #[tokio::test]
    async fn a_late_client_reads_why() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (open, mut ended) = mpsc::channel(1);
        let mut ours = Lingering::new(ours, open);
        ours.write_all(b"goodbye").await.unwrap();
        ours.shutdown().await.unwrap();
        drop(ours);
        theirs.write_all(b"another call").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        theirs.write_all(b"and one more").await.unwrap();
        let mut read = String::new();
        theirs.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "goodbye");
        drop(theirs);
        assert!(ended.recv().await.is_none());
    }

    #[tokio::test]
    async fn who_has_closed_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (open, mut ended) = mpsc::channel(1);
        drop(theirs);
        let ours = Lingering::new(ours, open);
        ours.stream.as_ref().unwrap().readable().await.unwrap();
        drop(ours);
        assert!(matches!(
            ended.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_closes_is_waited_for_a_second() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (open, mut ended) = mpsc::channel(1);
        drop(Lingering::new(ours, open));
        assert!(ended.recv().await.is_none());
        drop(theirs);
    }
}
