//! Why a resource was refused, and which of its fields nobody here understands.
//!
//! `decode` makes both; NACK texts, CSDS and `status()` print them. They carry a field path in
//! protobuf spelling, so that an operator finds the place in the control plane's own YAML.

use std::fmt;

/// A resource that must be NACKed: where in it, and why.
///
/// ```
/// use mesh_xds::resource::Invalid;
/// let invalid = Invalid::new("empty regex").within("safe_regex").within("match").at(2, "routes");
/// assert_eq!(invalid.to_string(), "routes[2].match.safe_regex: empty regex");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Field path in protobuf spelling, empty for the resource as a whole.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

impl Invalid {
    /// A reason without a place; callers add the place on the way out.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// Prefixes the path with a field name.
    #[must_use]
    pub fn within(mut self, field: &str) -> Self {
        self.path = match self.path.as_str() {
            "" => field.to_owned(),
            rest if rest.starts_with('[') => format!("{field}{rest}"),
            rest => format!("{field}.{rest}"),
        };
        self
    }

    /// Prefixes the path with `field[index]`.
    #[must_use]
    pub fn at(self, index: usize, field: &str) -> Self {
        self.within(&format!("{field}[{index}]"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

impl std::error::Error for Invalid {}

/// A field that was set, is valid, and has no effect here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredField {
    /// Field path in protobuf spelling, empty for the resource as a whole.
    pub path: String,
    /// Why it has no effect, in a few words ("query parameter matching is not supported: route skipped").
    pub reason: &'static str,
}

impl fmt::Display for IgnoredField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}
