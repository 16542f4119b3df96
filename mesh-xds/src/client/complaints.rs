//! The text of a NACK: each refused resource with the field, until it is too long for anybody.
//!
//! It does NOT decide what is refused.

use crate::{
    ads::Verdict,
    resource::{Kind, Received},
};
use std::fmt::Write as _;

/// A NACK must fit into a request of any server, whatever its number of bad resources.
const LONGEST: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Complaints {
    text: String,
    more: usize,
    any_nameless: bool,
}

impl Complaints {
    pub(super) fn nameless(&mut self, kind: Kind, received: &Received) {
        self.any_nameless = true;
        if let Err(invalid) = &received.value {
            self.push(&format!("{kind} without a name: {invalid}"));
        }
    }

    pub(super) fn add(&mut self, kind: Kind, name: &str, received: &Received) {
        if let Err(invalid) = &received.value {
            self.push(&format!("{kind} {name:?}: {invalid}"));
        }
    }

    pub(super) fn any_nameless(&self) -> bool {
        self.any_nameless
    }

    pub(super) fn verdict(mut self) -> Verdict {
        if self.more > 0 {
            let _ = write!(self.text, "; and {} more", self.more);
        }
        if self.text.is_empty() { Verdict::Ack } else { Verdict::Nack(self.text) }
    }

    fn push(&mut self, complaint: &str) {
        if !self.text.is_empty() && self.text.len() + complaint.len() > LONGEST {
            self.more += 1;
            return;
        }
        let separator = if self.text.is_empty() { "" } else { "; " };
        let _ = write!(self.text, "{separator}{complaint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Invalid;

    #[test]
    fn a_nack_of_ten_thousand_resources_is_short_and_counts_them() {
        let mut complaints = Complaints::default();
        let value = Err(Invalid::new("unknown enum value 77").within("lb_policy"));
        let received = Received { name: None, value, version: None, ignored: Vec::new(), raw: bytes::Bytes::new() };
        for number in 0..10_000 {
            complaints.add(Kind::Cluster, &format!("c{number}"), &received);
        }
        let Verdict::Nack(text) = complaints.verdict() else { panic!("ten thousand complaints") };
        assert!(text.starts_with("Cluster \"c0\": lb_policy: unknown enum value 77; Cluster \"c1\""), "{text}");
        let more: usize = text.rsplit(' ').nth(1).and_then(|count| count.parse().ok()).expect("a count");
        assert_eq!(text.matches("Cluster").count() + more, 10_000);
        assert!(text.len() < LONGEST + 100);
    }
}
