//! Which extensions a program brings along: type URL to decoder.
//!
//! Decoding gets it as an argument. It is part of what makes two bootstraps one client, since a client decodes a resource
//! once for all who watch it. It does NOT hold what runs with calls.

use crate::resource::{FilterConfig, FilterType};

/// The extensions that a client understands beside those that it knows itself.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    filters: Vec<FilterType>,
}

impl Registry {
    /// Adds a type of HTTP filter; the last one of a type URL counts.
    #[must_use]
    pub fn with_filter<C: FilterConfig>(mut self) -> Self {
        let added = FilterType::of::<C>();
        self.filters.retain(|filter| filter.type_url() != added.type_url());
        self.filters.push(added);
        self
    }

    /// The filter type whose URL ends with this name.
    pub(crate) fn filter(&self, type_name: &str) -> Option<FilterType> {
        let name = |filter: &FilterType| filter.type_url().rsplit('/').next() == Some(type_name);
        self.filters.iter().copied().find(name)
    }
}

/// In whatever order they were added.
impl PartialEq for Registry {
    fn eq(&self, other: &Self) -> bool {
        self.filters.len() == other.filters.len() && self.filters.iter().all(|filter| other.filters.contains(filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Invalid;

    #[derive(Debug, PartialEq)]
    struct One;
    #[derive(Debug, PartialEq)]
    struct Another;
    #[derive(Debug, PartialEq)]
    struct OneAgain;

    impl FilterConfig for One {
        const TYPE_URL: &'static str = "type.googleapis.com/test.One";
        fn decode(_: &[u8]) -> Result<Self, Invalid> {
            Ok(Self)
        }
    }
    impl FilterConfig for Another {
        const TYPE_URL: &'static str = "type.googleapis.com/test.Another";
        fn decode(_: &[u8]) -> Result<Self, Invalid> {
            panic!("a mistake of a user")
        }
    }
    impl FilterConfig for OneAgain {
        const TYPE_URL: &'static str = One::TYPE_URL;
        fn decode(_: &[u8]) -> Result<Self, Invalid> {
            Ok(Self)
        }
    }

    #[test]
    fn registries_are_equal_by_what_they_decode() {
        let both = Registry::default().with_filter::<One>().with_filter::<Another>();
        assert_eq!(both, Registry::default().with_filter::<Another>().with_filter::<One>());
        assert_ne!(both, Registry::default().with_filter::<One>());
        assert_ne!(both, both.clone().with_filter::<OneAgain>());
    }

    #[test]
    fn the_last_one_of_a_type_url_counts() {
        let registry = Registry::default().with_filter::<One>().with_filter::<OneAgain>();
        let kind = registry.filter("test.One").expect("registered");
        assert!(kind.decode(b"").expect("valid").config::<OneAgain>().is_some());
        assert!(registry.filter("test.Another").is_none());
    }

    #[test]
    fn a_decoder_that_panics_refuses() {
        let kind = FilterType::of::<Another>();
        assert_eq!(kind.decode(b""), Err(Invalid::new("its decoder panicked")));
        assert_eq!(kind.decode_json("{}"), Err(Invalid::new("must not come in a TypedStruct")));
    }
}
