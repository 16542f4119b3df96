//! Strings, regexes and headers: the matchers that routes (and later RBAC and SANs) share (A28, A63).
//!
//! Matching itself lives here because every room that matches must agree on it to the letter.

use http::HeaderName;
use regex::Regex;
use std::{fmt, ops::Range};

/// A regex that must match the whole string, in RE2's dialect (A28: "full-string match").
#[derive(Clone)]
pub struct FullRegex {
    source: String,
    regex: Regex,
}

impl FullRegex {
    /// Compiles `source`, anchored at both ends.
    ///
    /// # Errors
    /// The regex crate's message when `source` does not compile or would be too large.
    pub fn new(source: &str) -> Result<Self, String> {
        // Compiled alone first, so that a source such as `a)(b` cannot escape the group below.
        Regex::new(source).map_err(|error| error.to_string())?;
        let regex = Regex::new(&format!("^(?:{source})$")).map_err(|error| error.to_string())?;
        Ok(Self { source: source.to_owned(), regex })
    }

    /// Whether the whole of `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The anchored form, for a set of several regexes that must agree with this one to the letter.
    pub fn anchored(&self) -> &str {
        self.regex.as_str()
    }

    /// The source as the control plane sent it, without our anchors.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for FullRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FullRegex({:?})", self.source)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// `envoy.type.matcher.v3.StringMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub enum StringMatch {
    /// The whole string. An empty one is valid and matches only the empty string.
    Exact {
        /// Text to compare with.
        value: String,
        /// ASCII case is folded.
        ignore_case: bool,
    },
    /// A non-empty beginning.
    Prefix {
        /// Text to compare with.
        value: String,
        /// ASCII case is folded.
        ignore_case: bool,
    },
    /// A non-empty end.
    Suffix {
        /// Text to compare with.
        value: String,
        /// ASCII case is folded.
        ignore_case: bool,
    },
    /// A non-empty part. With `ignore_case` the value is stored in lower case.
    Contains {
        /// Text to look for.
        value: String,
        /// ASCII case is folded.
        ignore_case: bool,
    },
    /// A full-string regex; `ignore_case` has no effect on it.
    Regex(FullRegex),
}

impl StringMatch {
    /// Whether `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        let same = |a: &[u8], b: &[u8], ignore_case: bool| if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
        match self {
            Self::Exact { value, ignore_case } => same(text.as_bytes(), value.as_bytes(), *ignore_case),
            Self::Prefix { value, ignore_case } => {
                text.as_bytes().get(..value.len()).is_some_and(|head| same(head, value.as_bytes(), *ignore_case))
            }
            Self::Suffix { value, ignore_case } => text
                .len()
                .checked_sub(value.len())
                .is_some_and(|start| same(&text.as_bytes()[start..], value.as_bytes(), *ignore_case)),
            Self::Contains { value, ignore_case: false } => text.contains(value.as_str()),
            Self::Contains { value, ignore_case: true } => text.to_ascii_lowercase().contains(value.as_str()),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// One `envoy.config.route.v3.HeaderMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Which header, lower case.
    pub name: HeaderField,
    /// What its value must be.
    pub value: HeaderValueMatch,
    /// `invert_match`. An absent header fails every matcher but presence, inverted or not (A28).
    pub invert: bool,
}

/// What a header matcher looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderField {
    /// An ordinary header; several values are joined with `,`.
    Header(HeaderName),
    /// `:method`, `:path`, `:scheme`, `:authority` (Istio matches on them).
    Pseudo(PseudoHeader),
    /// A `-bin` header: behaves as absent (A28).
    Binary,
}

/// The request pseudo headers that a matcher can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PseudoHeader {
    /// `:method`.
    Method,
    /// `:path`.
    Path,
    /// `:scheme`.
    Scheme,
    /// `:authority`, also spelt `host`.
    Authority,
}

/// `HeaderMatcher.header_match_specifier`.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValueMatch {
    /// `string_match` and the deprecated forms of it.
    String(StringMatch),
    /// `range_match`: a decimal i64 in `[start, end)`; anything unparsable does not match.
    Range(Range<i64>),
    /// `present_match`; also a matcher without specifier, which is read as "present" (as Envoy does).
    Present(bool),
}

impl HeaderValueMatch {
    /// Whether a header with this (joined) value, or its absence, matches; `invert` is applied.
    pub fn is_match(&self, value: Option<&str>, invert: bool) -> bool {
        match (self, value) {
            (Self::Present(present), value) => (value.is_some() == *present) != invert,
            // "Absent header: every specifier except present_match -> false even with invert_match" (A28, Envoy).
            (_, None) => false,
            (Self::String(string), Some(value)) => string.is_match(value) != invert,
            (Self::Range(range), Some(value)) => {
                value.parse().is_ok_and(|number: i64| range.contains(&number)) != invert
            }
        }
    }
}

/// A share of a million, at most a million: fractions and drop rates (`FractionalPercent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millionths(u32);

impl Millionths {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);

    /// `numerator / denominator`, capped at one. Computed in u64: 1,000,000/HUNDRED must not wrap.
    pub fn from_ratio(numerator: u32, denominator: u32) -> Self {
        let scaled = u64::from(numerator) * 1_000_000 / u64::from(denominator.max(1));
        Self(u32::try_from(scaled).unwrap_or(u32::MAX).min(1_000_000))
    }

    /// Whether a draw from `0..1_000_000` falls into the share. `<`, so that 0 % never hits (A28's `<=` would).
    pub fn hit(self, draw: u32) -> bool {
        draw < self.0
    }

    /// The share, of a million.
    pub fn get(self) -> u32 {
        self.0
    }
}
