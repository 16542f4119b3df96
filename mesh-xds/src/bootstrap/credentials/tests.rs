//! Each rule of A27, A65 and A97 for credentials, and each mistake with its place.

use super::*;
use crate::{Bootstrap, BootstrapError};
use serde_json::json;

/// The bootstrap of one server with these credentials.
fn parsed(uri: &str, channel_creds: Value, call_creds: Value) -> Result<Bootstrap, BootstrapError> {
    let server = json!({"server_uri": uri, "channel_creds": channel_creds, "call_creds": call_creds});
    Bootstrap::parse(&json!({"xds_servers": [server]}).to_string())
}

fn channel(creds: Value) -> ChannelCredentials {
    channel_creds(Some(&creds)).expect("valid")
}

#[test]
fn the_first_supported_type_wins_and_what_follows_is_not_looked_at() {
    let made_up = json!({"type": "made_up", "config": 7});
    let google = json!({"type": "google_default"});
    let broken = json!({"type": "tls", "config": 7});
    assert_eq!(channel(json!([made_up, {"type": "insecure"}, broken])), ChannelCredentials::Insecure);
    let tls = json!([google, {"type": "tls"}, {"type": "insecure"}]);
    assert_eq!(channel(tls), ChannelCredentials::Tls(TlsConfig::new()));
}

#[test]
fn tls_is_read_with_all_its_fields() {
    let config = json!({
        "ca_certificate_file": "/ca", "certificate_file": "/cert", "private_key_file": "/key",
        "refresh_interval": "0.5s", "unknown": {}, "spiffe_trust_bundle_map_file": "/td.json",
    });
    let expected = TlsConfig::new()
        .ca_certificate_file("/ca")
        .identity_files("/cert", "/key")
        .refresh_interval(Duration::from_millis(500));
    assert_eq!(channel(json!([{"type": "tls", "config": config}])), ChannelCredentials::Tls(expected));
    for nothing in [json!({}), json!(null), json!({"ca_certificate_file": ""})] {
        let entry = json!([{"type": "tls", "config": nothing}]);
        assert_eq!(channel(entry), ChannelCredentials::Tls(TlsConfig::new()));
    }
}

#[test]
fn every_supported_call_credential_counts_and_unknown_ones_are_skipped() {
    let token = |path: &str| json!({"type": "jwt_token_file", "config": {"jwt_token_file": path}});
    let read = |creds: Value| call_creds(Some(&creds)).expect("valid");
    let of = |path: &str| CallCredentials::JwtTokenFile(path.into());
    assert_eq!(read(json!([token("/a"), {"type": "made_up", "config": 7}, token("/b")])), [of("/a"), of("/b")]);
    assert_eq!(read(json!([])), []);
    assert_eq!(call_creds(None), Ok(Vec::new()));
}

#[test]
fn a_url_with_a_scheme_is_not_contradicted() {
    let (tls, insecure) = (json!([{"type": "tls"}]), json!([{"type": "insecure"}]));
    for uri in ["https://cp", "https://cp:443/", "dns:///cp", "cp:443"] {
        let bootstrap = parsed(uri, tls.clone(), json!(null)).expect("valid");
        assert_eq!(bootstrap.servers().next().expect("one").1.to_string(), "cp:443", "{uri}");
    }
    assert!(parsed("http://cp:80", insecure.clone(), json!(null)).is_ok());
    for (uri, creds) in [("http://cp:80", &tls), ("https://cp:443", &insecure), ("https://", &tls)] {
        let error = parsed(uri, creds.clone(), json!(null)).expect_err(uri).to_string();
        assert!(error.starts_with("xDS bootstrap: xds_servers[0].server_uri: "), "{error}");
    }
}

#[test]
fn mistakes_are_named_with_their_place() {
    let insecure = json!([{"type": "insecure"}]);
    let tls = |config: Value| json!([{"type": "made_up"}, {"type": "tls", "config": config}]);
    let token = |config: Value| json!([{"type": "jwt_token_file", "config": config}]);
    for (channel_creds, call_creds, expected) in [
        (json!(null), json!(null), "channel_creds: must be a list"),
        (json!({}), json!(null), "channel_creds: must be a list"),
        (json!([]), json!(null), "channel_creds: no supported type among []; supported: insecure, tls"),
        (json!([{"type": "google_default"}]), json!(null), "channel_creds: no supported type among [google_default]"),
        (json!([7]), json!(null), "channel_creds[0]: must be an object"),
        (json!([{"type": 7}]), json!(null), "channel_creds[0].type: must be a string"),
        (tls(json!("x")), json!(null), "channel_creds[1].config: must be an object"),
        (
            tls(json!({"ca_certificate_file": 7})),
            json!(null),
            "channel_creds[1].config.ca_certificate_file: must be a string",
        ),
        (tls(json!({"certificate_file": "/c"})), json!(null), "channel_creds[1].config.private_key_file: is needed"),
        (tls(json!({"private_key_file": "/k"})), json!(null), "channel_creds[1].config.certificate_file: is needed"),
        (
            tls(json!({"refresh_interval": 600})),
            json!(null),
            "channel_creds[1].config.refresh_interval: must be a duration",
        ),
        (
            tls(json!({"refresh_interval": "10m"})),
            json!(null),
            "channel_creds[1].config.refresh_interval: must be a duration",
        ),
        (
            tls(json!({"refresh_interval": "0s"})),
            json!(null),
            "channel_creds[1].config.refresh_interval: must be a duration",
        ),
        (
            tls(json!({"refresh_interval": "-1s"})),
            json!(null),
            "channel_creds[1].config.refresh_interval: must be a duration",
        ),
        (insecure.clone(), json!({}), "call_creds: must be a list"),
        (insecure.clone(), json!([7]), "call_creds[0]: must be an object"),
        (insecure.clone(), json!([{"type": []}]), "call_creds[0].type: must be a string"),
        (insecure.clone(), token(json!(null)), "call_creds[0].config.jwt_token_file: must not be empty"),
        (insecure.clone(), token(json!("")), "call_creds[0].config: must be an object"),
        (
            insecure.clone(),
            token(json!({"jwt_token_file": ""})),
            "call_creds[0].config.jwt_token_file: must not be empty",
        ),
        (insecure, token(json!({"jwt_token_file": 7})), "call_creds[0].config.jwt_token_file: must be a string"),
    ] {
        let error = parsed("cp:443", channel_creds, call_creds).expect_err(expected).to_string();
        assert!(error.starts_with(&format!("xDS bootstrap: xds_servers[0].{expected}")), "{error}");
    }
}

#[test]
fn a_duration_is_read_as_protobuf_json_has_it() {
    for (text, expected) in [
        ("600s", Some(Duration::from_secs(600))),
        ("0.5s", Some(Duration::from_millis(500))),
        ("1.000000001s", Some(Duration::new(1, 1))),
        ("315576000000s", Some(Duration::from_secs(315_576_000_000))),
        ("315576000001s", None),
        ("1.0000000001s", None),
        ("-1s", None),
        ("+1s", None),
        ("1.s", None),
        (".5s", None),
        ("1e3s", None),
        ("600", None),
        ("s", None),
        ("10m", None),
    ] {
        assert_eq!(duration(text), expected, "{text}");
    }
}

#[cfg(feature = "tls-ring")]
#[test]
fn a_crypto_provider_for_all_servers_leaves_the_choice_of_one_alone() {
    use crate::{ServerAddress, XdsServer};
    use std::sync::Arc;
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let (all, one) = (provider(), provider());
    let server = |port, tls| XdsServer::new(ServerAddress::parse(&format!("cp:{port}")).expect("a name")).tls(tls);
    let bootstrap = Bootstrap::builder()
        .server(server(1, TlsConfig::new()))
        .server(server(2, TlsConfig::new().with_provider(Arc::clone(&one))))
        .build()
        .expect("servers")
        .with_crypto_provider(Arc::clone(&all));
    let expected = [all, one].map(|provider| ChannelCredentials::Tls(TlsConfig::new().with_provider(provider)));
    assert!(bootstrap.servers().map(|(_, server)| &server.credentials).eq(&expected));
}
