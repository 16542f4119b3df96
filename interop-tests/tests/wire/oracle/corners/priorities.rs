//! Retries that go to other priorities (previous_priorities).
//!
//! Those below the first have one endpoint: we connect them when a retry comes, and of several the first that is connected has
//! it. Where a priority cannot be reached is no corner: what is done about that is not for a retry alone.

use super::{
    super::{
        case::{Call, Case, Place, grpc, http},
        script::{Answer, Grpc},
    },
    policy_with,
};
use serde_json::{Value, json};

/// `retry_priority` with this `update_frequency`.
pub(in super::super) fn previous_priorities(update_frequency: u32) -> Value {
    json!({ "name": "previous_priorities", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        "update_frequency": update_frequency,
    } })
}

/// Calls that fail wherever they go, to so many endpoints of each priority.
pub(in super::super) fn case(name: impl Into<String>, call: Call, retries: u32, every: u32, counts: &[usize]) -> Case {
    let more = json!({ "retry_priority": previous_priorities(every) });
    let (mut endpoints, mut next) = (Vec::new(), 0);
    for count in counts {
        endpoints.push((next..next + count).map(Place::Up).collect());
        next += count;
    }
    let case = Case::new(name, [call]).route(policy_with("5xx,unavailable", retries, more));
    Case { endpoints, ..case }
}

pub(super) fn priorities() -> Vec<Case> {
    let of_http = || http([Answer::status(503).after(0)]);
    let of_grpc = || grpc([Answer::grpc(Grpc::TrailersOnly(14)).after(0)]);
    let mut two_hosts = case("retry-priorities-and-hosts", of_http(), 2, 2, &[2, 1]);
    two_hosts.route["retry_policy"]["retry_host_predicate"] = json!([{ "name": "previous_hosts", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    } }]);
    two_hosts.route["retry_policy"]["host_selection_retry_max_attempts"] = 10.into();
    vec![
        case("retry-priorities-in-turn", of_http(), 7, 1, &[1, 1, 1, 1]),
        case("retry-priorities-grpc", of_grpc(), 4, 1, &[1, 1, 1]),
        case("retry-priorities-by-two", of_http(), 8, 2, &[1, 1, 1]),
        case("retry-priorities-grpc-by-two", of_grpc(), 4, 2, &[1, 1]),
        case("retry-priorities-by-three", of_http(), 7, 3, &[1, 1]),
        case("retry-priorities-turns", of_http(), 7, 1, &[3, 1]),
        case("retry-priorities-one", of_http(), 3, 1, &[1]),
        case("retry-priorities-without-endpoints", of_http(), 3, 1, &[1, 0, 1]),
        case("retry-priorities-never", of_http(), 3, 9, &[1, 1]),
        two_hosts,
    ]
}
