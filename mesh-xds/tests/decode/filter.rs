//! HTTP filters, faults, and what routes say about them.

use super::{received, reports};
use mesh_xds::{
    Registry,
    control_plane::proto::{
        envoy::{
            config::route::v3::{FilterConfig, RouteConfiguration, VirtualHost},
            extensions::filters::http::fault::v3::HttpFault as HttpFaultPb,
        },
        google::protobuf::{Any, ListValue, Struct, Value, value},
    },
    control_plane::resources::pack,
    decode::{DecodeContext, decode},
    resource::{
        AbortSource, ClusterSpecifier, DelaySource, FaultAbort, FaultDelay, FaultPercentage, FilterConfig as Config,
        FilterOverride, FilterOverrides, HttpFault, HttpFilterConfig, Invalid, Kind, Received, Resource, RouteAction,
        RouteConfig,
    },
};
use prost::Message;
use std::{collections::HashMap, sync::Arc, time::Duration};

const FAULT: &str = r#""@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"#;
const WRAPPER: &str = r#""@type": type.googleapis.com/envoy.config.route.v3.FilterConfig"#;

/// What a route configuration with this override of the filter `f` becomes.
fn route_config(yaml: &str) -> Received {
    received(Kind::RouteConfig, &format!("typed_per_filter_config: {{f: {{{yaml}}}}}"))
}

fn overrides(received: &Received) -> &FilterOverrides {
    match &received.value {
        Ok(Resource::RouteConfig(routes)) => &routes.overrides,
        other => panic!("{other:?}"),
    }
}

/// What an HTTPFault becomes, and what is reported of it.
fn fault(yaml: &str) -> (HttpFault, Vec<String>) {
    let received = route_config(&format!("{FAULT}, {yaml}"));
    let reports = reports(&received).into_iter().map(|report| report.replace(r#"typed_per_filter_config["f"]."#, ""));
    match overrides(&received).of("f") {
        Some(FilterOverride::Config(HttpFilterConfig::Fault(fault))) => (HttpFault::clone(fault), reports.collect()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fault_is_a_delay_an_abort_and_for_whom() {
    let (found, reports) = fault(
        "delay: {fixed_delay: 1.5s, percentage: {numerator: 5, denominator: TEN_THOUSAND}},
         abort: {grpc_status: 7, percentage: {numerator: 500}, response_body: no},
         max_active_faults: 0, upstream_cluster: c, downstream_nodes: [n], headers: [{name: K, exact_match: v}]",
    );
    let (fixed, grpc) = (DelaySource::Fixed(Duration::from_millis(1500)), AbortSource::Grpc(7));
    let (some, all) =
        (FaultPercentage { numerator: 5, denominator: 10_000 }, FaultPercentage { numerator: 500, denominator: 100 });
    assert_eq!(found.delay, Some(FaultDelay { source: fixed, percentage: some }));
    assert_eq!(found.abort, Some(FaultAbort { source: grpc, percentage: all, text: Some("no".to_owned()) }));
    assert_eq!((found.max_active_faults, found.upstream_cluster), (Some(0), Some("c".into())));
    assert_eq!((found.downstream_nodes, found.headers.len()), (vec!["n".to_owned()], 1));
    assert_eq!(reports, [""; 0]);
}

#[test]
fn faults_that_requests_ask_for() {
    let (found, reports) = fault(
        "delay: {header_delay: {}, percentage: {numerator: 1}}, abort: {header_abort: {}, percentage: {numerator: 1}}",
    );
    assert_eq!(found.delay.map(|delay| delay.source), Some(DelaySource::Header));
    assert_eq!(found.abort.map(|abort| abort.source), Some(AbortSource::Header));
    assert_eq!(reports, [""; 0]);
}

#[test]
fn faults_that_can_not_be_are_reported_and_never_refused() {
    for (yaml, expected) in [
        (
            "abort: {http_status: 199, percentage: {numerator: 1}}",
            "abort.http_status: outside 200 to 599: has no effect",
        ),
        ("abort: {http_status: 70000, percentage: {}}", "abort.http_status: outside 200 to 599: has no effect"),
        ("abort: {percentage: {}}", "abort: neither http_status, grpc_status nor header_abort: has no effect"),
        ("delay: {percentage: {}}", "delay: neither fixed_delay nor header_delay: has no effect"),
        ("response_rate_limit: {fixed_limit: {limit_kbps: 1}}", "response_rate_limit: not supported: has no effect"),
        ("abort_percent_runtime: k", "abort_percent_runtime: not supported: has no effect"),
    ] {
        assert_eq!(fault(yaml), (HttpFault::default(), vec![expected.to_owned()]), "{yaml}");
    }
    // "missing percentage = 0 %"
    let (found, reports) = fault("abort: {grpc_status: 99}");
    let abort = found.abort.expect("one that never comes");
    assert_eq!((abort.source, abort.percentage), (AbortSource::Grpc(2), FaultPercentage::NONE));
    assert_eq!(reports, ["abort.percentage: not set, which is 0 %: has no effect"]);
}

#[test]
fn an_override_switches_off_or_on_or_brings_a_configuration() {
    let buffer = r#""@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute"#;
    let config = FilterOverride::Config(HttpFilterConfig::Fault(Arc::new(HttpFault::default())));
    for (yaml, expected) in [
        (FAULT.to_owned(), Some(config.clone())),
        (format!("{WRAPPER}, config: {{{FAULT}}}"), Some(config)),
        // The configuration does not count, so nobody looks at it.
        (format!("{WRAPPER}, disabled: true, config: {{{buffer}}}"), Some(FilterOverride::Disabled)),
        (format!("{WRAPPER}, is_optional: true"), Some(FilterOverride::Enabled)),
        (format!("{WRAPPER}, is_optional: true, config: {{{buffer}}}"), Some(FilterOverride::Enabled)),
        (r#""@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"#.to_owned(), None),
    ] {
        let received = route_config(&yaml);
        assert_eq!(overrides(&received).of("f"), expected.as_ref(), "{yaml}");
    }
}

#[test]
fn an_empty_configuration_in_the_wrapper_switches_on() {
    let wrapper = FilterConfig { config: Some(Any::default()), ..FilterConfig::default() };
    let routes = custom_routes(pack(wrapper), Registry::default()).expect("valid");
    assert_eq!(routes.overrides.of("f"), Some(&FilterOverride::Enabled));
}

#[test]
fn each_part_of_the_routes_has_its_own() {
    let off = format!("typed_per_filter_config: {{f: {{{WRAPPER}, disabled: true}}}}");
    let split = format!("weighted_clusters: {{clusters: [{{name: c, weight: 1, {off}}}, {{name: d, weight: 1}}]}}");
    let route = format!("match: {{prefix: ''}}, route: {{{split}}}, {off}");
    let received = received(
        Kind::RouteConfig,
        &format!("virtual_hosts: [{{name: v, domains: [a], {off}, routes: [{{{route}}}]}}]"),
    );
    let Ok(Resource::RouteConfig(routes)) = received.value else { panic!("{:?}", received.value) };
    let host = &routes.virtual_hosts[0];
    let RouteAction::Forward(forward) = &host.routes[0].action else { panic!("{host:?}") };
    let ClusterSpecifier::Weighted(split) = &forward.cluster else { panic!("{forward:?}") };
    let places =
        [&routes.overrides, &host.overrides, &host.routes[0].overrides, &split[0].overrides, &split[1].overrides];
    let off = Some(&FilterOverride::Disabled);
    assert_eq!(places.map(|place| place.of("f")), [None, off, off, off, None]);
}

// === Types of the program's own ===

/// A number, and a name in JSON.
#[derive(Debug, PartialEq)]
struct Quota(String);

impl Config for Quota {
    const TYPE_URL: &'static str = "type.googleapis.com/test.Quota";

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text != "bad" => Ok(Self(text.to_owned())),
            _ => Err(Invalid::new("not a number").within("limit")),
        }
    }

    fn decode_json(json: &str) -> Result<Self, Invalid> {
        if json == "{}" { Err(Invalid::new("must not be empty")) } else { Ok(Self(json.to_owned())) }
    }
}

/// A route configuration with this override of `f`, for a program with these extensions.
fn custom_routes(any: Any, extensions: Registry) -> Result<RouteConfig, Invalid> {
    let host = VirtualHost { domains: vec!["a".to_owned()], ..VirtualHost::default() };
    let config = RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host],
        typed_per_filter_config: HashMap::from([("f".to_owned(), any)]),
        ..RouteConfiguration::default()
    };
    let context = DecodeContext { extensions, ..DecodeContext::default() };
    let bytes = config.encode_to_vec().into();
    match decode(Kind::RouteConfig, Kind::RouteConfig.type_url(), &bytes, &context).value? {
        Resource::RouteConfig(routes) => Ok(RouteConfig::clone(&routes)),
        other => panic!("{other:?}"),
    }
}

fn quota(any: Any) -> Result<String, Invalid> {
    let routes = custom_routes(any, Registry::default().with_filter::<Quota>())?;
    match routes.overrides.of("f") {
        Some(FilterOverride::Config(HttpFilterConfig::Custom(custom))) => {
            Ok(custom.config::<Quota>().expect("a quota").0.clone())
        }
        other => panic!("{other:?}"),
    }
}

fn any(type_url: &str, value: impl Into<Vec<u8>>) -> Any {
    Any { type_url: type_url.to_owned(), value: value.into() }
}

#[test]
fn a_registered_type_is_decoded_and_refused_at_its_field() {
    assert_eq!(quota(any("example.com/test.Quota", "7")), Ok("7".to_owned()));
    let refused = quota(any(Quota::TYPE_URL, "bad")).unwrap_err();
    assert_eq!(refused.to_string(), r#"typed_per_filter_config["f"].limit: not a number"#);
    let unknown = custom_routes(any(Quota::TYPE_URL, "7"), Registry::default()).unwrap_err();
    assert_eq!(unknown.path, r#"typed_per_filter_config["f"]"#);
}

#[test]
fn a_registered_type_may_come_as_a_struct() {
    /// Both spellings are the same on the wire.
    #[derive(Clone, PartialEq, Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(message, optional, tag = "2")]
        value: Option<Struct>,
    }
    let typed = |fields: &[(&str, value::Kind)]| {
        let field = |(name, kind): &(&str, value::Kind)| ((*name).to_owned(), Value { kind: Some(kind.clone()) });
        let value = Some(Struct { fields: fields.iter().map(field).collect() });
        TypedStruct { type_url: Quota::TYPE_URL.to_owned(), value }.encode_to_vec()
    };
    let list = ListValue { values: vec![Value { kind: Some(value::Kind::BoolValue(true)) }, Value::default()] };
    let value = [
        ("limit", value::Kind::NumberValue(7.5)),
        ("a", value::Kind::StringValue("b".to_owned())),
        ("list", value::Kind::ListValue(list)),
    ];
    for envelope in ["type.googleapis.com/xds.type.v3.TypedStruct", "type.googleapis.com/udpa.type.v1.TypedStruct"] {
        assert_eq!(quota(any(envelope, typed(&value))), Ok(r#"{"a":"b","limit":7.5,"list":[true,null]}"#.to_owned()));
        let refused = quota(any(envelope, typed(&[]))).unwrap_err();
        assert_eq!(refused.to_string(), r#"typed_per_filter_config["f"].value: must not be empty"#);
    }
}

#[test]
fn a_known_type_stays_the_known_one() {
    let received = custom_routes(pack(HttpFaultPb::default()), Registry::default()).expect("valid");
    let fault = FilterOverride::Config(HttpFilterConfig::Fault(Arc::default()));
    assert_eq!(received.overrides.of("f"), Some(&fault));
}
