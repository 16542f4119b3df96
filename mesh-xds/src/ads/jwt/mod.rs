//! A JWT that lies in a file, as call credentials: `authorization: Bearer` (A97).
//!
//! ```text
//!                     read: a token          a call within 1 min of its expiry:
//!   Empty ──call──► Reading ──────────► Cached ──── goes with it, the file is read beside it
//!     ▲               │ unreadable,        │ expired (30 s before `exp`)
//!     │ its end       ▼ unparsable         ▼
//!     └─────────── Backoff: calls fail as the last read did ◄── ...
//! ```
//!
//! [`Cache`] is that machine, without clock and file; [`TokenFile`] joins it with both. Only `exp` is looked at: whether
//! a token is any good is the server's to say. Nothing happens while no call starts. It does NOT know whether a
//! connection keeps secrets.

use super::backoff::Backoff;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::spawn_blocking;
use tonic::Status;

/// "the credential will set the cache expiration time to be 30 seconds before the expiration time encoded in the token".
const SKEW: Duration = Duration::from_secs(30);
/// "expire within some fixed refresh interval (typically 1 minute)".
const REFRESH: Duration = Duration::from_secs(60);

/// A token file and what was read from it. Cheap to clone; clones share the cache.
#[derive(Clone, Debug)]
pub(super) struct TokenFile {
    path: Arc<Path>,
    cache: Arc<Mutex<Cache>>,
}

impl TokenFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path: path.into(), cache: Arc::default() }
    }

    /// The value for a call that starts now.
    ///
    /// # Errors
    /// UNAVAILABLE when the file cannot be read, UNAUTHENTICATED when it holds no token.
    pub(super) async fn authorization(&self) -> Result<HeaderValue, Status> {
        let start = self.cache().call_starts(unix_now());
        match start {
            Start::With(value) => Ok(value),
            Start::WithAndRead(value) => {
                // Beside the call, and at an end by itself: nobody waits for it.
                let file = self.clone();
                spawn_blocking(move || file.read());
                Ok(value)
            }
            // Calls that start meanwhile read for themselves, which costs less than to wait for each other.
            Start::AfterRead => {
                let file = self.clone();
                let read = spawn_blocking(move || file.read()).await;
                read.unwrap_or_else(|_| Err(Status::unavailable("the token file is no longer read")))
            }
            Start::Fail(status) => Err(status),
        }
    }

    /// Blocks.
    fn read(&self) -> Result<HeaderValue, Status> {
        let path = self.path.display();
        let outcome = match fs::read_to_string(&self.path) {
            // "If reading the file fails, all queued data plane RPCs will be failed with UNAVAILABLE status."
            Err(error) => Err(Status::unavailable(format!("JWT token file {path}: {error}"))),
            // "If the `exp` field cannot be extracted [...] UNAUTHENTICATED."
            Ok(text) => Token::parse(&text)
                .map_err(|reason| Status::unauthenticated(format!("JWT token file {path}: {reason}"))),
        };
        if let Err(status) = &outcome {
            tracing::warn!(reason = status.message(), "no fresh token for the control plane");
        }
        let value = outcome.as_ref().map(|token| token.value.clone()).map_err(Status::clone);
        self.cache().read_ended(unix_now(), outcome, fastrand::f64());
        value
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // No change of it can panic half-way.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Since 1970, by the wall clock: `exp` is told by no other.
#[expect(clippy::disallowed_types, reason = "the expiry of a token is a wall-clock time")]
fn unix_now() -> Duration {
    use std::time::SystemTime;
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

// === Token ===

#[derive(Clone, Debug, PartialEq)]
struct Token {
    value: HeaderValue,
    /// Since 1970; [`SKEW`] before `exp`.
    expires: Duration,
}

impl Token {
    /// Reads `exp`, and nothing else.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let jwt = text.trim();
        let [_, claims, _] = *jwt.split('.').collect::<Vec<_>>() else {
            return Err("a JWT has three parts");
        };
        let claims =
            URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|_| "the claims are not base64url")?;
        let claims: serde_json::Value = serde_json::from_slice(&claims).map_err(|_| "the claims are not JSON")?;
        // RFC 7519's NumericDate: seconds, which may have a fraction.
        let exp = claims.get("exp").and_then(serde_json::Value::as_f64).ok_or("the claims have no number `exp`")?;
        let expires = Duration::try_from_secs_f64(exp).map_err(|_| "`exp` is out of range")?;
        let mut value = HeaderValue::try_from(format!("Bearer {jwt}")).map_err(|_| "not the characters of a JWT")?;
        value.set_sensitive(true);
        Ok(Self { value, expires: expires.saturating_sub(SKEW) })
    }
}

// === Cache ===

#[derive(Debug, Default)]
struct Cache {
    token: Option<Token>,
    backoff: Backoff,
    /// The last read failed: why, and until when none is tried.
    failed: Option<(Status, Duration)>,
    reading: bool,
}

/// What a call that starts does. Times are since 1970.
#[derive(Debug)]
enum Start {
    With(HeaderValue),
    WithAndRead(HeaderValue),
    AfterRead,
    Fail(Status),
}

impl Cache {
    fn call_starts(&mut self, now: Duration) -> Start {
        let in_backoff = self.failed.as_ref().is_some_and(|(_, until)| now < *until);
        if let Some(token) = self.token.as_ref().filter(|token| now < token.expires) {
            let value = token.value.clone();
            // "pre-emptive re-fetching is intended to avoid periodic latency spikes": one at a time.
            if token.expires - now > REFRESH || in_backoff || self.reading {
                return Start::With(value);
            }
            self.reading = true;
            return Start::WithAndRead(value);
        }
        match &self.failed {
            // "while in backoff delay, it will be failed with the status from the last attempt to read the file."
            Some((status, _)) if in_backoff => Start::Fail(status.clone()),
            _ => Start::AfterRead,
        }
    }

    /// `random` is in `0.0..1.0`.
    fn read_ended(&mut self, now: Duration, outcome: Result<Token, Status>, random: f64) {
        self.reading = false;
        match outcome {
            Ok(token) => {
                self.token = Some(token);
                self.failed = None;
                self.backoff = Backoff::default();
            }
            Err(status) => self.failed = Some((status, now.saturating_add(self.backoff.failed(random)))),
        }
    }
}

#[cfg(test)]
mod tests;
