//! Where in a resource decoding is, and which fields it met that have no effect.
//!
//! One cursor serves both kinds of finding, so that a NACK and a report name a place in the same words. Descending
//! costs one push and one pop; a path becomes text only when there is something to say. It does NOT judge values.

use super::DecodeContext;
use crate::resource::{IgnoredField, Invalid};
use rustc_hash::{FxHashSet, FxHasher};
use std::{
    fmt::Write,
    hash::{Hash, Hasher},
};

/// The reason of most reports.
pub(super) const NOT_SUPPORTED: &str = "not supported: has no effect";

/// The cursor of one resource's decoding.
pub(super) struct Scope<'a> {
    pub(super) context: &'a DecodeContext,
    path: Vec<Segment>,
    ignored: Vec<IgnoredField>,
    reported: FxHashSet<u64>,
}

/// One step down.
enum Segment {
    Field(&'static str),
    Index(&'static str, usize),
    Key(&'static str, String),
}

impl Segment {
    fn field(&self) -> &'static str {
        match self {
            Self::Field(field) | Self::Index(field, _) | Self::Key(field, _) => field,
        }
    }
}

impl<'a> Scope<'a> {
    /// At the top of a resource.
    pub(super) fn new(context: &'a DecodeContext) -> Self {
        Self { context, path: Vec::new(), ignored: Vec::new(), reported: FxHashSet::default() }
    }

    /// Does `body` one field down.
    pub(super) fn within<T>(&mut self, field: &'static str, body: impl FnOnce(&mut Self) -> T) -> T {
        self.below(Segment::Field(field), body)
    }

    /// Does `body` at `field[index]`.
    pub(super) fn at<T>(&mut self, field: &'static str, index: usize, body: impl FnOnce(&mut Self) -> T) -> T {
        self.below(Segment::Index(field, index), body)
    }

    /// Does `body` at `field["key"]` of a map.
    pub(super) fn key<T>(&mut self, field: &'static str, key: &str, body: impl FnOnce(&mut Self) -> T) -> T {
        self.below(Segment::Key(field, key.to_owned()), body)
    }

    fn below<T>(&mut self, segment: Segment, body: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(segment);
        let result = body(self);
        self.path.pop();
        result
    }

    /// The resource is refused for what is here.
    pub(super) fn invalid(&self, reason: impl Into<String>) -> Invalid {
        Invalid { path: self.text(None), reason: reason.into() }
    }

    /// The resource is refused for `field` of what is here.
    pub(super) fn invalid_at(&self, field: &str, reason: impl Into<String>) -> Invalid {
        Invalid { path: self.text(Some(field)), reason: reason.into() }
    }

    /// The resource is refused for what somebody else found below what is here.
    pub(super) fn found(&self, invalid: Invalid) -> Invalid {
        let path = if invalid.path.is_empty() { self.text(None) } else { self.text(Some(&invalid.path)) };
        Invalid { path, ..invalid }
    }

    /// Reports what is here as having no effect.
    pub(super) fn ignore_here(&mut self, reason: &'static str) {
        self.report(None, reason);
    }

    /// Reports `field` of what is here as having no effect.
    pub(super) fn ignore(&mut self, field: &'static str, reason: &'static str) {
        self.report(Some(field), reason);
    }

    /// Reports each field that is set as not supported.
    pub(super) fn unsupported(&mut self, fields: &[(bool, &'static str)]) {
        for (set, field) in fields {
            if *set {
                self.report(Some(field), NOT_SUPPORTED);
            }
        }
    }

    /// What was reported.
    pub(super) fn into_ignored(self) -> Vec<IgnoredField> {
        self.ignored
    }

    // A control plane sets the same field on each of ten thousand routes: the first place stands for all, so
    // places are compared without their indices.
    fn report(&mut self, field: Option<&'static str>, reason: &'static str) {
        let mut hasher = FxHasher::default();
        for segment in &self.path {
            segment.field().hash(&mut hasher);
        }
        field.hash(&mut hasher);
        reason.hash(&mut hasher);
        if self.reported.insert(hasher.finish()) {
            self.ignored.push(IgnoredField { path: self.text(field), reason });
        }
    }

    fn text(&self, last: Option<&str>) -> String {
        let mut text = String::new();
        for segment in &self.path {
            let dot = if text.is_empty() { "" } else { "." };
            // Writing to a String cannot fail.
            let _ = match segment {
                Segment::Field(field) => write!(text, "{dot}{field}"),
                Segment::Index(field, index) => write!(text, "{dot}{field}[{index}]"),
                Segment::Key(field, key) => write!(text, "{dot}{field}[{key:?}]"),
            };
        }
        if let Some(last) = last {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(last);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_in_yaml() {
        let context = DecodeContext::default();
        let mut scope = Scope::new(&context);
        let invalid = scope.at("routes", 2, |scope| {
            scope.within("match", |scope| scope.key("map", "a b", |s| s.invalid_at("x", "why")))
        });
        assert_eq!(invalid.to_string(), r#"routes[2].match.map["a b"].x: why"#);
        assert_eq!(scope.invalid("why").to_string(), "why");
    }

    #[test]
    fn the_first_place_stands_for_all() {
        let context = DecodeContext::default();
        let mut scope = Scope::new(&context);
        for index in 3..10_000 {
            scope.at("routes", index, |scope| scope.ignore("cors", NOT_SUPPORTED));
        }
        scope.ignore("cors", NOT_SUPPORTED);
        let paths: Vec<_> = scope.into_ignored().into_iter().map(|field| field.path).collect();
        assert_eq!(paths, ["routes[3].cors", "cors"]);
    }
}
