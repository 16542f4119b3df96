//! Where one piece of PEM comes from, and how several files are read as one.
//!
//! A rotation replaces certificate and key one after the other, or both at once by turning a symbolic link (the way of
//! kubelet). Files are therefore read until two passes agree: half of an old pair and half of a new one are
//! never taken together. What the bytes mean is NOT known here.

use std::{fmt, fs, path::PathBuf, sync::Arc};

/// Passes over the files before a rotation that does not come to an end is reported.
const PASSES: usize = 5;

/// A file, read again and again, or the PEM itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Pem(Arc<[u8]>),
}

/// The bytes of some sources at one moment, in their order.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents(Vec<Arc<[u8]>>);

impl Source {
    fn read(&self) -> Result<Arc<[u8]>, String> {
        match self {
            Self::File(path) => fs::read(path).map(Into::into).map_err(|error| format!("{}: {error}", path.display())),
            Self::Pem(bytes) => Ok(Arc::clone(bytes)),
        }
    }
}

impl Contents {
    /// Reads all sources as they were at one moment. Blocks.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub(super) fn read(sources: &[&Source]) -> Result<Self, String> {
        let pass = || sources.iter().map(|source| source.read()).collect::<Result<Vec<_>, _>>();
        let mut before = pass()?;
        for _ in 1..PASSES {
            let now = pass()?;
            if now == before {
                return Ok(Self(now));
            }
            before = now;
        }
        Err("the files change while they are read".to_owned())
    }

    /// One piece per source.
    pub(super) fn into_pieces(self) -> impl Iterator<Item = Arc<[u8]>> {
        self.0.into_iter()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Pem(_) => f.write_str("the PEM given in code"),
        }
    }
}

impl fmt::Debug for Source {
    /// Keys are not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
