//! Resource names, plain and `xdstp:` (A47, xRFC TP1).
//!
//! `xdstp://authority/type/id?context` names the same resource however its context parameters are ordered and
//! whichever letters are escaped, so names are made canonical where they enter: in what was decoded, in what arrives
//! and in what is watched. Everything after that compares strings. A plain name is its own canonical form and belongs
//! to the top-level servers. This file does NOT know which authorities there are.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

const SCHEME: &str = "xdstp://";

/// The one spelling of a name that all its spellings come to.
///
/// Context parameters are sorted by key, and each key's last value counts; escapes are in upper case and only where they are needed, and directives
/// (`#...`) are dropped, as they are no part of the name.
pub(crate) fn canonical(name: &str) -> Cow<'_, str> {
    let Some(rest) = name.strip_prefix(SCHEME) else { return Cow::Borrowed(name) };
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (path, context) = rest.split_once('?').unwrap_or((rest, ""));
    // "removing duplicate keys and sorting keys in lexicographic order"; "the easiest thing is probably to just use the last
    // value seen" - A47.
    let parameters = context.split('&').filter(|parameter| !parameter.is_empty()).map(escape);
    let parameters: BTreeMap<_, _> = parameters.map(|parameter| (key(&parameter).to_owned(), parameter)).collect();
    let mut canonical = format!("{SCHEME}{}", escape(path));
    for (index, parameter) in parameters.values().enumerate() {
        canonical.push(if index == 0 { '?' } else { '&' });
        canonical.push_str(parameter);
    }
    if canonical == name { Cow::Borrowed(name) } else { Cow::Owned(canonical) }
}

/// The same for a name in hand.
pub(crate) fn canonical_string(name: String) -> String {
    match canonical(&name) {
        Cow::Owned(canonical) => canonical,
        Cow::Borrowed(_) => name,
    }
}

/// The authority of an `xdstp:` name, which may be empty; `None` for a plain name.
pub(crate) fn authority(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(SCHEME)?;
    Some(rest.split(['/', '?', '#']).next().unwrap_or_default())
}

/// Escapes what may not stand in the path of a URI, for a name that is put into an `xdstp:` template: "`/` is left
/// alone" - A47.
pub(crate) fn percent_encode(text: &str) -> Cow<'_, str> {
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 8);
    text.bytes().for_each(|byte| push(&mut encoded, byte));
    Cow::Owned(encoded)
}

fn key(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(key, _)| key)
}

/// Each byte plain or escaped, whatever it was; a `%` without two hex digits stands for itself.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let code = tail.get(..2).and_then(|digits| Some(hex(digits[0])? << 4 | hex(digits[1])?));
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                rest = &tail[2..];
                // What separates parts of a name keeps its meaning only while it stays escaped.
                if is_plain(byte) && !b"/&=".contains(&byte) {
                    escaped.push(char::from(byte));
                } else {
                    let _ = write!(escaped, "%{byte:02X}");
                }
            }
            None => push(&mut escaped, *first),
        }
    }
    escaped
}

fn push(escaped: &mut String, byte: u8) {
    if is_plain(byte) {
        escaped.push(char::from(byte));
    } else {
        // Writing to a String cannot fail.
        let _ = write!(escaped, "%{byte:02X}");
    }
}

/// RFC 3986 path characters.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_spellings_of_a_name_come_to_one() {
        for (spelling, expected) in [
            ("greeter:80", "greeter:80"),
            ("a?b=1&a=2", "a?b=1&a=2"),
            ("xdstp://auth/t/id", "xdstp://auth/t/id"),
            ("xdstp://auth/t/id?b=2&a=1", "xdstp://auth/t/id?a=1&b=2"),
            ("xdstp://auth/t/id?a=1&b=2", "xdstp://auth/t/id?a=1&b=2"),
            ("xdstp://auth/t/id?b=2&a=1&b=3&%62=4", "xdstp://auth/t/id?a=1&b=4"),
            ("xdstp://auth/t/id?", "xdstp://auth/t/id"),
            ("xdstp:///t/h:80/z%20w", "xdstp:///t/h:80/z%20w"),
            ("xdstp:///t/%7e%c3%a4 ", "xdstp:///t/~%C3%A4%20"),
            ("xdstp:///t/a%2fb?k=x%26y", "xdstp:///t/a%2Fb?k=x%26y"),
            ("xdstp:///t/100%", "xdstp:///t/100%25"),
            ("xdstp://auth/t/id?a=1#alt=xdstp://x/t/y", "xdstp://auth/t/id?a=1"),
        ] {
            assert_eq!(canonical(spelling), expected, "{spelling}");
        }
    }

    #[test]
    fn only_an_xdstp_name_has_an_authority() {
        assert_eq!(authority("greeter:80"), None);
        assert_eq!(authority("xdstp://auth/t/id"), Some("auth"));
        assert_eq!(authority("xdstp:///t/id"), Some(""));
        assert_eq!(authority("xdstp://auth?x=1"), Some("auth"));
    }

    proptest! {
        #[test]
        fn the_canonical_form_of_a_canonical_form_is_itself(name in "(xdstp://)?[ -~é]{0,40}") {
            let once = canonical(&name).into_owned();
            prop_assert_eq!(canonical(&once).into_owned(), once);
        }
    }
}
