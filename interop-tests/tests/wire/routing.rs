//! Which route takes a call, and which cluster (A28, A36, A63), over the wire.
//!
//! Most scenarios have one route with a condition to cluster `a`, and the rest to `b`. It does NOT test decoding.

use crate::features::{SERVICE, check, fails, features, from, get, grpc, only, share};
use mesh_xds::resource::Kind;

features! {
    // === Paths ===

    prefix {
        row: "route match: prefix", source: "A28, `RouteMatch.prefix`",
        config: "routes: [{match: {prefix: /S}, route: {cluster: a}}, {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/prefix", "''")],
        |world| {
            for path in ["/S", "/S/M", "/Sx?q=1"] {
                from("a", world.call(get(path)).await)?;
            }
            for path in ["/s", "/x/S", "/"] {
                from("b", world.call(get(path)).await)?;
            }
            Ok(())
        }
    }

    exact_path {
        row: "route match: exact path", source: "A28, `RouteMatch.path`",
        config: "routes: [{match: {path: /grpc.testing.TestService/UnaryCall}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match", "{prefix: ''}")],
        |world| {
            from("a", world.call(grpc()).await)?;
            from("a", world.call(get("/grpc.testing.TestService/UnaryCall?q=1")).await)?;
            from("b", world.call(get("/grpc.testing.TestService/UnaryCallX")).await)?;
            from("b", world.call(get("/grpc.testing.TestService/unarycall")).await)
        }
    }

    regex_path {
        row: "route match: regular expression, over the whole path", source: "A28, `RouteMatch.safe_regex`",
        config: "routes: [{match: {safe_regex: {regex: '/S/[MN]|/T'}}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match", "{prefix: ''}")],
        |world| {
            for path in ["/S/M", "/S/N", "/T"] {
                from("a", world.call(get(path)).await)?;
            }
            for path in ["/S/MX", "/x/S/M", "/T/", "/s/m"] {
                from("b", world.call(get(path)).await)?;
            }
            Ok(())
        }
    }

    path_in_any_case {
        row: "route match: paths and prefixes in any case", source: "A28, `RouteMatch.case_sensitive`",
        config: "routes: [{match: {path: /Exact, case_sensitive: false}, route: {cluster: a}},
                          {match: {prefix: /Pre, case_sensitive: false}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/case_sensitive", ""), ("/routes/1/match/case_sensitive", "")],
        |world| {
            for path in ["/exact", "/EXACT", "/pRefix"] {
                from("a", world.call(get(path)).await)?;
            }
            from("b", world.call(get("/exactly")).await)
        }
    }

    first_match_wins {
        row: "the first route that matches wins", source: "A28, `VirtualHost.routes`",
        config: "routes: [{match: {prefix: /S}, route: {cluster: a}}, {match: {path: /S/M}, route: {cluster: b}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0", "")],
        |world| {
            from("a", world.call(get("/S/M")).await)?;
            from("b", world.call(get("/T")).await)
        }
    }

    no_route {
        row: "no route for the call: UNAVAILABLE at once", source: "A28, `VirtualHost.routes`",
        config: "routes: [{match: {path: /only}, route: {cluster: a}}]",
        strip: [("/routes/0/match", "{prefix: ''}")],
        |world| {
            from("a", world.call(get("/only")).await)?;
            fails("Unavailable", &["\"all\"", "no route", "in-process"], world.call(grpc()).await)?;
            fails("503", &["\"all\"", "no route", "in-process"], world.call(get("/")).await)
        }
    }

    // === Shares ===

    runtime_fraction {
        row: "route match: a share of the calls", source: "A28, `RouteMatch.runtime_fraction`",
        config: "routes: [{match: {prefix: '', runtime_fraction: {default_value: {numerator: 50}}}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/runtime_fraction", "")],
        |world| {
            share("a", 0.5, &world.calls(2500, grpc()).await)
        }
    }

    runtime_fraction_of_nothing {
        row: "route match: 0 % is never, 100 % and more is always", source: "A28, `RouteMatch.runtime_fraction`",
        config: "routes: [{match: {path: /0, runtime_fraction: {default_value: {}}}, route: {cluster: a}},
                          {match: {path: /1, runtime_fraction: {default_value: {numerator: 100}}}, route: {cluster: a}},
                          {match: {path: /2, runtime_fraction: {default_value: {numerator: 4000000000, denominator: TEN_THOUSAND}}},
                           route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/runtime_fraction", "")],
        |world| {
            only("b", &world.calls(1000, get("/0")).await)?;
            only("a", &world.calls(200, get("/1")).await)?;
            only("a", &world.calls(200, get("/2")).await)
        }
    }

    weighted_clusters {
        row: "traffic split by weight", source: "A28, `RouteAction.weighted_clusters`",
        config: "routes: [{match: {prefix: ''}, route: {weighted_clusters: {clusters: [
                    {name: a, weight: 75}, {name: b, weight: 25}, {name: c, weight: 0}]}}}]",
        strip: [("/routes/0/route/weighted_clusters/clusters/0/weight", "25")],
        |world| {
            let counts = world.calls(1875, grpc()).await;
            share("a", 0.75, &counts)?;
            share("b", 0.25, &counts)
        }
    }

    weighted_clusters_update {
        row: "traffic split: a new weight counts from the next call on", source: "A28, `ClusterWeight.weight`",
        config: "routes: [{match: {prefix: ''}, route: {weighted_clusters: {clusters: [
                    {name: a, weight: 1}, {name: b, weight: 99}]}}}]",
        strip: [("/routes/0/route/weighted_clusters/clusters/1/name", "a")],
        |world| {
            world.update("/routes/0/route/weighted_clusters/clusters/0/weight", "0").await?;
            only("b", &world.calls(500, grpc()).await)?;
            world.update("/routes/0/route/weighted_clusters/clusters/0/weight", "9900").await?;
            let counts = world.calls(500, grpc()).await;
            share("a", 0.99, &counts)?;
            check(counts.len() <= 2, format!("no failed call in {counts:?}"))
        }
    }

    weighted_clusters_that_fail {
        row: "traffic split: the share of a cluster that fails is not given to the others",
        source: "A31, `RouteAction.weighted_clusters`",
        config: "{routes: [{match: {prefix: ''}, route: {weighted_clusters: {clusters: [{name: a, weight: 50}, {name: b, weight: 50}]}}}],
                  endpoints: {b: {endpoints: []}}}",
        strip: [("/routes/0/route/weighted_clusters/clusters/1", "")],
        |world| {
            share("Unavailable", 0.5, &world.calls(2500, grpc()).await)
        }
    }

    // === Virtual hosts ===

    domains {
        row: "virtual host by domain: exact, suffix, prefix, all; the longest first; in any case",
        source: "A28, `VirtualHost.domains`",
        config: "virtual_hosts:
                 - {name: all, domains: ['*'], routes: [{match: {prefix: ''}, route: {cluster: a}}]}
                 - {name: short prefix, domains: ['s*'], routes: [{match: {prefix: ''}, route: {cluster: b}}]}
                 - {name: prefix, domains: ['svc*'], routes: [{match: {prefix: ''}, route: {cluster: c}}]}
                 - {name: suffix, domains: ['*:80'], routes: [{match: {prefix: ''}, route: {cluster: d}}]}
                 - {name: exact, domains: [other, 'SVC:80'], routes: [{match: {prefix: ''}, route: {cluster: e}}]}",
        strip: [("/virtual_hosts/4/domains", "[other]")],
        |world| {
            from("e", world.call(grpc()).await)?;
            for (host, next) in [("4", "d"), ("3", "c"), ("2", "b"), ("1", "a")] {
                world.update(&format!("/virtual_hosts/{host}/domains"), &format!("[other{host}]")).await?;
                from(next, world.call(grpc()).await)?;
            }
            Ok(())
        }
    }

    domain_with_port {
        row: "virtual host by domain: the port is part of the name", source: "A28, `VirtualHost.domains`",
        config: "virtual_hosts: [{name: v, domains: [svc, 'svc:8080'], routes: [{match: {prefix: ''}, route: {cluster: a}}]},
                                 {name: w, domains: ['svc:80'], routes: [{match: {prefix: ''}, route: {cluster: b}}]}]",
        strip: [("/virtual_hosts/1/domains", "[other]")],
        |world| {
            from("b", world.call(grpc()).await)
        }
    }

    no_virtual_host {
        row: "no virtual host for the target: UNAVAILABLE at once", source: "A27, `VirtualHost.domains`",
        config: "virtual_hosts: [{name: v, domains: [other.com], routes: [{match: {prefix: ''}, route: {cluster: a}}]}]",
        strip: [("/virtual_hosts/0/domains", "['*']")],
        |world| {
            fails("Unavailable", &["routes", "svc:80", "in-process"], world.call(grpc()).await)?;
            fails("503", &["routes", "svc:80", "in-process"], world.call(get("/")).await)
        }
    }

    // === What is not supported ===

    unsupported_action {
        row: "a route that does not forward: its calls are UNAVAILABLE", source: "A36, `Route.action`",
        config: "routes: [{name: home, match: {path: /home}, direct_response: {status: 200}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0", "")],
        |world| {
            fails("503", &["home", "direct_response", "in-process"], world.call(get("/home")).await)?;
            from("b", world.call(get("/")).await)
        }
    }

    query_parameters {
        row: "a route on query parameters is skipped, and reported", source: "A28, `RouteMatch.query_parameters`",
        config: "routes: [{match: {prefix: '', query_parameters: [{name: q, present_match: true}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/query_parameters", "")],
        |world| {
            from("b", world.call(get("/?q=1")).await)?;
            from("b", world.call(get("/")).await)?;
            world.ignores(Kind::RouteConfig, "", "virtual_hosts[0].routes[0].match.query_parameters")
        }
    }

    cluster_header {
        row: "a route by `cluster_header` is skipped, and reported", source: "A28, `RouteAction.cluster_header`",
        config: "routes: [{match: {prefix: ''}, route: {cluster_header: k}}, {match: {prefix: /b}, route: {cluster: b}}]",
        strip: [("/routes/0/route", "{cluster: a}")],
        |world| {
            fails("Unavailable", &["all", "no route"], world.call(grpc().header("k", "a")).await)?;
            from("b", world.call(get("/b")).await)?;
            world.ignores(Kind::RouteConfig, "", "virtual_hosts[0].routes[0].route.cluster_header")
        }
    }

    without_effect {
        row: "fields of a route that have no effect yet are validated and reported",
        source: "A42, A81, `RouteAction.hash_policy`, `.auto_host_rewrite`, `.prefix_rewrite`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, present_match: false, treat_missing_header_as_empty: true}]},
                           route: {cluster: a, hash_policy: [{header: {header_name: k}}],
                                   auto_host_rewrite: true, prefix_rewrite: /other, timeout: 60s,
                                   request_mirror_policies: [{cluster: b}]}}]",
        strip: [("/routes/0/route/hash_policy", "")],
        |world| {
            from("a", world.call(get("/p")).await)?;
            let head = world.a.last_call().ok_or("a call")?;
            check(head.uri.path() == "/p", format!("the path as it was, and not {}", head.uri))?;
            let route = "virtual_hosts[0].routes[0].route";
            for field in ["hash_policy[0]", "auto_host_rewrite", "prefix_rewrite", "timeout", "request_mirror_policies"] {
                world.ignores(Kind::RouteConfig, "", &format!("{route}.{field}"))?;
            }
            world.ignores(Kind::RouteConfig, "", "match.headers[0].treat_missing_header_as_empty")
        }
    }

    redirect {
        row: "a route that redirects: its calls are UNAVAILABLE, and it is reported", source: "A36, `Route.redirect`",
        config: "routes: [{name: away, match: {path: /away}, redirect: {host_redirect: other.com}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0", "")],
        |world| {
            fails("503", &["away", "redirect", "in-process"], world.call(get("/away")).await)?;
            from("b", world.call(get("/")).await)?;
            world.ignores(Kind::RouteConfig, "", "virtual_hosts[0].routes[0].redirect")
        }
    }

    // === Listener ===

    inline_routes {
        row: "routes inside the listener", source: "A27, `HttpConnectionManager.route_config`",
        config: "http: {rds: null, route_config: {name: inline, virtual_hosts: [
                    {name: v, domains: ['*'], routes: [{match: {prefix: ''}, route: {cluster: b}}]}]}}",
        strip: [("/http", "{}")],
        |world| {
            from("b", world.call(grpc()).await)
        }
    }

    optional_filter {
        row: "an unknown HTTP filter that is optional is skipped, and reported", source: "A39, `HttpFilter.is_optional`",
        config: "http: {http_filters: [
                    {name: unknown, is_optional: true,
                     typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}},
                    {name: router,
                     typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}",
        strip: [("/http/http_filters/0", "")],
        |world| {
            from("a", world.call(grpc()).await)?;
            world.ignores(Kind::Listener, SERVICE, "http_filters[0]")
        }
    }
}
