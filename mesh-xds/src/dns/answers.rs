//! What is known of each name that is needed. A failure is noted beside an answer and never replaces it.
//!
//! It does NOT know when to look again.

use crate::resource::DnsName;
use rustc_hash::FxHashMap;
use std::{net::SocketAddr, sync::Arc};

/// The names that are needed, and what lookups came to.
#[derive(Debug, Default)]
pub(crate) struct Answers(FxHashMap<DnsName, Entry>);

#[derive(Debug, Default, PartialEq)]
struct Entry {
    /// Of the last lookup that succeeded.
    addresses: Option<Arc<[SocketAddr]>>,
    /// Why the last one failed, if it did.
    error: Option<Arc<str>>,
}

/// What a name stands for.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer<'a> {
    /// Its first lookup is not done.
    Pending,
    /// At least one address; perhaps the newest lookup failed.
    Known { addresses: &'a [SocketAddr], error: Option<&'a Arc<str>> },
    /// None so far.
    Failed(&'a Arc<str>),
}

impl Answers {
    /// A name is needed. Returns whether that is news.
    pub(crate) fn requested(&mut self, name: &DnsName) -> bool {
        let is_news = !self.0.contains_key(name);
        if is_news {
            self.0.insert(name.clone(), Entry::default());
        }
        is_news
    }

    /// It is not needed any more. Returns whether it was.
    pub(crate) fn forget(&mut self, name: &DnsName) -> bool {
        self.0.remove(name).is_some()
    }

    /// A lookup is done. Returns whether something looks different.
    pub(crate) fn answered(&mut self, name: &DnsName, result: Result<Arc<[SocketAddr]>, Arc<str>>) -> bool {
        // Its need ended while the answer was on its way.
        let Some(entry) = self.0.get_mut(name) else { return false };
        let now = match result {
            Ok(addresses) => Entry { addresses: Some(addresses), error: None },
            Err(error) => Entry { addresses: entry.addresses.clone(), error: Some(error) },
        };
        let changed = *entry != now;
        *entry = now;
        changed
    }

    /// What is known of a name.
    pub(crate) fn lookup(&self, name: &DnsName) -> Answer<'_> {
        match self.0.get(name) {
            Some(Entry { addresses: Some(addresses), error }) => Answer::Known { addresses, error: error.as_ref() },
            Some(Entry { addresses: None, error: Some(error) }) => Answer::Failed(error),
            Some(Entry { addresses: None, error: None }) | None => Answer::Pending,
        }
    }
}
