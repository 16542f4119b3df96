//! How to misbehave: what the control plane holds back, for tests of clients.
//!
//! A value, replaced as a whole: streams compare it by address. This file does NOT act; `session` obeys it.

use super::session::Manners;
use std::collections::{BTreeMap, BTreeSet};

/// What is held back from all streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Hooks {
    /// Accept streams and requests, answer nothing.
    pub(super) silent: bool,
    /// Refuse new streams with UNAVAILABLE.
    pub(super) refuse: bool,
    /// How strange requests are taken.
    pub(super) manners: Manners,
    /// Types of which no response is sent.
    pub(super) held: BTreeSet<String>,
    /// Names, by type, that stay as each client knows them: unknown, or the last version that it was told.
    pub(super) withheld: BTreeMap<String, BTreeSet<String>>,
}
