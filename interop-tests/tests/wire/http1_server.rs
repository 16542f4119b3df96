//! An HTTP/1.1 server that says what the test wrote, byte by byte.
//!
//! No library answers with 101 unasked, closes a connection without saying so, or sends half of a body. It does NOT
//! know status codes or headers.

use crate::rig::within;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
};

/// A listening socket.
pub(crate) struct Http1Server {
    listener: TcpListener,
}

/// One connection of a client. Dropping it closes it.
pub(crate) struct Http1Connection {
    socket: BufStream<TcpStream>,
}

impl Http1Server {
    pub(crate) async fn start() -> Self {
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port") }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Http1Connection {
        let (socket, _) = within("a connection", self.listener.accept()).await.expect("accepted");
        Http1Connection { socket: BufStream::new(socket) }
    }
}

impl Http1Connection {
    /// The lines of the next request's head, in lower case; none if the client has closed.
    pub(crate) async fn request(&mut self) -> Vec<String> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            within("a line", self.socket.read_line(&mut line)).await.expect("text");
            match line.trim_end() {
                "" => return head,
                line => head.push(line.to_ascii_lowercase()),
            }
        }
    }

    /// The next bytes of a body.
    pub(crate) async fn body(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        within("a body", self.socket.read_exact(&mut bytes)).await.expect("as long as that");
        String::from_utf8(bytes).expect("text")
    }

    /// Says this.
    pub(crate) async fn say(&mut self, words: &str) {
        self.socket.write_all(words.as_bytes()).await.expect("open");
        self.socket.flush().await.expect("open");
    }

    /// Waits until the client closes the connection; whatever it still says is dropped.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good.
        let _ = within("the end of the connection", self.socket.read_to_end(&mut rest)).await;
    }
}
