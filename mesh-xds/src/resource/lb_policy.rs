//! Load-balancing policies of a cluster (A27, A42, A48, A52, A62).

/// A cluster's policy after conversion of `lb_policy` or `load_balancing_policy` (which wins).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LbPolicy {
    /// Localities by weight, endpoints in turn.
    RoundRobin,
    /// Localities by weight, endpoints by chance.
    Random,
    /// The first endpoint that connects (A62); replaces locality picking, too.
    PickFirst {
        /// `shuffle_address_list`.
        shuffle: bool,
    },
}
