//! An HTTP/2 server without manners: frames are written by the test, one by one.
//!
//! No HTTP/2 library lets a server refuse a stream and then name a last-stream-id of its choice, or answer before the
//! upload ends and reset with NO_ERROR. Clients must survive all of it, so this writes frames itself. It does NOT decode
//! HPACK: a request is known by its stream only, and responses use literals.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use interop_tests::raw::{Reason, RawServer, Seen, Settings};
//! let server = RawServer::start().await?;
//! // ... a client dials server.address() and calls ...
//! let mut connection = server.accept().await?;
//! connection.handshake(Settings::default()).await?;
//! let stream = connection.request().await?;
//! connection.reset(stream, Reason::RefusedStream).await?;
//! let again = connection.request().await?;
//! connection.respond(again, "a").await?;
//! # Ok(())
//! # }
//! ```

use std::{
    io::{Error, ErrorKind, Result},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time,
};

/// How long a step waits for the client.
const PATIENCE: Duration = Duration::from_secs(15);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No frame of a client in these tests is larger: we do not raise SETTINGS_MAX_FRAME_SIZE.
const LARGEST_FRAME: usize = 16 * 1024;

/// Frame types (RFC 9113, 6).
mod frame {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

/// Frame flags.
mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
}

/// Error codes (RFC 9113, 7) that the tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// NO_ERROR.
    NoError = 0,
    /// INTERNAL_ERROR.
    InternalError = 2,
    /// REFUSED_STREAM.
    RefusedStream = 7,
    /// CANCEL.
    Cancel = 8,
    /// ENHANCE_YOUR_CALM.
    EnhanceYourCalm = 11,
}

/// What the server's SETTINGS say; `None` is the protocol's default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_concurrent_streams: Option<u32>,
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub initial_window_size: Option<u32>,
}

/// What the client did. PING and SETTINGS are answered without being told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// The headers of a new stream, or its trailers.
    Headers {
        /// The stream.
        stream: u32,
        /// END_STREAM was set.
        end: bool,
    },
    /// Bytes of a body. Flow control is the test's: see [`RawConnection::allow`].
    Data {
        /// The stream.
        stream: u32,
        /// How many bytes.
        bytes: usize,
        /// END_STREAM was set.
        end: bool,
    },
    /// The client gave a stream up.
    Reset {
        /// The stream.
        stream: u32,
        /// The error code.
        code: u32,
    },
    /// The client says good-bye.
    GoAway,
    /// The client has closed the connection.
    Closed,
}

/// A listening socket; what its connections do is written by the test.
#[derive(Debug)]
pub struct RawServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// One connection of a client.
#[derive(Debug)]
pub struct RawConnection {
    socket: TcpStream,
}

impl RawServer {
    /// Listens on a free port of 127.0.0.1. Until [`RawServer::accept`], clients connect and hear nothing.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection. Nothing has been read from it and nothing is written.
    ///
    /// # Errors
    /// Nobody connects within 15 s.
    pub async fn accept(&self) -> Result<RawConnection> {
        let (socket, _) = bounded("a connection", self.listener.accept()).await?;
        socket.set_nodelay(true)?;
        Ok(RawConnection { socket })
    }
}

impl RawConnection {
    /// Reads the client's preface and announces `settings`.
    ///
    /// # Errors
    /// The client does not speak HTTP/2.
    pub async fn handshake(&mut self, settings: Settings) -> Result<()> {
        let mut preface = [0; PREFACE.len()];
        bounded("the preface", self.socket.read_exact(&mut preface)).await?;
        if preface != PREFACE {
            return Err(Error::new(ErrorKind::InvalidData, "not the preface of HTTP/2"));
        }
        let mut payload = Vec::new();
        // Identifiers of RFC 9113, 6.5.2.
        for (identifier, value) in [(3u16, settings.max_concurrent_streams), (4, settings.initial_window_size)] {
            if let Some(value) = value {
                payload.extend(identifier.to_be_bytes());
                payload.extend(value.to_be_bytes());
            }
        }
        self.write(frame::SETTINGS, 0, 0, &payload).await
    }

    /// What the client does next.
    ///
    /// # Errors
    /// Nothing within 15 s, or a reset connection.
    pub async fn next(&mut self) -> Result<Seen> {
        loop {
            let mut head = [0; 9];
            match bounded("a frame", self.socket.read_exact(&mut head)).await {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Seen::Closed),
                Err(error) => return Err(error),
            }
            let [a, b, c, kind, flags, stream @ ..] = head;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if length > LARGEST_FRAME {
                return Err(Error::new(ErrorKind::InvalidData, "a frame larger than was allowed"));
            }
            let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
            let mut payload = vec![0; length];
            bounded("the rest of a frame", self.socket.read_exact(&mut payload)).await?;
            let end = flags & flag::END_STREAM != 0;
            match kind {
                frame::HEADERS => return Ok(Seen::Headers { stream, end }),
                frame::DATA => return Ok(Seen::Data { stream, bytes: length, end }),
                frame::RST_STREAM => {
                    let code = payload.first_chunk().map_or(0, |code| u32::from_be_bytes(*code));
                    return Ok(Seen::Reset { stream, code });
                }
                frame::GOAWAY => return Ok(Seen::GoAway),
                frame::SETTINGS if flags & flag::ACK == 0 => self.write(frame::SETTINGS, flag::ACK, 0, &[]).await?,
                frame::PING if flags & flag::ACK == 0 => self.write(frame::PING, flag::ACK, 0, &payload).await?,
                _ => {}
            }
        }
    }

    /// Waits for the headers of the next request; everything before them is dropped.
    ///
    /// # Errors
    /// As [`RawConnection::next`], and `UnexpectedEof` when the client leaves instead.
    pub async fn request(&mut self) -> Result<u32> {
        loop {
            match self.next().await? {
                Seen::Headers { stream, .. } => return Ok(stream),
                Seen::Closed => return Err(Error::new(ErrorKind::UnexpectedEof, "closed instead of a request")),
                _ => {}
            }
        }
    }

    /// Waits for the end of a request's body.
    ///
    /// # Errors
    /// As [`RawConnection::request`].
    pub async fn end_of(&mut self, wanted: u32) -> Result<()> {
        loop {
            match self.next().await? {
                Seen::Data { stream, end: true, .. } | Seen::Headers { stream, end: true } if stream == wanted => {
                    return Ok(());
                }
                Seen::Closed => return Err(Error::new(ErrorKind::UnexpectedEof, "closed in the middle of a request")),
                _ => {}
            }
        }
    }

    /// Answers a gRPC call with an empty message, the `hostname` header and status OK.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn respond(&mut self, stream: u32, hostname: &str) -> Result<()> {
        self.headers(stream, &[("content-type", "application/grpc"), ("hostname", hostname)]).await?;
        self.message(stream, 0).await?;
        self.trailers(stream, &[("grpc-status", "0")]).await
    }

    /// Sends response headers with status 200.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn headers(&mut self, stream: u32, headers: &[(&str, &str)]) -> Result<()> {
        // 0x88 is `:status: 200` of the static table.
        self.write(frame::HEADERS, flag::END_HEADERS, stream, &literals(&[0x88], headers)).await
    }

    /// Ends a stream with trailers.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn trailers(&mut self, stream: u32, trailers: &[(&str, &str)]) -> Result<()> {
        self.write(frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &literals(&[], trailers)).await
    }

    /// Sends a message of `size` zeros, of a gRPC response.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn message(&mut self, stream: u32, size: u8) -> Result<()> {
        let mut message = vec![0, 0, 0, 0, size];
        message.resize(5 + usize::from(size), 0);
        self.write(frame::DATA, 0, stream, &message).await
    }

    /// Answers with headers alone: status 200 and the end.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn trailers_only(&mut self, stream: u32, headers: &[(&str, &str)]) -> Result<()> {
        let block = literals(&[0x88], headers);
        self.write(frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &block).await
    }

    /// Answers with headers alone and a status of three digits, as somebody on the way does who speaks HTTP only.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn plain(&mut self, stream: u32, status: &str, headers: &[(&str, &str)]) -> Result<()> {
        self.begin(stream, status, headers, flag::END_STREAM).await
    }

    /// The same with a text, and no end yet.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn plain_text(&mut self, stream: u32, status: &str, text: &str) -> Result<()> {
        self.begin(stream, status, &[("content-type", "text/plain")], 0).await?;
        self.write(frame::DATA, 0, stream, text.as_bytes()).await
    }

    async fn begin(&mut self, stream: u32, status: &str, headers: &[(&str, &str)], flags: u8) -> Result<()> {
        // 0x08 is a literal whose name is `:status`, of the static table.
        let status = [&[0x08, 3], status.as_bytes()].concat();
        self.write(frame::HEADERS, flag::END_HEADERS | flags, stream, &literals(&status, headers)).await
    }

    /// Ends a stream without trailers.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn end(&mut self, stream: u32) -> Result<()> {
        self.write(frame::DATA, flag::END_STREAM, stream, &[]).await
    }

    /// Lets the client send `bytes` more, on the stream and on the connection.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn allow(&mut self, stream: u32, bytes: u32) -> Result<()> {
        self.write(frame::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await?;
        self.write(frame::WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes()).await
    }

    /// Sends RST_STREAM.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn reset(&mut self, stream: u32, reason: Reason) -> Result<()> {
        self.write(frame::RST_STREAM, 0, stream, &(reason as u32).to_be_bytes()).await
    }

    /// Sends GOAWAY: streams above `last_stream` were not looked at.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn go_away(&mut self, last_stream: u32, reason: Reason) -> Result<()> {
        let payload = [last_stream.to_be_bytes(), (reason as u32).to_be_bytes()].concat();
        self.write(frame::GOAWAY, 0, 0, &payload).await
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.socket.write_all(&frame).await
    }
}

/// Header fields as HPACK "literal without indexing, new name" (RFC 7541, 6.2.2), without Huffman coding.
fn literals(before: &[u8], headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = before.to_vec();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            // A length below 127 is one byte; no test needs a longer text.
            block.push(u8::try_from(text.len()).unwrap_or(0) & 0x7f);
            block.extend(text.as_bytes());
        }
    }
    block
}

async fn bounded<T>(what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    time::timeout(PATIENCE, step)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, format!("{what}: not within {PATIENCE:?}"))))
}
