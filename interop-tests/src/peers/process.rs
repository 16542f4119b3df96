//! A child process of a test: started, listened to, ended with the test.
//!
//! A peer says on stdout what happened, one line each; waiting for a line is how a test waits for an event. Its stderr
//! is kept for the message of a failure. It does NOT know what the lines mean.

use std::{
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time,
};

/// How long a peer may take for anything: long enough for a cold start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two attempts to connect to a port that is not open yet.
const RETRY: Duration = Duration::from_millis(20);

/// Lines of stderr that a failure shows.
const LOG_LINES: usize = 60;

/// Why a peer is of no use.
#[derive(Error)]
#[non_exhaustive]
pub enum PeerError {
    /// A step of the set-up did not work.
    #[error("setting up {peer}: {step}: {reason}")]
    Setup {
        /// Which peer.
        peer: &'static str,
        /// What was tried.
        step: String,
        /// What happened instead.
        reason: String,
    },
    /// The program can not be started.
    #[error("{name} can not be started: {reason}")]
    Start {
        /// The program.
        name: String,
        /// The system's words.
        reason: String,
    },
    /// The process ended or stayed silent while a line was waited for.
    #[error("{name} {what} while waiting for {expected}; the end of its stderr:\n{log}")]
    Silent {
        /// The program.
        name: String,
        /// "ended" or "said nothing".
        what: &'static str,
        /// What was waited for.
        expected: String,
        /// Its last words.
        log: String,
    },
}

// `expect` shows the Debug form, and a log in one escaped line can not be read.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A running peer; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    log: Arc<Mutex<VecDeque<String>>>,
    logging: JoinHandle<()>,
    child: Child,
}

impl Process {
    /// Starts `command`, called `name` in messages. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`PeerError::Start`].
    pub fn start(name: &str, mut command: Command) -> Result<Self, PeerError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let failed = |reason: String| PeerError::Start { name: name.to_owned(), reason };
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("it has no pipes".to_owned()));
        };
        let log = Arc::default();
        // Ends when the child closes its stderr, at its end at the latest; `Drop` of the child sees to that.
        let logging = tokio::spawn(keep(stderr, Arc::clone(&log)));
        Ok(Self { name: name.to_owned(), stdin, stdout: BufReader::new(stdout).lines(), log, logging, child })
    }

    /// Waits for the first line on stdout from which `pick` makes something; lines before it are dropped.
    ///
    /// # Errors
    /// [`PeerError::Silent`] after 180 s or at the end of the process.
    pub async fn line<T>(&mut self, expected: &str, pick: impl Fn(&str) -> Option<T>) -> Result<T, PeerError> {
        let next = async {
            while let Ok(Some(line)) = self.stdout.next_line().await {
                if let Some(picked) = pick(&line) {
                    return Some(picked);
                }
            }
            None
        };
        let what = match time::timeout(PATIENCE, next).await {
            Ok(Some(picked)) => return Ok(picked),
            Ok(None) => "ended",
            Err(_) => "said nothing",
        };
        Err(PeerError::Silent { name: self.name.clone(), what, expected: expected.to_owned(), log: self.log() })
    }

    /// Waits for a line `WORD rest` and returns the rest.
    ///
    /// # Errors
    /// As [`Process::line`].
    pub async fn said(&mut self, word: &str) -> Result<String, PeerError> {
        self.line(word, |line| {
            let rest = line.strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim_start().to_owned())
        })
        .await
    }

    /// Writes one line to the peer's stdin.
    ///
    /// # Errors
    /// [`PeerError::Silent`]: it does not read any more.
    pub async fn tell(&mut self, line: &str) -> Result<(), PeerError> {
        let line = format!("{line}\n");
        let written = async {
            self.stdin.write_all(line.as_bytes()).await?;
            self.stdin.flush().await
        };
        written.await.map_err(|error| PeerError::Silent {
            name: self.name.clone(),
            what: "closed its stdin",
            expected: format!("it to read a command: {error}"),
            log: self.log(),
        })
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits, bounded, for its end; the exit code, or `None` when a signal ended it.
    ///
    /// # Errors
    /// [`PeerError::Silent`]: it goes on.
    pub async fn ended(&mut self) -> Result<Option<i32>, PeerError> {
        let end = async {
            let status = self.child.wait().await?;
            // Its last words have been read, too.
            let _ = (&mut self.logging).await;
            Ok::<_, io::Error>(status.code())
        };
        match time::timeout(PATIENCE, end).await {
            Ok(Ok(code)) => Ok(code),
            Ok(Err(_)) | Err(_) => Err(PeerError::Silent {
                name: self.name.clone(),
                what: "goes on",
                expected: "its end".to_owned(),
                log: self.log(),
            }),
        }
    }

    /// The end of its stderr.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

async fn keep(stderr: ChildStderr, log: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }
}

/// Waits until somebody listens at `address`, for peers that do not say when they do.
///
/// # Errors
/// [`PeerError::Silent`] after 180 s.
pub async fn listening(name: &str, address: SocketAddr) -> Result<(), PeerError> {
    let connected = async {
        while TcpStream::connect(address).await.is_err() {
            time::sleep(RETRY).await;
        }
    };
    time::timeout(PATIENCE, connected).await.map_err(|_| PeerError::Silent {
        name: name.to_owned(),
        what: "does not listen",
        expected: format!("a connection to {address}"),
        log: String::new(),
    })
}
