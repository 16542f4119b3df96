//! Route configurations, virtual hosts and routes.

use super::{context, received, reports};
use http::HeaderName;
use mesh_xds::{
    decode::decode_after,
    resource::{
        ClusterSpecifier, Domain, Forward, FullRegex, HeaderField, HeaderMatch, HeaderValueMatch, Kind, Millionths,
        PathMatch, PseudoHeader, RateLimitedBackOff, Received, ResetFormat, ResetHeader, Resource, RetryCondition,
        RetryPolicy, Route, RouteAction, RouteConfig, StringMatch,
    },
};
use std::{num::NonZeroU32, sync::Arc, time::Duration};

fn config(yaml: &str) -> (Arc<RouteConfig>, Vec<String>) {
    let received = received(Kind::RouteConfig, yaml);
    let reports = reports(&received);
    match received.value {
        Ok(Resource::RouteConfig(routes)) => (routes, reports),
        other => panic!("{other:?}"),
    }
}

/// The routes of one virtual host, written as flow mappings.
fn routes(yaml: &str) -> (Vec<Route>, Vec<String>) {
    let (config, reports) = config(&format!("virtual_hosts: [{{name: v, domains: ['*'], {yaml}}}]"));
    (config.virtual_hosts[0].routes.clone(), reports)
}

fn forward(action: &str) -> (Forward, Vec<String>) {
    let (routes, reports) = routes(&format!("routes: [{{match: {{prefix: ''}}, route: {action}}}]"));
    match &routes[0].action {
        RouteAction::Forward(forward) => (forward.clone(), reports),
        other => panic!("{other:?}"),
    }
}

// === Virtual hosts and matches ===

#[test]
fn domains_are_sorted_into_kinds_and_folded() {
    let (config, _) = config("virtual_hosts: [{name: v, domains: [A.Com, '*.B.com', 'C.*', '*', 'a:80', '*-d']}]");
    let expected = [
        Domain::Exact("a.com".to_owned()),
        Domain::Suffix(".b.com".to_owned()),
        Domain::Prefix("c.".to_owned()),
        Domain::Any,
        Domain::Exact("a:80".to_owned()),
        Domain::Suffix("-d".to_owned()),
    ];
    assert_eq!(config.virtual_hosts[0].domains, expected);
}

#[test]
fn paths_keep_their_kind_and_their_case_rule() {
    let (routes, _) = routes(
        "routes: [{match: {prefix: /a, case_sensitive: false}, route: {cluster: c}}, {match: {path: /b, case_sensitive: true}, \
         route: {cluster: c}}, {match: {safe_regex: {google_re2: {}, regex: '/c+'}}, route: {cluster: c}}]",
    );
    let paths: Vec<_> = routes.into_iter().map(|route| route.matches.path).collect();
    let expected = [
        PathMatch::Prefix { value: "/a".to_owned(), ignore_case: true },
        PathMatch::Exact { value: "/b".to_owned(), ignore_case: false },
        PathMatch::Regex(FullRegex::new("/c+").unwrap()),
    ];
    assert_eq!(paths, expected);
}

#[test]
fn header_matchers_become_what_they_mean() {
    let exact =
        |value: &str| HeaderValueMatch::String(StringMatch::Exact { value: value.to_owned(), ignore_case: false });
    let ordinary = |name| HeaderField::Header(HeaderName::from_static(name));
    let cases = [
        // istiod writes presence without a specifier.
        ("{name: a}", ordinary("a"), HeaderValueMatch::Present(true), false),
        ("{name: a, invert_match: true}", ordinary("a"), HeaderValueMatch::Present(true), true),
        ("{name: a, present_match: false}", ordinary("a"), HeaderValueMatch::Present(false), false),
        ("{name: X-Up, exact_match: V}", ordinary("x-up"), exact("V"), false),
        ("{name: a, exact_match: ''}", ordinary("a"), exact(""), false),
        ("{name: a-bin, exact_match: v}", HeaderField::Binary, exact("v"), false),
        ("{name: ':method', exact_match: GET}", HeaderField::Pseudo(PseudoHeader::Method), exact("GET"), false),
        ("{name: Host, exact_match: h}", HeaderField::Pseudo(PseudoHeader::Authority), exact("h"), false),
        ("{name: a, range_match: {start: -5, end: 7}}", ordinary("a"), HeaderValueMatch::Range(-5..7), false),
        (
            "{name: a, string_match: {contains: AbC, ignore_case: true}}",
            ordinary("a"),
            HeaderValueMatch::String(StringMatch::Contains { value: "abc".to_owned(), ignore_case: true }),
            false,
        ),
        (
            "{name: a, string_match: {suffix: AbC, ignore_case: true}}",
            ordinary("a"),
            HeaderValueMatch::String(StringMatch::Suffix { value: "AbC".to_owned(), ignore_case: true }),
            false,
        ),
    ];
    for (yaml, name, value, invert) in cases {
        let (routes, _) =
            routes(&format!("routes: [{{match: {{prefix: '', headers: [{yaml}]}}, route: {{cluster: c}}}}]"));
        assert_eq!(routes[0].matches.headers, [HeaderMatch { name, value, invert }], "{yaml}");
    }
}

#[test]
fn fractions_are_millionths_and_never_more_than_all() {
    for (fraction, expected) in [
        ("{numerator: 12, denominator: HUNDRED}", 120_000),
        ("{numerator: 12, denominator: TEN_THOUSAND}", 1_200),
        ("{numerator: 12, denominator: MILLION}", 12),
        ("{numerator: 4294967295}", 1_000_000),
        ("{}", 0),
    ] {
        let (routes, _) = routes(&format!(
            "routes: [{{match: {{prefix: '', runtime_fraction: {{default_value: {fraction}}}}}, route: {{cluster: c}}}}]"
        ));
        assert_eq!(routes[0].matches.fraction.map(Millionths::get), Some(expected), "{fraction}");
    }
}

#[test]
fn a_route_that_cannot_be_judged_is_dropped_and_reported() {
    let (routes, reports) = routes(
        "routes: [{match: {prefix: '', query_parameters: [{name: q, present_match: true}]}, route: {cluster: c}}, \
         {match: {prefix: ''}, route: {cluster_header: h}}, {match: {prefix: ''}, route: {}}, \
         {match: {prefix: ''}, route: {weighted_clusters: {clusters: [{cluster_header: h, weight: 1}]}}}, \
         {name: last, match: {prefix: ''}, route: {cluster: c}}]",
    );
    assert_eq!(routes.iter().map(|route| route.name.as_str()).collect::<Vec<_>>(), ["last"]);
    assert_eq!(
        reports,
        [
            "virtual_hosts[0].routes[0].match.query_parameters: not supported: route skipped",
            "virtual_hosts[0].routes[1].route.cluster_header: not supported: route skipped",
            "virtual_hosts[0].routes[2].route.cluster_specifier: not supported: route skipped",
            "virtual_hosts[0].routes[3].route.weighted_clusters.clusters[0].cluster_header: not supported: route skipped",
        ]
    );
}

// === Actions ===

#[test]
fn another_action_keeps_its_place_and_fails_calls() {
    let (routes, reports) = routes(
        "routes: [{match: {prefix: /r}, redirect: {}}, {match: {prefix: /d}, direct_response: {status: 200}}, \
         {match: {prefix: /n}, non_forwarding_action: {}}, {match: {prefix: /x}}]",
    );
    let actions: Vec<_> = routes.into_iter().map(|route| route.action).collect();
    let expected = ["redirect", "direct_response", "non_forwarding_action", "action"].map(RouteAction::Unsupported);
    assert_eq!(actions, expected);
    assert_eq!(reports.len(), 4);
}

#[test]
fn clusters_of_weight_zero_are_no_part_of_the_split() {
    let (forward, _) = forward(
        "{weighted_clusters: {total_weight: 7, clusters: [{name: a, weight: 0}, {name: b, weight: 2}, {name: c}, \
         {name: d, weight: 1}]}}",
    );
    let ClusterSpecifier::Weighted(clusters) = forward.cluster else { panic!("{:?}", forward.cluster) };
    let split: Vec<_> = clusters.iter().map(|cluster| (cluster.name.as_str(), cluster.weight)).collect();
    assert_eq!(split, [("b", 2), ("d", 1)]);
}

#[test]
fn timeouts_keep_the_difference_between_zero_and_unset() {
    let (unset, reports) = forward("{cluster: c}");
    assert_eq!((unset.timeout, unset.max_stream_duration, unset.grpc_timeout_header_max), (None, None, None));
    assert_eq!(reports, [""; 0]);
    let (zero, reports) = forward(
        "{cluster: c, timeout: 0s, max_stream_duration: {max_stream_duration: 0s, grpc_timeout_header_max: 0s}}",
    );
    let none = Some(Duration::ZERO);
    assert_eq!((zero.timeout, zero.max_stream_duration, zero.grpc_timeout_header_max), (none, none, none));
    assert_eq!(reports, [""; 0]);
}

#[test]
fn a_timeout_that_grpc_calls_would_miss_is_reported() {
    let (_, both) = forward("{cluster: c, timeout: 2s, max_stream_duration: {max_stream_duration: 2s}}");
    assert_eq!(both, [""; 0], "istiod puts the same limit in both fields");
    let (forward, lost) = forward("{cluster: c, timeout: 2s}");
    assert_eq!(forward.timeout, Some(Duration::from_secs(2)));
    assert_eq!(
        lost,
        ["virtual_hosts[0].routes[0].route.timeout: has no effect on gRPC calls, only on other HTTP (A31)"]
    );
}

#[test]
fn a_route_without_retry_policy_has_its_virtual_hosts() {
    let (routes, reports) = routes(
        "retry_policy: {retry_on: ' Unavailable , foo,cancelled', num_retries: 10, retry_back_off: {base_interval: 0.0001s}}, \
         routes: [{match: {prefix: /a}, route: {cluster: c}}, \
         {match: {prefix: /b}, route: {cluster: c, retry_policy: {retry_on: 5xx}}}]",
    );
    let policies: Vec<_> = routes
        .iter()
        .map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.retry_policy.as_deref().cloned(),
            other => panic!("{other:?}"),
        })
        .collect();
    let of_host = RetryPolicy {
        retry_on: [RetryCondition::Unavailable, RetryCondition::Cancelled].into_iter().collect(),
        num_retries: 10,
        base_interval: Duration::from_millis(1),
        max_interval: Duration::from_millis(1),
        ..policy("5xx")
    };
    // Nothing that gRPC could use, and yet it hides the virtual host's (A44).
    let of_route = policy("5xx");
    assert_eq!(policies, [Some(of_host), Some(of_route)]);
    assert_eq!(reports, ["virtual_hosts[0].retry_policy.retry_on: one of its conditions is not known: has no effect"]);
}

/// What a policy is that says only this.
fn policy(retry_on: &str) -> RetryPolicy {
    RetryPolicy::on(RetryCondition::named(retry_on))
}

#[test]
fn all_of_envoys_retry_policy_is_read() {
    let forward = |fields: &str| forward(&format!("{{cluster: c, retry_policy: {{{fields}}}}}"));
    let (forward, reports) = forward(
        r#"retry_on: "retriable-status-codes,reset-before-request", num_retries: 7, per_try_timeout: 2s, per_try_idle_timeout: 1s,
           retriable_status_codes: [418, 70000], retriable_headers: [{name: x-again}], retriable_request_headers: [{name: x-safe}],
           retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts},
             {name: p, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}},
             {name: envoy.retry_host_predicates.omit_canary_hosts}],
           host_selection_retry_max_attempts: 3,
           retry_priority: {name: p, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 2}},
           rate_limited_retry_back_off: {reset_headers: [{name: Retry-After}, {name: x-reset, format: UNIX_TIMESTAMP}], max_interval: 9s}"#,
    );
    let present = |name| HeaderMatch {
        name: HeaderField::Header(HeaderName::from_static(name)),
        value: HeaderValueMatch::Present(true),
        invert: false,
    };
    let header = |name, format| ResetHeader { name: HeaderName::from_static(name), format };
    let expected = RetryPolicy {
        retry_on: [RetryCondition::RetriableStatusCodes, RetryCondition::ResetBeforeRequest].into_iter().collect(),
        num_retries: 7,
        per_try_timeout: Some(Duration::from_secs(2)),
        per_try_idle_timeout: Some(Duration::from_secs(1)),
        retriable_status_codes: vec![418],
        retriable_headers: vec![present("x-again")],
        retriable_request_headers: vec![present("x-safe")],
        rate_limited: Some(RateLimitedBackOff {
            reset_headers: vec![
                header("retry-after", ResetFormat::Seconds),
                header("x-reset", ResetFormat::UnixTimestamp),
            ],
            max_interval: Duration::from_secs(9),
        }),
        avoid_previous_hosts: true,
        host_selection_attempts: 3,
        previous_priorities: NonZeroU32::new(2),
        ..policy("")
    };
    assert_eq!(forward.retry_policy.as_deref(), Some(&expected));
    assert_eq!(
        reports,
        [
            "virtual_hosts[0].routes[0].route.retry_policy.retry_host_predicate[2]: not a predicate that is supported: has no effect"
        ]
    );
}

#[test]
fn a_retry_priority_that_is_not_known_is_reported() {
    for priority in [
        "{name: p}",
        r#"{name: envoy.retry_priorities.previous_priorities, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}"#,
    ] {
        let (forward, reports) =
            forward(&format!("{{cluster: c, retry_policy: {{retry_on: 5xx, retry_priority: {priority}}}}}"));
        assert_eq!(forward.retry_policy.as_deref(), Some(&policy("5xx")));
        let report = "virtual_hosts[0].routes[0].route.retry_policy.retry_priority: not a retry priority that is supported: \
                      has no effect";
        assert_eq!(reports, [report]);
    }
}

#[test]
fn only_a_trusted_server_may_rewrite_authorities() {
    let (forward, reports) = forward("{cluster: c, auto_host_rewrite: true}");
    assert!(!forward.auto_host_rewrite);
    assert_eq!(
        reports,
        ["virtual_hosts[0].routes[0].route.auto_host_rewrite: the server is not a trusted_xds_server: has no effect"]
    );
}

#[test]
fn an_optional_override_of_an_unknown_filter_is_skipped_and_reported() {
    let (_, reports) = routes(
        r#"typed_per_filter_config: {f: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, is_optional: true, config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute}}}"#,
    );
    assert_eq!(
        reports,
        [r#"virtual_hosts[0].typed_per_filter_config["f"].config: unknown filter override, optional: skipped"#]
    );
}

// === Updates ===

#[test]
fn an_update_decodes_to_the_same_as_from_scratch() {
    let host = |name: &str, rest: &str| {
        format!(
            "{{name: {name}, domains: [{name}], {rest} routes: [{{match: {{prefix: ''}}, route: {{cluster: {name}}}}}]}}"
        )
    };
    let (a, b, c) = (host("a", ""), host("b", "cors: {},"), host("c", "cors: {},"));
    let changed = host("b", "hedge_policy: {},");
    let yaml = |hosts: &[&String], rest: &str| {
        format!("{rest}virtual_hosts: [{}]", hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>().join(", "))
    };
    let first = received(Kind::RouteConfig, &yaml(&[&a, &b, &c], "vhds: {}\n"));
    for (hosts, rest) in [
        (vec![&a, &b, &c], "vhds: {}\n"),
        (vec![&a, &b, &c], "ignore_port_in_host_matching: true\n"),
        (vec![&a, &changed, &c], ""),
        (vec![&changed, &c, &b, &a], ""),
        (vec![&c, &a], ""),
        (vec![&b, &b], ""),
        (vec![], ""),
    ] {
        let whole = received(Kind::RouteConfig, &yaml(&hosts, rest));
        let after = decode_after(&first, Kind::RouteConfig, Kind::RouteConfig.type_url(), &whole.raw, &context());
        assert_eq!((&after.value, &after.name, &after.raw), (&whole.value, &whole.name, &whole.raw));
        let fields = |received: &Received| {
            let mut fields: Vec<_> = reports(received)
                .iter()
                .map(|report| report.replace(|digit: char| digit.is_ascii_digit(), ""))
                .collect();
            fields.sort();
            fields
        };
        assert_eq!(fields(&after), fields(&whole), "{hosts:?}");
    }
}

#[test]
fn an_update_takes_over_unchanged_virtual_hosts() {
    let hosts = |cluster: &str| {
        let host = |n: usize, cluster: &str| {
            format!(
                "{{name: v{n}, domains: [h{n}], routes: [{{match: {{prefix: ''}}, route: {{cluster: {cluster}}}}}]}}"
            )
        };
        format!("virtual_hosts: [{}, {}, {}]", host(0, "c"), host(1, cluster), host(2, "c"))
    };
    let (first, next) = (received(Kind::RouteConfig, &hosts("c")), received(Kind::RouteConfig, &hosts("other")));
    let after = decode_after(&first, Kind::RouteConfig, Kind::RouteConfig.type_url(), &next.raw, &context());
    let (Ok(Resource::RouteConfig(old)), Ok(Resource::RouteConfig(new))) = (first.value, after.value) else { panic!() };
    let kept: Vec<_> =
        old.virtual_hosts.iter().zip(&new.virtual_hosts).map(|(old, new)| Arc::ptr_eq(old, new)).collect();
    assert_eq!(kept, [true, false, true]);
}
