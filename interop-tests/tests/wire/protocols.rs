//! Which HTTP version a call goes out with, and under which name (design: gRPC is always HTTP/2, other calls as the
//! cluster says).
//!
//! It does NOT test what the versions can do.

use crate::features::{Answer, Call, World, check, features, from, get, grpc};
use http::{Method, Version};
use mesh_client::{HttpVersion, outlier_detection::OutlierDetection};
use mesh_xds::resource::Kind;
use std::time::Duration;

/// Fails unless backend a gets the call in this version.
async fn arrives_as(version: Version, world: &World, call: Call) -> Result<(), String> {
    from("a", world.call(call).await)?;
    check_arrived(version, world)
}

fn check_arrived(version: Version, world: &World) -> Result<(), String> {
    let head = world.a.last_call().ok_or("a call")?;
    check(head.version == version, format!("{version:?}, and not {:?}", head.version))
}

/// The cluster with these `HttpProtocolOptions`.
macro_rules! options {
    ($options:literal) => {
        concat!(
            "clusters: {a: {typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {",
            "'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, ",
            $options,
            "}}}}"
        )
    };
}

features! {
    explicit_http2 {
        row: "HTTP/2 for all calls", source: "Envoy, `HttpProtocolOptions.explicit_http_config.http2_protocol_options`",
        config: options!("explicit_http_config: {http2_protocol_options: {}}"),
        strip: [("/clusters/a", "{}")],
        |world| {
            arrives_as(Version::HTTP_2, world, get("/")).await?;
            arrives_as(Version::HTTP_2, world, grpc()).await
        }
    }

    explicit_http1 {
        row: "HTTP/1.1 for plain HTTP; gRPC calls stay HTTP/2",
        source: "Envoy, `HttpProtocolOptions.explicit_http_config.http_protocol_options`",
        config: options!("explicit_http_config: {http_protocol_options: {}}"),
        strip: [("/clusters/a", "{}")],
        |world| {
            // Without the field, the channel's own choice would count.
            let builder = world.channel_builder().http_protocol(HttpVersion::Http2);
            let channel = builder.build().map_err(|error| error.to_string())?;
            from("a", get("/").on(&channel).await)?;
            check_arrived(Version::HTTP_11, world)?;
            arrives_as(Version::HTTP_2, world, grpc()).await
        }
    }

    downstream {
        row: "the version of the request", source: "Envoy, `HttpProtocolOptions.use_downstream_protocol_config`",
        config: options!("use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}"),
        strip: [("/clusters/a", "{}")],
        |world| {
            arrives_as(Version::HTTP_11, world, get("/")).await?;
            arrives_as(Version::HTTP_2, world, get("/").version(Version::HTTP_2)).await
        }
    }

    auto_config {
        row: "ALPN decides, and without TLS that is HTTP/1.1", source: "Envoy, `HttpProtocolOptions.auto_config`",
        config: options!("auto_config: {http_protocol_options: {}, http2_protocol_options: {}}"),
        strip: [("/clusters/a", "{}")],
        |world| {
            let builder = world.channel_builder().http_protocol(HttpVersion::Http2);
            let channel = builder.build().map_err(|error| error.to_string())?;
            from("a", get("/").on(&channel).await)?;
            check_arrived(Version::HTTP_11, world)
        }
    }

    old_http2_options {
        row: "HTTP/2 for all calls, in the old spelling", source: "Envoy, `Cluster.http2_protocol_options`",
        config: "clusters: {a: {http2_protocol_options: {}}}",
        strip: [("/clusters/a", "{}")],
        |world| {
            arrives_as(Version::HTTP_2, world, get("/")).await
        }
    }

    protocol_update {
        row: "a new HTTP version counts from the next call on", source: "Envoy, `HttpProtocolOptions`",
        config: "clusters: {a: {http2_protocol_options: {}}}",
        strip: [("/clusters/a", "{}")],
        |world| {
            arrives_as(Version::HTTP_2, world, get("/")).await?;
            world.update("/clusters/a", "{}").await?;
            arrives_as(Version::HTTP_11, world, get("/")).await
        }
    }
}

// === What the application says ===

/// The cluster says nothing here: Envoy's default is HTTP/1.1, and the builder may say otherwise.
#[tokio::test]
async fn the_channel_chooses_the_version_where_the_cluster_does_not() {
    let world = World::start("{}", &[]).await;
    arrives_as(Version::HTTP_11, &world, get("/")).await.expect("Envoy's default");
    let channel = world.channel_builder().http_protocol(HttpVersion::Http2).build().expect("a valid target");
    from("a", get("/").on(&channel).await).expect("an answer");
    check_arrived(Version::HTTP_2, &world).expect("as the builder says");
}

#[tokio::test]
async fn the_authority_is_the_service_or_what_the_builder_says() {
    let world = World::start("{}", &[]).await;
    let other = world.channel_builder().authority("other.example:8443").build().expect("a valid target");
    let authority = || world.a.last_call().and_then(|head| head.authority().map(str::to_owned));
    let calls: [fn() -> Call; 3] = [grpc, || get("/"), || get("http://elsewhere:1/").header("host", "elsewhere")];
    for call in calls {
        from("a", world.call(call()).await).expect("an answer");
        assert_eq!(authority().as_deref(), Some("svc:80"), "{:?}", call());
        // The virtual host is still chosen by the target.
        from("a", call().on(&other).await).expect("an answer");
        assert_eq!(authority().as_deref(), Some("other.example:8443"), "{:?}", call());
    }
}

#[tokio::test]
async fn settings_may_be_as_large_as_they_can() {
    let world = World::start("{}", &[]).await;
    let channel = world
        .channel_builder()
        .config_timeout(Duration::MAX)
        .connect_timeout(Duration::MAX)
        .http2_keep_alive_interval(Duration::MAX)
        .keep_alive_timeout(Duration::MAX)
        .keep_alive_while_idle(true)
        .max_pending_requests(u32::MAX)
        .initial_stream_window_size(u32::MAX)
        .initial_connection_window_size(u32::MAX)
        .http2_max_header_list_size(u32::MAX)
        .outlier_detection(OutlierDetection { interval: Duration::MAX, ..OutlierDetection::default() })
        .build()
        .expect("a valid target");
    for call in [grpc(), get("/")] {
        from("a", call.on(&channel).await).expect("an answer");
    }
}

#[tokio::test]
async fn the_rest_of_a_request_arrives_as_it_was() {
    let world = World::start("{}", &[]).await;
    let answer: Answer =
        world.call(get("/a%20b?c=d&e").header("x", "1").header("x", "2").header("connection", "close")).await;
    from("a", answer).expect("an answer");
    let head = world.a.last_call().expect("a call");
    assert_eq!((head.method, head.uri.to_string().as_str()), (Method::GET, "/a%20b?c=d&e"));
    assert!(head.headers.get_all("x").iter().eq(["1", "2"]), "{:?}", head.headers);
    assert!(!head.headers.contains_key("connection"), "a hop-by-hop header: {:?}", head.headers);
    assert!(world.ignored(Kind::Cluster, "a").is_empty(), "nothing was said that has no effect");
}
