//! Header and string matchers (A28, A63), shared by routes, faults and SANs.

use super::scope::Scope;
use crate::resource::{FullRegex, HeaderField, HeaderMatch, HeaderValueMatch, Invalid, PseudoHeader, StringMatch};
use envoy_types::pb::envoy::{
    config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};
use http::HeaderName;

/// One entry of `headers`.
pub(super) fn header(matcher: HeaderMatcher, scope: &mut Scope<'_>) -> Result<HeaderMatch, Invalid> {
    let name = header_field(&matcher.name, scope)?;
    scope.unsupported(&[(matcher.treat_missing_header_as_empty, "treat_missing_header_as_empty")]);
    let text = |matches: StringMatch| Ok(HeaderValueMatch::String(matches));
    let value = match matcher.header_match_specifier {
        // istiod asks for presence with no specifier at all, and Envoy reads it so.
        None => Ok(HeaderValueMatch::Present(true)),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => Ok(HeaderValueMatch::Present(present)),
        // An unparsable value does not match, so an empty range is merely one that never does.
        Some(HeaderMatchSpecifier::RangeMatch(range)) => Ok(HeaderValueMatch::Range(range.start..range.end)),
        Some(HeaderMatchSpecifier::ExactMatch(value)) => text(StringMatch::Exact { value, ignore_case: false }),
        Some(HeaderMatchSpecifier::PrefixMatch(value)) => {
            let value = non_empty(value, "prefix_match", scope)?;
            text(StringMatch::Prefix { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::SuffixMatch(value)) => {
            let value = non_empty(value, "suffix_match", scope)?;
            text(StringMatch::Suffix { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::ContainsMatch(value)) => {
            let value = non_empty(value, "contains_match", scope)?;
            text(StringMatch::Contains { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => {
            text(StringMatch::Regex(scope.within("safe_regex_match", |scope| regex(&matcher, scope))?))
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            text(scope.within("string_match", |scope| string(matcher, scope))?)
        }
    }?;
    Ok(HeaderMatch { name, value, invert: matcher.invert_match })
}

fn header_field(name: &str, scope: &Scope<'_>) -> Result<HeaderField, Invalid> {
    let lower = name.to_ascii_lowercase();
    Ok(match lower.as_str() {
        ":method" => HeaderField::Pseudo(PseudoHeader::Method),
        ":path" => HeaderField::Pseudo(PseudoHeader::Path),
        ":scheme" => HeaderField::Pseudo(PseudoHeader::Scheme),
        ":authority" | "host" => HeaderField::Pseudo(PseudoHeader::Authority),
        // "Names ending -bin behave as absent" - A28
        binary if binary.ends_with("-bin") => HeaderField::Binary,
        _ => HeaderField::Header(
            HeaderName::from_bytes(lower.as_bytes())
                .map_err(|_| scope.invalid_at("name", format!("{name:?} is not a header name")))?,
        ),
    })
}

/// A `StringMatcher`: "null matcher", "empty prefix/suffix/contains" and "bad regex" are refused (A63).
pub(super) fn string(matcher: StringMatcher, scope: &mut Scope<'_>) -> Result<StringMatch, Invalid> {
    let ignore_case = matcher.ignore_case;
    Ok(match matcher.match_pattern {
        Some(MatchPattern::Exact(value)) => StringMatch::Exact { value, ignore_case },
        Some(MatchPattern::Prefix(value)) => {
            StringMatch::Prefix { value: non_empty(value, "prefix", scope)?, ignore_case }
        }
        Some(MatchPattern::Suffix(value)) => {
            StringMatch::Suffix { value: non_empty(value, "suffix", scope)?, ignore_case }
        }
        Some(MatchPattern::Contains(value)) => {
            let value = non_empty(value, "contains", scope)?;
            // The matcher lowers the header's side only.
            let value = if ignore_case { value.to_ascii_lowercase() } else { value };
            StringMatch::Contains { value, ignore_case }
        }
        Some(MatchPattern::SafeRegex(matcher)) => {
            StringMatch::Regex(scope.within("safe_regex", |scope| regex(&matcher, scope))?)
        }
        Some(MatchPattern::Custom(_)) => return Err(scope.invalid_at("custom", "custom matchers are not supported")),
        None => return Err(scope.invalid("no match pattern")),
    })
}

/// A `RegexMatcher`; `google_re2` and its `max_program_size` say nothing that we need.
pub(super) fn regex(matcher: &RegexMatcher, scope: &Scope<'_>) -> Result<FullRegex, Invalid> {
    if matcher.regex.is_empty() {
        return Err(scope.invalid_at("regex", "must not be empty"));
    }
    FullRegex::new(&matcher.regex).map_err(|reason| scope.invalid_at("regex", reason))
}

fn non_empty(value: String, field: &str, scope: &Scope<'_>) -> Result<String, Invalid> {
    if value.is_empty() { Err(scope.invalid_at(field, "must not be empty")) } else { Ok(value) }
}
