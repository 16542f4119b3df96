//! HTTP filters over the wire: which of them a call passes, and with which configuration (A39).
//!
//! The filters are fault filters, since what they do is seen at once. Filters of a user's own have a module of their own, and
//! what is refused is in the NACK table.

use crate::{
    faults::{FAULTS, fault},
    features::{World, check, fails, features, from, get, grpc, share},
};

/// Five sigma are 0.05 for three quarters, and more than enough calls for a half.
const CALLS: usize = 2_500;

/// A `typed_per_filter_config` of `f`.
macro_rules! says {
    ($fault:literal) => {
        concat!(
            "typed_per_filter_config: {f: {
                '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, ",
            $fault,
            "}}"
        )
    };
    (wrapped $wrapper:literal) => {
        concat!(
            "typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, ",
            $wrapper,
            "}}"
        )
    };
}

/// As a filter is listed.
macro_rules! with {
    ($name:literal, $fault:literal, $rest:literal) => {
        concat!(
            "{name: ",
            $name,
            ", typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, ",
            $fault,
            "}",
            $rest,
            "}, "
        )
    };
}

macro_rules! router {
    () => {
        "{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    };
}

features! {
    overrides {
        row: "HTTP filters: of the overrides for virtual host, route and weighted cluster the most specific one replaces",
        source: "A39, `typed_per_filter_config`",
        config: concat!("{http: {", fault!(""), "}, virtual_hosts: [{name: all, domains: ['*'], ",
            says!("abort: {http_status: 401, percentage: {numerator: 100}}"),
            ", routes: [{match: {path: /host}, route: {cluster: a}},
                        {match: {path: /route}, route: {cluster: a}, ", says!("abort: {http_status: 403, percentage: {}}"), "},
                        {match: {path: /split}, ", says!("abort: {http_status: 403, percentage: {}}"), ",
                         route: {weighted_clusters: {clusters: [{name: a, weight: 1},
                            {name: b, weight: 1, ", says!("abort: {http_status: 404, percentage: {numerator: 100}}"), "}]}}}]}]}"),
        strip: [("/virtual_hosts/0/routes/2/route/weighted_clusters/clusters/1/typed_per_filter_config", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("401", &[], world.call(get("/host")).await)?;
            from("a", world.call(get("/route")).await)?;
            let counts = world.calls(CALLS, get("/split")).await;
            share("404", 0.5, &counts)?;
            check(!counts.contains_key("b"), "no call of backend b")
        }
    }

    override_of_the_virtual_host {
        row: "HTTP filters: the virtual host's override", source: "A39, `VirtualHost.typed_per_filter_config`",
        config: concat!("{http: {", fault!(""), "}, virtual_hosts: [{name: all, domains: ['*'],
            routes: [{match: {prefix: ''}, route: {cluster: a}}], ",
            says!("abort: {http_status: 401, percentage: {numerator: 100}}"), "}]}"),
        strip: [("/virtual_hosts/0/typed_per_filter_config", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("Unauthenticated", &[], world.call(grpc()).await)
        }
    }

    override_of_the_route {
        row: "HTTP filters: the route's override, and its update", source: "A39, `Route.typed_per_filter_config`",
        config: concat!("{http: {", fault!("abort: {http_status: 401, percentage: {numerator: 100}}"),
            "}, routes: [{match: {prefix: ''}, route: {cluster: a}, ",
            says!("abort: {http_status: 403, percentage: {numerator: 100}}"), "}]}"),
        strip: [("/routes/0/typed_per_filter_config", "{}")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("403", &[], world.call(get("/")).await)?;
            world.update("/routes/0/typed_per_filter_config/f/abort/http_status", "404").await?;
            fails("404", &[], world.call(get("/")).await)?;
            world.update("/routes/0/typed_per_filter_config/f/abort", "").await?;
            from("a", world.call(get("/")).await)
        }
    }

    override_of_the_route_configuration {
        row: "HTTP filters: an override for all virtual hosts", source: "Envoy, `RouteConfiguration.typed_per_filter_config`",
        config: concat!("http: {rds: null, route_config: {name: inline, virtual_hosts: [{name: v, domains: ['*'],
            routes: [{match: {prefix: ''}, route: {cluster: a}}]}], ",
            says!("abort: {http_status: 401, percentage: {numerator: 100}}"), "}, ", fault!(""), "}"),
        strip: [("/http/route_config/typed_per_filter_config", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("401", &[], world.call(get("/")).await)
        }
    }

    filters_in_order {
        row: "HTTP filters: the same type twice, by name, each with draws of its own", source: "A39, `HttpFilter.name`",
        config: concat!("http: {http_filters: [",
            with!("f1", "abort: {http_status: 401, percentage: {numerator: 50}}", ""),
            with!("f2", "abort: {http_status: 403, percentage: {numerator: 50}}", ""), router!(), "]}"),
        strip: [("/http/http_filters/1", "")],
        |world| {
            let _turn = FAULTS.read().await;
            let counts = world.calls(CALLS, get("/")).await;
            share("a", 0.25, &counts)?;
            share("401", 0.5, &counts)?;
            share("403", 0.25, &counts)
        }
    }

    filter_that_is_disabled {
        row: "HTTP filters: one that is disabled is on where an override says so", source: "Envoy, `HttpFilter.disabled`",
        config: concat!("{http: {http_filters: [",
            with!("f", "abort: {http_status: 401, percentage: {numerator: 100}}", ", disabled: true"), router!(), "]},
            routes: [{match: {path: /on}, route: {cluster: a}, ", says!(wrapped "is_optional: true, config: {
                        '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}"), "},
                     {match: {path: /other}, route: {cluster: a},
                      ", says!("abort: {http_status: 403, percentage: {numerator: 100}}"), "},
                     {match: {prefix: ''}, route: {cluster: a}}]}"),
        strip: [("/http/http_filters/0/disabled", "")],
        |world| {
            let _turn = FAULTS.read().await;
            from("a", world.call(get("/")).await)?;
            fails("401", &[], world.call(get("/on")).await)?;
            fails("403", &[], world.call(get("/other")).await)
        }
    }

    override_that_disables {
        row: "HTTP filters: switched off for a route", source: "Envoy, `FilterConfig.disabled`",
        config: concat!("{http: {", fault!("abort: {http_status: 401, percentage: {numerator: 100}}"),
            "}, routes: [{match: {path: /off}, route: {cluster: a}, ", says!(wrapped "disabled: true"), "},
                         {match: {prefix: ''}, route: {cluster: a}}]}"),
        strip: [("/routes/0/typed_per_filter_config/f/disabled", "false"),
                ("/routes/0/typed_per_filter_config/f/is_optional", "true")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("401", &[], world.call(get("/on")).await)?;
            from("a", world.call(get("/off")).await)
        }
    }
}

/// "Not NACK: key names an instance that does not exist, or a filter for the other side" (A39).
#[tokio::test]
async fn an_override_of_nobody_has_no_effect() {
    let world = World::start(
        concat!(
            "{http: {",
            fault!(""),
            "}, routes: [{match: {prefix: ''}, route: {cluster: a}, typed_per_filter_config: {
                nope: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
                       abort: {http_status: 401, percentage: {numerator: 100}}},
                rbac: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute}}}]}"
        ),
        &[],
    )
    .await;
    from("a", world.call(grpc()).await).unwrap_or_else(|failure| panic!("expected {failure}"));
}
