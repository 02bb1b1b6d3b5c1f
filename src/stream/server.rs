//! The streaming server: connections in, sessions out.

use std::{
    convert::Infallible,
    future::ready,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use http::{Request, StatusCode};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{
    AttachRequest, Backend, Error, ExecRequest, PortForwardRequest,
    link::Limits,
    portforward,
    remotecommand::{self, Command},
    spdy, tls,
    token::{self, Tokens},
    upgrade::{Answer, Protocol, Refusal, negotiate, refusal},
    websocket::{self, Codec},
};
use crate::config;

/// Connections that have not shown a token yet.
const MAX_STRANGERS: usize = 256;
/// How long one of them may take for its handshake and its request, each.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long sessions may take for their end when berthd stops.
const GRACE: Duration = Duration::from_secs(3);
/// Most ports that a plain WebSocket client may forward at once: two channels each.
const MAX_PORTS: usize = 127;

/// Makes the URLs that the CRI answers with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Urls {
    base: Arc<str>,
    tokens: Arc<Tokens>,
}

impl Urls {
    /// A URL for one exec, good for a minute.
    pub fn exec(&self, request: ExecRequest) -> Result<String, Error> {
        if request.command.is_empty() {
            return Err(Error::Invalid("cmd is empty"));
        }
        check(
            &request.container,
            [request.stdin, request.stdout, request.stderr, request.tty],
        )?;
        self.url(token::Request::Exec(request))
    }

    /// A URL for one attach, good for a minute.
    pub fn attach(&self, request: AttachRequest) -> Result<String, Error> {
        check(
            &request.container,
            [request.stdin, request.stdout, request.stderr, request.tty],
        )?;
        self.url(token::Request::Attach(request))
    }

    /// A URL for one port-forward, good for a minute.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, Error> {
        if request.sandbox.is_empty() {
            return Err(Error::Invalid("pod_sandbox_id is empty"));
        }
        if request.ports.len() > MAX_PORTS {
            return Err(Error::Invalid("port has more than 127 entries"));
        }
        self.url(token::Request::PortForward(request))
    }

    fn url(&self, request: token::Request) -> Result<String, Error> {
        let verb = request.verb();
        let token = self.tokens.insert(request, Instant::now())?;
        Ok(format!("{}/{verb}/{token}", self.base))
    }
}

fn check(container: &str, [stdin, stdout, stderr, tty]: [bool; 4]) -> Result<(), Error> {
    if container.is_empty() {
        return Err(Error::Invalid("container_id is empty"));
    }
    if tty && stderr {
        return Err(Error::Invalid(
            "tty and stderr cannot both be true: a terminal has one output",
        ));
    }
    if !stdin && !stdout && !stderr {
        return Err(Error::Invalid("one of stdin, stdout and stderr must be true"));
    }
    Ok(())
}

/// A bound server that is not serving yet.
pub struct Server<B> {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    urls: Urls,
    context: Context<B>,
}

impl<B> std::fmt::Debug for Server<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("base", &self.urls.base)
            .finish_non_exhaustive()
    }
}

/// What every connection needs.
struct Context<B> {
    tokens: Arc<Tokens>,
    backend: Arc<B>,
    limits: Limits,
    stop: watch::Receiver<bool>,
    stopper: Arc<watch::Sender<bool>>,
}

impl<B> Clone for Context<B> {
    fn clone(&self) -> Self {
        Context {
            tokens: self.tokens.clone(),
            backend: self.backend.clone(),
            limits: self.limits,
            stop: self.stop.clone(),
            stopper: self.stopper.clone(),
        }
    }
}

impl<B: Backend> Server<B> {
    /// Binds the configured address and reads the certificate, if there is one.
    pub async fn bind(config: &config::Streaming, backend: Arc<B>) -> Result<Server<B>, Error> {
        let tls = tls::acceptor(&config.tls_cert, &config.tls_key)?;
        let listen = |source| Error::Listen {
            address: config.address,
            source,
        };
        let listener = TcpListener::bind(config.address).await.map_err(listen)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let host = reachable(listener.local_addr().map_err(listen)?);
        let tokens = Arc::new(Tokens::default());
        let urls = Urls {
            base: format!("{scheme}://{host}").into(),
            tokens: tokens.clone(),
        };
        let (stopper, stop) = watch::channel(false);
        let limits = Limits {
            idle: Duration::from_secs(config.idle_timeout),
            creation: Duration::from_secs(config.creation_timeout),
        };
        let context = Context {
            tokens,
            backend,
            limits,
            stop,
            stopper: Arc::new(stopper),
        };
        Ok(Server {
            listener,
            tls,
            urls,
            context,
        })
    }

    /// What makes URLs for this server.
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Serves until `shutdown` is ready; then accepts no more, ends the sessions in
    /// an orderly way, and cuts off those that take longer than some seconds.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
        tokio::pin!(shutdown);
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let permit = strangers.clone().acquire_owned().await.ok();
                (permit, self.listener.accept().await)
            };
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                accepted = accepted => match accepted {
                    (Some(permit), Ok((stream, _))) => {
                        let (tls, context) = (self.tls.clone(), self.context.clone());
                        connections.spawn(serve_connection(stream, tls, context, permit));
                    }
                    (_, Err(error)) => {
                        // Out of descriptors, most likely: some will be free soon.
                        warn!(%error, "accept a streaming connection");
                        sleep(Duration::from_millis(100)).await;
                    }
                    (None, _) => break,
                },
            }
        }
        drop(self.listener);
        // Without sessions there is nobody to hear it.
        let _ = self.context.stopper.send(true);
        let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    }
}

/// The address for URLs: the kubelet is on this host, so any address means loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The life of one connection: TLS, the request, the session.
async fn serve_connection<B: Backend>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    context: Context<B>,
    permit: OwnedSemaphorePermit,
) {
    // Keystrokes are not to wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "set TCP_NODELAY on a streaming connection");
    }
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    match tls {
        None => serve_http(stream, socket, context, permit).await,
        Some(tls) => match timeout(PATIENCE, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve_http(stream, socket, context, permit).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake of a streaming connection"),
            Err(_) => debug!("TLS handshake of a streaming connection took too long"),
        },
    }
}

async fn serve_http<B, I>(io: I, socket: OwnedFd, context: Context<B>, permit: OwnedSemaphorePermit)
where
    B: Backend,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let accepted = Arc::new(Mutex::new(None));
    let (tokens, slot) = (context.tokens.clone(), accepted.clone());
    let service = service_fn(move |request| {
        let (answer, session) = match answer(&tokens, &request) {
            Ok((answer, session)) => (answer, Some(session)),
            Err(refusal) => (*refusal, None),
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = session;
        ready(Ok::<_, Infallible>(answer))
    });
    let parts = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service)
        .without_shutdown()
        .await;
    let parts = match parts {
        Ok(parts) => parts,
        Err(error) => return debug!(%error, "request of a streaming connection"),
    };
    let session: Option<Accepted> = accepted.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(session) = session else { return };
    drop(permit);
    let (io, read) = (parts.io.into_inner(), BytesMut::from(parts.read_buf));
    session.run(io, read, socket, context).await;
}

/// A request that was found right.
struct Accepted {
    request: token::Request,
    protocol: Protocol,
}

/// Answers a request. The token is spent only by an upgrade that is possible:
/// clients fall back from WebSocket to SPDY with the same URL.
fn answer<T>(tokens: &Tokens, request: &Request<T>) -> Result<(Answer, Accepted), Refusal> {
    let not_found = || {
        refusal(
            StatusCode::NOT_FOUND,
            "no such streaming request, or used or too old",
        )
    };
    let path = request.uri().path();
    let Some((verb, token)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Err(not_found());
    };
    if !matches!(verb, "exec" | "attach" | "portforward") {
        return Err(not_found());
    }
    if !matches!(*request.method(), http::Method::GET | http::Method::POST) {
        return Err(refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "streams are opened with GET or POST",
        ));
    }
    let (protocol, answer) = negotiate(verb, request)?;
    let named = ports(request.uri().query().unwrap_or_default());
    let Ok(named) = named else {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "query parameter \"port\" is no list of ports",
        ));
    };
    let mut request = tokens
        .consume(verb, token, Instant::now())
        .ok_or_else(not_found)?;
    if let (Protocol::WebSocket { .. }, token::Request::PortForward(forward)) = (protocol, &mut request) {
        if forward.ports.is_empty() {
            forward.ports = named;
        }
        if forward.ports.is_empty() {
            return Err(refusal(
                StatusCode::BAD_REQUEST,
                "query parameter \"port\" is required",
            ));
        }
    }
    Ok((answer, Accepted { request, protocol }))
}

/// The ports of `port=80&port=81,82`.
fn ports(query: &str) -> Result<Vec<u16>, ()> {
    let mut ports = Vec::new();
    for value in query.split('&').filter_map(|pair| pair.strip_prefix("port=")) {
        // A comma may come encoded.
        for port in value.replace("%2C", ",").replace("%2c", ",").split(',') {
            match port.parse::<u16>() {
                Ok(port) if port > 0 && ports.len() < MAX_PORTS => ports.push(port),
                _ => return Err(()),
            }
        }
    }
    Ok(ports)
}

impl Accepted {
    /// Serves the upgraded connection to its end.
    async fn run<B, I>(self, io: I, read: BytesMut, socket: OwnedFd, context: Context<B>)
    where
        B: Backend,
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Context {
            backend,
            limits,
            stop,
            ..
        } = context;
        let socket = Some(socket);
        let command = match self.request {
            token::Request::Exec(request) => Command::Exec(request),
            token::Request::Attach(request) => Command::Attach(request),
            token::Request::PortForward(PortForwardRequest { sandbox, ports }) => {
                let sandbox = Arc::from(sandbox);
                match self.protocol {
                    Protocol::Spdy { .. } => {
                        let connection = spdy::Connection::serve(io, read, socket);
                        portforward::spdy(connection, backend, sandbox, limits, stop).await;
                    }
                    Protocol::WebSocket { codec, .. } => {
                        let reads = [true, false].repeat(ports.len());
                        let (link, channels) = websocket::serve(io, read, socket, codec, &reads);
                        let until = (limits, stop);
                        portforward::websocket(link, channels, ports, backend, sandbox, until).await;
                    }
                    Protocol::Tunnel => {
                        let (link, mut channels) = websocket::serve(io, read, socket, Codec::Raw, &[true]);
                        if let Some(channel) = channels.pop() {
                            portforward::tunnel(link, channel, backend, sandbox, (limits, stop)).await;
                        }
                    }
                }
                return;
            }
        };
        match self.protocol {
            Protocol::Spdy { version } => {
                let connection = spdy::Connection::serve(io, read, socket);
                remotecommand::spdy(connection, version, command, backend, limits, stop).await;
            }
            Protocol::WebSocket { codec, form } => {
                let reads = remotecommand::channels(&command);
                let (link, channels) = websocket::serve(io, read, socket, codec, &reads);
                remotecommand::websocket(link, channels, form, command, backend, (limits, stop)).await;
            }
            // Negotiated for port-forward only.
            Protocol::Tunnel => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_query() {
        assert_eq!(ports("port=80&x=1&port=81%2C82"), Ok(vec![80, 81, 82]));
        assert_eq!(ports(""), Ok(vec![]));
        assert_eq!(ports("port=0"), Err(()));
        assert_eq!(ports("port="), Err(()));
        assert_eq!(ports("port=65536"), Err(()));
    }

    #[test]
    fn urls_name_a_host() {
        assert_eq!(
            reachable("0.0.0.0:5".parse().unwrap()),
            "127.0.0.1:5".parse().unwrap()
        );
        assert_eq!(reachable("[::]:5".parse().unwrap()), "[::1]:5".parse().unwrap());
        assert_eq!(
            reachable("10.0.0.1:5".parse().unwrap()),
            "10.0.0.1:5".parse().unwrap()
        );
    }
}
