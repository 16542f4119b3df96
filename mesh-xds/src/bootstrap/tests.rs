//! What real control planes write parses; what is wrong is named with its place.

use super::*;
use std::path::PathBuf;

const ISTIO: &str = r#"{
 "xds_servers":[{"server_uri":"unix:///etc/istio/proxy/XDS","channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],
 "node":{"id":"sidecar~10.0.0.7~pod.ns~ns.svc.cluster.local","localisty":{},"locality":{},
   "metadata":{"GENERATOR":"grpc","INSTANCE_IPS":"10.0.0.7","PROXY_CONFIG":{"concurrency":2},"LABELS":{"a":null}},"UserAgentVersionType":null},
 "certificate_providers":{"default":{"plugin_name":"file_watcher","config":{
   "certificate_file":"/var/lib/istio/data/cert-chain.pem","private_key_file":"/var/lib/istio/data/key.pem",
   "ca_certificate_file":"/var/lib/istio/data/root-cert.pem","refresh_interval":"900s"}}},
 "server_listener_resource_name_template":"xds.istio.io/grpc/lds/inbound/%s" }"#;

fn with_server(server: &str) -> Result<Bootstrap, BootstrapError> {
    Bootstrap::parse(&format!(r#"{{"xds_servers":[{server}]}}"#))
}

fn first(bootstrap: &Bootstrap) -> &XdsServer {
    bootstrap.servers().next().expect("every bootstrap has a server").1
}

fn mistake(json: &str) -> String {
    match Bootstrap::parse(json) {
        Err(BootstrapError::Invalid(invalid)) => invalid.to_string(),
        other => panic!("{json} gave {other:?}"),
    }
}

#[test]
fn istio_agents_bootstrap_parses_with_its_metadata_verbatim() {
    let bootstrap = Bootstrap::parse(ISTIO).unwrap();
    assert_eq!(bootstrap.node_id(), "sidecar~10.0.0.7~pod.ns~ns.svc.cluster.local");
    assert_eq!(first(&bootstrap).address, ServerAddress::Unix(PathBuf::from("/etc/istio/proxy/XDS")));
    assert_eq!(bootstrap.node.metadata["PROXY_CONFIG"]["concurrency"], 2);
    assert!(bootstrap.node.metadata["LABELS"]["a"].is_null());
    assert_eq!(bootstrap.listener_name("a:80"), "a:80");
}

#[test]
fn every_spelling_of_a_server_uri_is_read() {
    let name = |host: &str, port| Ok(ServerAddress::Name { host: host.to_owned(), port });
    let socket = |text: &str| Ok(ServerAddress::Sockets(vec![text.parse().unwrap()]));
    for (uri, expected) in [
        ("istiod.istio-system.svc:15010", name("istiod.istio-system.svc", 15010)),
        ("dns:///istiod.ns.svc:15010", name("istiod.ns.svc", 15010)),
        ("dns:istiod:1", name("istiod", 1)),
        ("dns:///istiod", name("istiod", 443)),
        // As A47's examples have it.
        ("xds-server.authority.com", name("xds-server.authority.com", 443)),
        ("127.0.0.1", socket("127.0.0.1:443")),
        ("ipv6:[::1]", socket("[::1]:443")),
        ("http://cp:8080/", name("cp", 8080)),
        ("http://cp", name("cp", 80)),
        ("127.0.0.1:18000", socket("127.0.0.1:18000")),
        ("[::1]:18000", socket("[::1]:18000")),
        ("ipv4:127.0.0.1:1", socket("127.0.0.1:1")),
        ("ipv6:[::1]:1", socket("[::1]:1")),
        ("unix:relative/x", Ok(ServerAddress::Unix("relative/x".into()))),
        ("unix:///abs/x", Ok(ServerAddress::Unix("/abs/x".into()))),
    ] {
        assert_eq!(ServerAddress::parse(uri), expected, "{uri}");
    }
    for wrong in ["https://cp:1", "host:", ":1", "host:99999", "dns://8.8.8.8/cp:1", "unix:", "ipv4:x", "a b:1"] {
        assert!(ServerAddress::parse(wrong).unwrap_err().reason.contains(wrong), "{wrong}");
    }
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (json, expected) in [
        ("", "not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "xds_servers: must be a list"),
        (r#"{"xds_servers":[]}"#, "xds_servers: must be a list"),
        (r#"{"xds_servers":[{}]}"#, "xds_servers[0].server_uri: must not be empty"),
        (r#"{"xds_servers":[{"server_uri":7}]}"#, "xds_servers[0].server_uri"),
        (r#"{"xds_servers":[{"server_uri":"a:1"}]}"#, "xds_servers[0].channel_creds: must be a list"),
        (
            r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"made_up"},{"type":"google_default"}]}]}"#,
            "xds_servers[0].channel_creds: no supported type among [made_up, google_default]",
        ),
        (
            r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}],"node":{"locality":{"zone":1}}}"#,
            "node.locality.zone: must be a string",
        ),
        (
            r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}],"authorities":[]}"#,
            "authorities: must be an object",
        ),
        (
            r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}],
                "authorities":{"a":{"client_listener_resource_name_template":"xdstp://b/%s"}}}"#,
            r#"authorities["a"].client_listener_resource_name_template: must start with "xdstp://a/""#,
        ),
        (
            r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}],
                "authorities":{"a":{"xds_servers":[{"server_uri":""}]}}}"#,
            r#"authorities["a"].xds_servers[0].server_uri: must not be empty"#,
        ),
    ] {
        let text = mistake(json);
        assert!(text.starts_with(expected), "{json}: {text}");
    }
}

#[test]
fn certificate_providers_of_files_are_judged_and_others_skipped() {
    let with = |provider: &str| {
        let server = r#"{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}"#;
        format!(r#"{{"xds_servers":[{server}],"certificate_providers":{{"p":{provider}}}}}"#)
    };
    let files = |config: &str| with(&format!(r#"{{"plugin_name":"file_watcher","config":{{{config}}}}}"#));
    for (config, expected) in [
        ("", ": needs certificate_file and private_key_file, or ca_certificate_file"),
        (r#""refresh_interval":"900s""#, ": needs certificate_file and private_key_file, or ca_certificate_file"),
        (r#""certificate_file":"c""#, ".private_key_file: is needed, too"),
        (r#""private_key_file":"k","ca_certificate_file":"ca""#, ".certificate_file: is needed, too"),
        (r#""ca_certificate_file":7"#, ".ca_certificate_file: must be a string"),
        (r#""ca_certificate_file":"ca","refresh_interval":600"#, ".refresh_interval: must be a duration"),
        (r#""ca_certificate_file":"ca","refresh_interval":"10m""#, ".refresh_interval: must be a duration"),
    ] {
        let text = mistake(&files(config));
        assert!(text.starts_with(&format!(r#"certificate_providers["p"].config{expected}"#)), "{config}: {text}");
    }
    assert!(mistake(&with("7")).starts_with(r#"certificate_providers["p"]: must be an object"#));
    let known = |json: &str| Bootstrap::parse(json).unwrap().certificate_providers.contains("p");
    for config in [
        r#""certificate_file":"c","private_key_file":"k""#,
        r#""ca_certificate_file":"ca","refresh_interval":"0.5s""#,
        r#""spiffe_trust_bundle_map_file":"bundles""#,
    ] {
        assert!(known(&files(config)), "{config}");
    }
    // A resource that refers to it is NACKed.
    assert!(!known(&with(r#"{"plugin_name":"made_up","config":{"certificate_file":7}}"#)));
}

#[test]
fn server_features_of_unknown_types_are_skipped() {
    let json = r#"{"server_uri":"a:1","channel_creds":[{"type":"insecure"}],
        "server_features":["xds_v3",{"x":1},7,"unknown","fail_on_data_errors"]}"#;
    assert_eq!(first(&with_server(json).unwrap()).features, [Feature::FailOnDataErrors]);
}

#[test]
fn authorities_have_servers_and_a_template_of_their_own_or_the_usual_ones() {
    let server = |port| format!(r#"{{"server_uri":"cp:{port}","channel_creds":[{{"type":"insecure"}}]}}"#);
    let json = format!(
        r#"{{"xds_servers":[{}], "authorities": {{
            "usual": {{}},
            "": {{"xds_servers": [{}]}},
            "own": {{"xds_servers": [{}, {}], "client_listener_resource_name_template": "xdstp://own/t/%s"}}
        }}}}"#,
        server(1),
        server(2),
        server(2),
        server(1)
    );
    let bootstrap = Bootstrap::parse(&json).unwrap();
    // Each server has one number, whoever lists it.
    assert_eq!(bootstrap.servers().count(), 2);
    let usual = "xdstp://usual/envoy.config.listener.v3.Listener/a%20b";
    assert_eq!(bootstrap.listener_name_at("usual", "a b").as_deref(), Some(usual));
    assert_eq!(bootstrap.listener_name_at("own", "a b").as_deref(), Some("xdstp://own/t/a%20b"));
    assert_eq!(bootstrap.listener_name_at("nobody", "a b"), None);
    let authorities = &bootstrap.authorities;
    let asked = |name: &str| authorities.of(name).and_then(|authority| authorities.choice(authority, 0));
    assert_eq!(asked("plain"), asked("xdstp://usual/t/x"));
    assert_ne!(asked("plain"), asked("xdstp://own/t/x"));
    assert_eq!(asked("xdstp://nobody/t/x"), None);
    // An authority may be the empty one: of new names that have none.
    assert_eq!(asked("xdstp:///t/x"), asked("xdstp://own/t/x"));
}

#[test]
fn of_very_many_servers_each_is_itself() {
    let server = |number: u32| format!(r#"{{"server_uri":"h{number}:1","channel_creds":[{{"type":"insecure"}}]}}"#);
    let count = 70_000;
    let list: Vec<_> = (0..count).chain([0, 65_535, 65_536]).map(server).collect();
    let last = format!(r#""authorities":{{"a":{{"xds_servers":[{}]}}}}"#, server(count - 1));
    let bootstrap = Bootstrap::parse(&format!(r#"{{"xds_servers":[{}],{last}}}"#, list.join(","))).unwrap();
    assert_eq!(bootstrap.servers().count(), count as usize, "one that is listed again is the same");
    for (number, (id, server)) in bootstrap.servers().enumerate() {
        assert_eq!((id.index(), server.to_string()), (number, format!("h{number}:1")));
    }
    let authority = bootstrap.authorities.of("xdstp://a/t/x").expect("it is there");
    let id = bootstrap.authorities.choice(authority, 0).expect("it has a server");
    assert_eq!(bootstrap.server_name(id), "h69999:1");
}

#[test]
fn the_listener_template_is_percent_encoded_only_for_xdstp() {
    let named = |template: &str, target: &str| {
        let address = ServerAddress::parse("a:1").unwrap();
        Bootstrap::builder().server(address).listener_template(template).build().unwrap().listener_name(target)
    };
    assert_eq!(named("optional/%s", "h:80/z w"), "optional/h:80/z w");
    assert_eq!(
        named("xdstp://a/envoy.config.listener.v3.Listener/x/%s?p=1", "h:80/z w"),
        "xdstp://a/envoy.config.listener.v3.Listener/x/h:80/z%20w?p=1"
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_that_appears_late_is_waited_for_and_a_malformed_one_is_not() {
    let dir = std::env::temp_dir().join(format!("mesh-xds-bootstrap-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("late.json");
    let wait = Duration::from_secs(5);

    let missing = Bootstrap::from_file(&path, wait).await;
    assert_eq!(missing, Err(BootstrapError::Missing { path: path.clone(), waited: wait }));

    let reading = tokio::spawn(Bootstrap::from_file(path.clone(), wait));
    tokio::time::advance(Duration::from_secs(1)).await;
    let json = r#"{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"insecure"}]}]}"#;
    std::fs::write(&path, json).unwrap();
    assert!(reading.await.unwrap().is_ok());

    std::fs::write(&path, "{").unwrap();
    let before = tokio::time::Instant::now();
    assert!(matches!(Bootstrap::from_file(&path, wait).await, Err(BootstrapError::Invalid(_))));
    assert!(matches!(Bootstrap::from_file(&path, Duration::MAX).await, Err(BootstrapError::Invalid(_))));
    assert_eq!(before.elapsed(), Duration::ZERO);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_server_speaks_sotw_unless_it_is_said_to_speak_delta() {
    let creds = r#""channel_creds":[{"type":"insecure"}]"#;
    for (features, transport) in [(r#"["xds_v3"]"#, Transport::Sotw), (r#"["xds_v3","delta_ads"]"#, Transport::Delta)] {
        let server = format!(r#"{{"server_uri":"a:1",{creds},"server_features":{features}}}"#);
        assert_eq!(first(&with_server(&server).unwrap()).transport(), transport, "{features}");
    }
}
