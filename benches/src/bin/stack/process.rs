//! Parent and child processes: re-execution of this program, and values as JSON lines over stdin and stdout.
//!
//! A child ends when its stdin ends, so no child outlives its parent, however that one dies. It does NOT know what
//! the values mean.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// Any error of the bench itself; it is printed and ends the program.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the backends listen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peers {
    pub(crate) backends: Vec<SocketAddr>,
    pub(crate) ads: SocketAddr,
}

/// A child process that is killed on drop.
pub(crate) struct Child {
    process: std::process::Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Child {
    /// Starts this program again in the given role.
    pub(crate) fn start(role: &str) -> Result<Self, BoxError> {
        Self::start_of(None, role)
    }

    /// Starts another program in the given role; `None`: this one.
    pub(crate) fn start_of(program: Option<&str>, role: &str) -> Result<Self, BoxError> {
        let mut command = match program {
            Some(program) => Command::new(program),
            None => Command::new(std::env::current_exe()?),
        };
        let mut process = command.arg(role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = process.stdin.take().ok_or("no pipe to the child")?;
        let stdout = process.stdout.take().ok_or("no pipe from the child")?;
        // Unbounded: one line per request; closed by the thread when the child's stdout ends.
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| line.send(l)));
        Ok(Self { process, stdin, lines })
    }

    /// Sends a value that has no answer.
    pub(crate) fn tell(&mut self, value: &impl Serialize) -> Result<(), BoxError> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        Ok(self.stdin.write_all(line.as_bytes())?)
    }

    /// Sends a value and waits for the answer.
    pub(crate) fn ask<R: DeserializeOwned>(&mut self, value: &impl Serialize, wait: Duration) -> Result<R, BoxError> {
        self.tell(value)?;
        let answer = self.lines.recv_timeout(wait).map_err(|_| "the child process died or did not answer in time")?;
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Neither can fail in a way that matters: the child may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the value of one line.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<T, BoxError> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Prints a value as one line.
pub(crate) fn write(value: &impl Serialize) -> Result<(), BoxError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(value)?)?;
    Ok(stdout.flush()?)
}
