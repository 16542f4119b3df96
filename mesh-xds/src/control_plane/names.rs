//! Resource names that mean the same resource, as one text (A47).
//!
//! One control plane serves resources of any number of authorities: an authority is a part of a name. Whether a name is
//! valid is NOT judged here; what is no `xdstp://` name is its own text.

use std::borrow::Cow;

/// The name with its context parameters in order: "the order of context parameters is not significant" - xRFC TP1.
pub(super) fn canonical(name: &str) -> Cow<'_, str> {
    if !name.starts_with("xdstp:") {
        return name.into();
    }
    let (rest, directives) = name.find('#').map_or((name, ""), |at| name.split_at(at));
    let Some((path, parameters)) = rest.split_once('?') else { return name.into() };
    let mut parameters: Vec<_> = parameters.split('&').collect();
    if parameters.is_sorted() {
        return name.into();
    }
    parameters.sort_unstable();
    format!("{path}?{}{directives}", parameters.join("&")).into()
}

/// The same for many.
pub(super) fn canonical_all(names: Vec<String>) -> Vec<String> {
    names.into_iter().map(canonical_string).collect()
}

pub(super) fn canonical_string(name: String) -> String {
    match canonical(&name) {
        Cow::Owned(other) => other,
        Cow::Borrowed(_) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_context_parameters_means_nothing() {
        for (name, expected) in [
            ("xdstp://a/t/id?b=2&a=1", "xdstp://a/t/id?a=1&b=2"),
            ("xdstp://a/t/id?a=1&b=2", "xdstp://a/t/id?a=1&b=2"),
            ("xdstp://a/t/id?c=3&b=2&a=1#alt=x", "xdstp://a/t/id?a=1&b=2&c=3#alt=x"),
            ("xdstp://a/t/id", "xdstp://a/t/id"),
            ("xdstp:///t/id?", "xdstp:///t/id?"),
            ("plain?b=2&a=1", "plain?b=2&a=1"),
            ("", ""),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
            assert_eq!(canonical_string(name.to_owned()), expected, "{name}");
        }
    }
}
