//! Routes that look at a call's headers (A28, A63), over the wire.
//!
//! Scenarios have routes with a condition to cluster `a`, and the rest to `b`. It does NOT test decoding.

use crate::features::{features, from, get, grpc};

features! {
    header_exact {
        row: "header match: exact", source: "A28 `exact_match`, A63 `string_match.exact`",
        config: "routes: [{match: {prefix: '', headers: [{name: K, string_match: {exact: v}}]}, route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: old, exact_match: v}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "v")).await)?;
            from("a", world.call(grpc().header("old", "v")).await)?;
            from("b", world.call(grpc().header("k", "V")).await)?;
            from("b", world.call(grpc()).await)
        }
    }

    header_prefix {
        row: "header match: prefix", source: "A28 `prefix_match`, A63 `string_match.prefix`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {prefix: pre}}]}, route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: old, prefix_match: pre}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "prefix")).await)?;
            from("a", world.call(grpc().header("old", "pre")).await)?;
            from("b", world.call(grpc().header("k", "a pre")).await)
        }
    }

    header_suffix {
        row: "header match: suffix", source: "A28 `suffix_match`, A63 `string_match.suffix`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {suffix: end}}]}, route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: old, suffix_match: end}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "the end")).await)?;
            from("a", world.call(grpc().header("old", "end")).await)?;
            from("b", world.call(grpc().header("k", "end.")).await)
        }
    }

    header_contains {
        row: "header match: contains", source: "A28 `contains_match`, A63 `string_match.contains`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {contains: mid}}]}, route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: old, contains_match: mid}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "amidst")).await)?;
            from("a", world.call(grpc().header("old", "mid")).await)?;
            from("b", world.call(grpc().header("k", "m-i-d")).await)
        }
    }

    header_regex {
        row: "header match: regular expression, over the whole value",
        source: "A28 `safe_regex_match`, A63 `string_match.safe_regex`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {safe_regex: {regex: 'v[0-9]+'}}}]},
                           route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: old, safe_regex_match: {regex: 'v[0-9]+'}}]},
                           route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "v159")).await)?;
            from("a", world.call(grpc().header("old", "v1")).await)?;
            from("b", world.call(grpc().header("k", "v159x")).await)?;
            from("b", world.call(grpc().header("k", "xv159")).await)
        }
    }

    header_in_any_case {
        row: "header match: in any case, but not for regular expressions", source: "A63, `string_match.ignore_case`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {exact: FOO, ignore_case: true}}]},
                           route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: r, string_match: {safe_regex: {regex: FOO}, ignore_case: true}}]},
                           route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: p, string_match: {prefix: PRE, ignore_case: true}}]}, route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: s, string_match: {suffix: END, ignore_case: true}}]}, route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: c, string_match: {contains: MID, ignore_case: true}}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers/0/string_match/ignore_case", "")],
        |world| {
            from("a", world.call(grpc().header("k", "foo")).await)?;
            from("a", world.call(grpc().header("k", "FoO")).await)?;
            for (name, value) in [("p", "pREfix"), ("s", "the ENd"), ("c", "aMIDst")] {
                from("a", world.call(grpc().header(name, value)).await)?;
            }
            from("b", world.call(grpc().header("c", "m-i-d")).await)?;
            from("a", world.call(grpc().header("r", "FOO")).await)?;
            from("b", world.call(grpc().header("r", "foo")).await)
        }
    }

    header_range {
        row: "header match: range of numbers", source: "A28, `HeaderMatcher.range_match`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, range_match: {start: 100, end: 200}}]},
                           route: {cluster: a}}, {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            for inside in ["100", "159", "199"] {
                from("a", world.call(grpc().header("k", inside)).await)?;
            }
            for outside in ["99", "200", "150.5", "many"] {
                from("b", world.call(grpc().header("k", outside)).await)?;
            }
            Ok(())
        }
    }

    header_present {
        row: "header match: present", source: "A28, `HeaderMatcher.present_match`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, present_match: true}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "")).await)?;
            from("b", world.call(grpc()).await)
        }
    }

    header_absent {
        row: "header match: absent", source: "A28, `HeaderMatcher.present_match: false`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, present_match: false}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc()).await)?;
            from("b", world.call(grpc().header("k", "v")).await)
        }
    }

    header_inverted {
        row: "header match: inverted, but an absent header still does not match",
        source: "A28, `HeaderMatcher.invert_match`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {exact: v}, invert_match: true}]},
                           route: {cluster: a}}, {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers/0/invert_match", "")],
        |world| {
            from("a", world.call(grpc().header("k", "w")).await)?;
            from("b", world.call(grpc().header("k", "v")).await)?;
            from("b", world.call(grpc()).await)
        }
    }

    range_and_presence_inverted {
        row: "header match: inverted, a range also takes what is no number, and present means absent",
        source: "A28, `HeaderMatcher.invert_match`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, range_match: {start: 100, end: 200}, invert_match: true}]},
                           route: {cluster: a}},
                          {match: {prefix: '', headers: [{name: p, present_match: true, invert_match: true}, {name: k, present_match: false}]},
                           route: {cluster: c}}, {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers/0/invert_match", ""), ("/routes/1/match/headers/0/invert_match", "")],
        |world| {
            from("a", world.call(grpc().header("k", "many")).await)?;
            from("a", world.call(grpc().header("k", "200")).await)?;
            from("b", world.call(grpc().header("k", "150")).await)?;
            from("c", world.call(grpc()).await)?;
            from("b", world.call(grpc().header("p", "v")).await)
        }
    }

    header_without_specifier {
        row: "header match: no specifier means present", source: "Envoy, `HeaderMatcher.name` alone",
        config: "routes: [{match: {prefix: '', headers: [{name: k}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "v")).await)?;
            from("b", world.call(grpc()).await)
        }
    }

    header_binary {
        row: "header match: `-bin` headers count as absent", source: "A28, `HeaderMatcher.name`",
        config: "routes: [{match: {prefix: '', headers: [{name: k-bin, present_match: true}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("b", world.call(grpc().header("k-bin", "AAAA")).await)
        }
    }

    header_content_type {
        row: "header match: `content-type` is visible", source: "A28, `HeaderMatcher.name: content-type`",
        config: "routes: [{match: {prefix: '', headers: [{name: content-type, string_match: {exact: application/grpc}}]},
                           route: {cluster: a}}, {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc()).await)?;
            from("b", world.call(get("/")).await)
        }
    }

    header_joined {
        row: "header match: several values are one, joined by commas", source: "A28, `HeaderMatcher`",
        config: "routes: [{match: {prefix: '', headers: [{name: k, string_match: {exact: 'v,w'}}]}, route: {cluster: a}},
                          {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(grpc().header("k", "v").header("k", "w")).await)?;
            from("b", world.call(grpc().header("k", "v")).await)
        }
    }

    pseudo_headers {
        row: "header match: `:method`, `:path`, `:authority` and `:scheme`", source: "Envoy, `HeaderMatcher.name`",
        config: "routes: [{match: {prefix: '', headers: [{name: ':method', string_match: {exact: GET}},
                                                         {name: ':path', string_match: {suffix: '?q=1'}},
                                                         {name: ':authority', string_match: {exact: 'svc:80'}},
                                                         {name: ':scheme', string_match: {prefix: http}}]},
                           route: {cluster: a}}, {match: {prefix: ''}, route: {cluster: b}}]",
        strip: [("/routes/0/match/headers", "")],
        |world| {
            from("a", world.call(get("/p?q=1")).await)?;
            from("b", world.call(get("/p?q=2")).await)?;
            from("b", world.call(grpc()).await)
        }
    }
}
