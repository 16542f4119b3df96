//! From a server's address and credentials to a connection.
//!
//! Names are looked up at every dial and all addresses are tried, a next one every 250 ms (RFC 8305's way).
//! TLS that
//! is asked for and fails is a dial that failed; there is nothing weaker to fall back to. This file does NOT retry and does
//! NOT speak ADS.

use super::{connection::Connection, jwt::TokenFile};
use crate::{
    bootstrap::{CallCredentials, ChannelCredentials, ServerAddress, TransportOptions, XdsServer},
    tls::Connector,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Uri;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};

/// "Happy Eyeballs step 250 ms" - A61.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Who a server is that has no name on the network: gRPC's authority for Unix sockets, and so the name that a certificate
/// must be for.
const LOCALHOST: &str = "localhost";

/// One control plane as it is reached from here: its address, the credentials, and what was read for them.
#[derive(Debug)]
pub(crate) struct Dialer {
    address: ServerAddress,
    security: Security,
    call_credentials: Arc<[TokenFile]>,
    connect_timeout: Duration,
}

#[derive(Debug)]
enum Security {
    Plaintext,
    Tls(Connector),
    /// TLS is asked for and cannot be done, and nothing less will do.
    Impossible(String),
}

/// Any socket or pipe.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Dialer {
    /// Starts to read what the credentials need.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn new(server: &XdsServer, options: &TransportOptions) -> Self {
        let security = match &server.credentials {
            ChannelCredentials::Insecure => Security::Plaintext,
            ChannelCredentials::Tls(config) => config.connector().map_or_else(Security::Impossible, Security::Tls),
        };
        let token = |CallCredentials::JwtTokenFile(path): &CallCredentials| TokenFile::new(path.clone());
        Self {
            address: server.address.clone(),
            security,
            call_credentials: server.call_credentials.iter().map(token).collect(),
            connect_timeout: options.connect_timeout,
        }
    }

    /// Dials.
    ///
    /// # Errors
    /// The cause, for people.
    pub(crate) async fn dial(&self) -> Result<Connection, String> {
        self.dial_with(async |host: &str, port| Ok(lookup_host((host, port)).await?.collect())).await
    }

    async fn dial_with(
        &self,
        lookup: impl AsyncFn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    ) -> Result<Connection, String> {
        match &self.security {
            // "Requires a secure channel": whoever listens on the way could use the token. Not even a socket is opened.
            Security::Plaintext if !self.call_credentials.is_empty() => {
                return Err("call_creds are never sent in plaintext: channel_creds must be `tls`".to_owned());
            }
            Security::Impossible(cause) => return Err(cause.clone()),
            Security::Plaintext | Security::Tls(_) => {}
        }
        let dialled = timeout(self.connect_timeout, async {
            match &self.address {
                ServerAddress::Name { host, port } => {
                    let found = lookup(host, *port).await;
                    self.first_of(found.map_err(|error| format!("name lookup failed: {error}"))?, Some(host)).await
                }
                ServerAddress::Sockets(sockets) => self.first_of(sockets.clone(), None).await,
                ServerAddress::Unix(path) => self.handshake(Box::new(unix(path).await?), LOCALHOST).await,
                ServerAddress::InProcess(server) => {
                    let pipe = server.dial().map_err(|error| error.to_string())?;
                    self.handshake(Box::new(pipe), LOCALHOST).await
                }
            }
        });
        dialled.await.unwrap_or_else(|_| Err(format!("no HTTP/2 answer within {:?}", self.connect_timeout)))
    }

    /// The first address that answers; the others are let go.
    async fn first_of(&self, sockets: Vec<SocketAddr>, host: Option<&str>) -> Result<Connection, String> {
        let mut attempts = FuturesUnordered::new();
        let mut causes = Vec::new();
        let mut rest = sockets.into_iter().peekable();
        loop {
            attempts.extend(rest.next().map(|socket| self.tcp(socket, host)));
            tokio::select! {
                Some(attempt) = attempts.next() => match attempt {
                    Ok(connection) => return Ok(connection),
                    Err(cause) => causes.push(cause),
                },
                () = sleep(NEXT_ADDRESS), if rest.peek().is_some() => {}
                else => {}
            }
            if attempts.is_empty() && rest.peek().is_none() {
                let none = "the name has no address".to_owned();
                return Err(if causes.is_empty() { none } else { causes.join("; ") });
            }
        }
    }

    /// `host` is the name that led to the address; without one the certificate must be for the address itself.
    async fn tcp(&self, socket: SocketAddr, host: Option<&str>) -> Result<Connection, String> {
        let connected = async {
            let stream = TcpStream::connect(socket).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let ip = socket.ip().to_string();
            self.handshake(Box::new(stream), host.unwrap_or(&ip)).await
        };
        connected.await.map_err(|cause: String| format!("{socket}: {cause}"))
    }

    async fn handshake(&self, io: Box<dyn Io>, host: &str) -> Result<Connection, String> {
        let tokens = || Arc::clone(&self.call_credentials);
        match &self.security {
            Security::Tls(tls) => Connection::handshake(tls.connect(host, io).await?, tokens()).await,
            // There are no tokens: `dial` has seen to that.
            Security::Plaintext => Connection::handshake(io, tokens()).await,
            Security::Impossible(cause) => Err(cause.clone()),
        }
    }

    /// Scheme and `:authority` of calls.
    pub(crate) fn origin(&self) -> Uri {
        let authority = match &self.address {
            ServerAddress::Name { host, port } => format!("{host}:{port}"),
            ServerAddress::Sockets(sockets) => sockets.first().map(ToString::to_string).unwrap_or_default(),
            ServerAddress::Unix(_) | ServerAddress::InProcess(_) => LOCALHOST.to_owned(),
        };
        let scheme = if matches!(self.security, Security::Tls(_)) { "https" } else { "http" };
        format!("{scheme}://{authority}").parse().unwrap_or_else(|_| Uri::from_static("http://localhost"))
    }
}

#[cfg(unix)]
async fn unix(path: &std::path::Path) -> Result<tokio::net::UnixStream, String> {
    tokio::net::UnixStream::connect(path).await.map_err(|error| error.to_string())
}

#[cfg(not(unix))]
async fn unix(_: &std::path::Path) -> Result<tokio::io::DuplexStream, String> {
    Err("this platform has no Unix sockets".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, net::TcpListener};
    use tokio::io::AsyncWriteExt;

    /// A server that says the first word of HTTP/2, and its address.
    async fn server() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                // An empty SETTINGS frame.
                socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("just accepted");
                held.push(socket);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_name_is_looked_up_at_every_dial_and_all_its_addresses_are_tried() {
        let refusing = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a free port");
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let silent = silent.local_addr().expect("bound");
        let answers = RefCell::new(vec![
            Ok(vec![refusing, silent, server().await]),
            Ok(vec![refusing]),
            Ok(vec![]),
            Err(io::Error::other("no such host")),
            Ok(vec![server().await]),
        ]);
        answers.borrow_mut().reverse();
        let lookup = async |host: &str, port| {
            assert_eq!((host, port), ("cp.example", 1));
            answers.borrow_mut().pop().expect("as many dials as answers")
        };
        let server = XdsServer::new(ServerAddress::parse("cp.example:1").expect("a name"));
        let dialer = Dialer::new(&server, &TransportOptions::default());
        let dial = || dialer.dial_with(lookup);
        assert!(dial().await.is_ok(), "the third address");
        let cause = dial().await.expect_err("the address of before is not tried");
        assert!(cause.contains(&refusing.to_string()), "{cause}");
        assert_eq!(dial().await.err().as_deref(), Some("the name has no address"));
        assert_eq!(dial().await.err().as_deref(), Some("name lookup failed: no such host"));
        assert!(dial().await.is_ok(), "the name points elsewhere now");
    }
}
