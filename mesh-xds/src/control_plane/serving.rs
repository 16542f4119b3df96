//! Where clients reach the control plane: TCP, a Unix socket, or a pipe inside the process.
//!
//! Each front door is a task that owns its connections: when it ends, they are gone, as after a crash. Many front
//! doors may lead to one [`ControlPlane`], with TLS or without. Who may come in is NOT decided here.

use super::{
    ControlPlane,
    access::{Guarded, Peer},
    wire::Ads,
};
use crate::{
    InProcess,
    tls::{Acceptor, TlsServerConfig},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpListener, ToSocketAddrs},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

/// Interval and timeout of PINGs: a client that vanished without a word must not keep its streams for ever.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// For a TLS handshake: a client that opens a socket and says nothing must not keep it.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// An open front door. Dropping it stops accepting and breaks its connections, abruptly.
pub struct Serving {
    accepting: AbortHandle,
    local_addr: Option<SocketAddr>,
    #[cfg(unix)]
    socket: Option<std::path::PathBuf>,
}

impl ControlPlane {
    /// Serves on a listener until the returned value is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn serve(&self, listener: TcpListener) -> Serving {
        Serving::tcp(self.clone(), listener, None)
    }

    /// Binds a TCP address (`127.0.0.1:0` for a free port) and serves there.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn listen(&self, address: impl ToSocketAddrs) -> io::Result<Serving> {
        Ok(self.serve(TcpListener::bind(address).await?).await)
    }

    /// [`serve`](Self::serve) with TLS: HTTP/2 by ALPN, and nothing in plaintext.
    ///
    /// ```no_run
    /// # use mesh_xds::control_plane::{ControlPlane, TlsServerConfig};
    /// # async fn serve() -> std::io::Result<()> {
    /// let control_plane = ControlPlane::new();
    /// let tls = TlsServerConfig::from_files("/etc/xds/tls.crt", "/etc/xds/tls.key");
    /// let serving = control_plane.listen_tls("0.0.0.0:15012", tls).await?;
    /// # drop(serving); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` when a file of `config` is not good.
    pub async fn serve_tls(&self, listener: TcpListener, config: TlsServerConfig) -> io::Result<Serving> {
        let acceptor = config.acceptor().await;
        let acceptor = acceptor.map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
        Ok(Serving::tcp(self.clone(), listener, Some(acceptor)))
    }

    /// Binds a TCP address and serves there with TLS.
    ///
    /// # Errors
    /// As [`serve_tls`](Self::serve_tls), and when the address cannot be bound.
    pub async fn listen_tls(&self, address: impl ToSocketAddrs, config: TlsServerConfig) -> io::Result<Serving> {
        self.serve_tls(TcpListener::bind(address).await?, config).await
    }

    /// Serves on a Unix socket, which is removed when the returned value is dropped. A socket file that a dead
    /// process left behind is replaced.
    ///
    /// # Errors
    /// When the path cannot be bound, in particular when somebody is serving there.
    #[cfg(unix)]
    pub async fn serve_unix(&self, path: impl AsRef<std::path::Path>) -> io::Result<Serving> {
        use tokio::net::{UnixListener, UnixStream};
        let path = path.as_ref();
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path).await {
                Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)?
                }
                _ => return Err(error),
            },
            bound => bound?,
        };
        let mut serving = Serving::new(self.clone(), Door::Unix(listener), None);
        serving.socket = Some(path.to_owned());
        Ok(serving)
    }

    /// A front door inside this process. It stays open while a clone of the returned value or a connection lives, even
    /// when this handle is gone.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn in_process(&self) -> InProcess {
        let (door, dials) = InProcess::new("mesh-xds");
        tokio::spawn(accept(self.clone(), Door::InProcess(dials), None));
        door
    }
}

impl Serving {
    fn tcp(control_plane: ControlPlane, listener: TcpListener, tls: Option<Acceptor>) -> Self {
        let local_addr = listener.local_addr().ok();
        let mut serving = Self::new(control_plane, Door::Tcp(listener), tls);
        serving.local_addr = local_addr;
        serving
    }

    fn new(control_plane: ControlPlane, door: Door, tls: Option<Acceptor>) -> Self {
        let accepting = tokio::spawn(accept(control_plane, door, tls)).abort_handle();
        Self {
            accepting,
            local_addr: None,
            #[cfg(unix)]
            socket: None,
        }
    }

    /// The TCP address that clients dial.
    ///
    /// # Errors
    /// `Unsupported` on a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_addr.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "a Unix socket has no IP address"))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
        #[cfg(unix)]
        if let Some(path) = &self.socket {
            // Somebody else may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

enum Door {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
    InProcess(mpsc::Receiver<DuplexStream>),
}

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

impl Door {
    /// The next connection; `None` when there will be no more.
    async fn next(&mut self) -> io::Result<Option<Box<dyn Transport>>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (io, _) = listener.accept().await?;
                // Without it a small answer could wait for a delayed TCP acknowledgement.
                io.set_nodelay(true)?;
                Some(Box::new(io))
            }
            #[cfg(unix)]
            Self::Unix(listener) => Some(Box::new(listener.accept().await?.0)),
            Self::InProcess(dials) => dials.recv().await.map(|io| Box::new(io) as _),
        })
    }
}

async fn accept(control_plane: ControlPlane, mut door: Door, tls: Option<Acceptor>) {
    let tls = tls.map(Arc::new);
    // Aborts its tasks when this task ends: the sockets close then.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            next = door.next() => match next {
                Ok(Some(io)) => {
                    let (control_plane, tls) = (control_plane.clone(), tls.clone());
                    connections.spawn(async move {
                        if let Err(error) = connection(control_plane, io, tls).await {
                            tracing::debug!(%error, "connection to the control plane broke");
                        }
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the control plane cannot accept");
                    // Out of descriptors, most likely: trying again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves one connection to its end.
async fn connection(
    control_plane: ControlPlane,
    io: Box<dyn Transport>,
    tls: Option<Arc<Acceptor>>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (io, peer) = match tls {
        None => (io, Peer::default()),
        Some(tls) => {
            let stream = timeout(HANDSHAKE, tls.accept(io)).await.map_err(|_| "no TLS handshake in time")??;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates = chain.iter().map(|certificate| certificate.to_vec()).collect();
            (Box::new(stream) as _, Peer { is_encrypted: true, certificates })
        }
    };
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE.0).keep_alive_timeout(KEEPALIVE.1);
    let access = control_plane.access().clone();
    let service = TowerToHyperService::new(Guarded { services: Ads(control_plane), access, peer: Arc::new(peer) });
    builder.serve_connection(TokioIo::new(io), service).await
}
