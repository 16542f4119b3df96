//! From a server's address to an HTTP/2 connection that has proved to be one.
//!
//! Names are looked up at every dial and all addresses are tried, a next one every 250 ms (RFC 8305's way).
//! This file does NOT retry and does NOT speak ADS.

use super::connection::Connection;
use crate::bootstrap::{ServerAddress, TransportOptions};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};

/// "Happy Eyeballs step 250 ms" - A61.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Dials.
///
/// # Errors
/// The cause, for people.
pub(crate) async fn connect(address: &ServerAddress, options: &TransportOptions) -> Result<Connection, String> {
    let system = async |host: &str, port| Ok(lookup_host((host, port)).await?.collect());
    connect_with(address, options, system).await
}

async fn connect_with(
    address: &ServerAddress,
    options: &TransportOptions,
    lookup: impl AsyncFn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Result<Connection, String> {
    let dialled = timeout(options.connect_timeout, async {
        match address {
            ServerAddress::Name { host, port } => {
                let found = lookup(host, *port).await;
                first_of(found.map_err(|error| format!("name lookup failed: {error}"))?).await
            }
            ServerAddress::Sockets(sockets) => first_of(sockets.clone()).await,
            ServerAddress::Unix(path) => unix(path).await,
            ServerAddress::InProcess(server) => {
                Connection::handshake(server.dial().map_err(|error| error.to_string())?).await
            }
        }
    });
    dialled.await.unwrap_or_else(|_| Err(format!("no HTTP/2 answer within {:?}", options.connect_timeout)))
}

#[cfg(unix)]
async fn unix(path: &std::path::Path) -> Result<Connection, String> {
    Connection::handshake(tokio::net::UnixStream::connect(path).await.map_err(|error| error.to_string())?).await
}

#[cfg(not(unix))]
async fn unix(_: &std::path::Path) -> Result<Connection, String> {
    Err("this platform has no Unix sockets".to_owned())
}

/// The first address that answers; the others are let go.
async fn first_of(sockets: Vec<SocketAddr>) -> Result<Connection, String> {
    let mut attempts = FuturesUnordered::new();
    let mut causes = Vec::new();
    let mut rest = sockets.into_iter().peekable();
    loop {
        attempts.extend(rest.next().map(tcp));
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

async fn tcp(socket: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(socket).await.map_err(|error| format!("{socket}: {error}"))?;
    stream.set_nodelay(true).map_err(|error| format!("{socket}: {error}"))?;
    Connection::handshake(stream).await.map_err(|cause| format!("{socket}: {cause}"))
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
        let address = ServerAddress::parse("cp.example:1").expect("a name");
        let options = TransportOptions::default();
        let dial = || connect_with(&address, &options, lookup);
        assert!(dial().await.is_ok(), "the third address");
        let cause = dial().await.expect_err("the address of before is not tried");
        assert!(cause.contains(&refusing.to_string()), "{cause}");
        assert_eq!(dial().await.err().as_deref(), Some("the name has no address"));
        assert_eq!(dial().await.err().as_deref(), Some("name lookup failed: no such host"));
        assert!(dial().await.is_ok(), "the name points elsewhere now");
    }
}
