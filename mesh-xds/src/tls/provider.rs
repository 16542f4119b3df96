//! Which cryptography TLS is done with.
//!
//! The caller's, or else that of a cargo feature: ring with `tls-ring`, AWS-LC with `tls-aws-lc`, ring with both, so that
//! the union of the features of a dependency tree changes nothing for those who chose ring. It is handed to rustls by
//! argument. None is installed for the process, and one that is installed there is NOT used.

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// A choice of cryptography; by default what the cargo features say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Provider(Option<Arc<CryptoProvider>>);

impl Provider {
    /// The provider to use.
    ///
    /// # Errors
    /// When nobody chose one and no feature brings one: says what to do.
    pub(crate) fn resolve(&self) -> Result<Arc<CryptoProvider>, String> {
        match &self.0 {
            Some(chosen) => Ok(Arc::clone(chosen)),
            None => built_in().map(Arc::new).ok_or_else(|| {
                "TLS needs a crypto provider: build mesh-xds with its feature `tls-ring` or `tls-aws-lc`, or pass a provider \
                 in code"
                    .to_owned()
            }),
        }
    }
}

#[cfg(feature = "tls-ring")]
fn built_in() -> Option<CryptoProvider> {
    Some(rustls::crypto::ring::default_provider())
}

#[cfg(all(feature = "tls-aws-lc", not(feature = "tls-ring")))]
fn built_in() -> Option<CryptoProvider> {
    Some(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
fn built_in() -> Option<CryptoProvider> {
    None
}

impl From<Arc<CryptoProvider>> for Provider {
    fn from(chosen: Arc<CryptoProvider>) -> Self {
        Self(Some(chosen))
    }
}

impl PartialEq for Provider {
    /// Equal when they are the same one: a provider cannot be looked into.
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    #[test]
    fn without_a_feature_tls_is_impossible_and_the_features_are_named() {
        let error = Provider::default().resolve().expect_err("there is none");
        assert!(error.contains("`tls-ring` or `tls-aws-lc`"), "{error}");
    }

    #[cfg(all(feature = "tls-ring", feature = "tls-aws-lc"))]
    #[test]
    fn ring_wins_where_both_are_built_in_and_a_choice_in_code_wins_over_it() {
        use rustls::crypto::{aws_lc_rs, ring};
        // rustls names no provider; their random generators differ in name.
        let random = |provider: &CryptoProvider| format!("{:?}", provider.secure_random);
        let chosen = |provider: Provider| random(&provider.resolve().expect("built in"));
        assert_eq!(chosen(Provider::default()), random(&ring::default_provider()));
        let aws_lc = aws_lc_rs::default_provider();
        assert_ne!(random(&aws_lc), random(&ring::default_provider()));
        assert_eq!(chosen(Arc::new(aws_lc.clone()).into()), random(&aws_lc));
    }
}
