//! What a client does not want: resources that it never asked for, listeners that are no client's, and lists that would
//! ask for everything.
//!
//! istiod answers a list without names with all that it has. It does NOT test resources that are wrong; `bad_resources`
//! does.

use crate::{
    control_plane_failures::{bootstrap, echo, fails, scripted},
    mesh::{SocketMesh, service, unary},
    rig::{addresses, backends, within},
};
use mesh_client::Mesh;
use mesh_xds::{
    control_plane::{
        Dialect, Event, Verdict,
        proto::envoy::config::{
            core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier},
            listener::v3::Listener,
        },
        resources::{listener, pack},
    },
    resource::Kind,
};

const LDS: &str = Kind::Listener.type_url();

#[tokio::test]
async fn resources_that_nobody_asked_for_are_neither_kept_nor_judged() {
    for dialect in [Dialect::Sotw, Dialect::Delta] {
        let [a] = backends(["a"]).await;
        let mesh = SocketMesh::start_in(dialect, service("echo", &addresses([&a]))).await;
        let channel = mesh.ready("echo").await;
        mesh.applied(Kind::Listener, "echo").await;
        let mut events = mesh.control_plane().events();
        // As istiod answers a wildcard, with one that would be refused among them.
        let mut all = vec![pack(listener("echo", "echo-routes"))];
        all.extend((0..100).map(|number| pack(listener(&format!("other-{number}"), "other-routes"))));
        all.push(pack(Listener { name: "bad".to_owned(), ..Listener::default() }));
        mesh.control_plane().send_raw(LDS, "all", all);
        let is_judged = |event: &Event| matches!(event, Event::Request { type_url, verdict, .. } if type_url == LDS && *verdict != Verdict::Request);
        let judged = within("a verdict", events.wait_for(is_judged)).await.expect("nothing was missed");
        assert!(matches!(judged, Event::Request { verdict: Verdict::Ack, .. }), "{dialect:?}: {judged:?}");
        let status = mesh.mesh().status().xds;
        let listeners = status.resources.iter().filter(|it| it.kind == Kind::Listener).map(|it| it.name.as_str());
        assert_eq!(listeners.collect::<Vec<_>>(), ["echo"], "{dialect:?}");
        assert_eq!(unary(&channel).await.expect("a reply"), "a");
    }
}

/// "Listener for a client without api_listener" is no mistake of the resource: who wants it as a client is told (A74).
#[tokio::test]
async fn a_servers_listener_is_accepted_and_fails_the_calls_of_a_client_that_wants_it() {
    let mut server = scripted().await;
    let mesh = Mesh::builder(bootstrap(server.address(), &[])).build();
    let channel = echo(&mesh);
    let mut stream = server.stream().await.expect("dialled");
    stream.request(Kind::Listener).await.expect("asked for");
    let socket = SocketAddress {
        address: "0.0.0.0".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(80)),
        ..SocketAddress::default()
    };
    let address = Some(Address { address: Some(address::Address::SocketAddress(socket)) });
    let nonce =
        stream.answer(Kind::Listener, vec![pack(Listener { name: "echo".to_owned(), address, ..Listener::default() })]);
    let verdict = stream.verdict(Kind::Listener, &nonce).await.expect("answered");
    assert_eq!(verdict.error_detail, None);
    fails(&channel, &["Listener \"echo\"", "is a listener with sockets"]).await;
}

/// The last listener of a client lingers until there is another one: a list without names would be a wildcard.
#[tokio::test]
async fn the_last_listener_is_never_given_up_for_nothing() {
    for dialect in [Dialect::Sotw, Dialect::Delta] {
        let [a, b] = backends(["a", "b"]).await;
        let mut both = service("one", &addresses([&a]));
        both.extend(service("two", &addresses([&b])));
        let mesh = SocketMesh::start_in(dialect, both).await;
        mesh.control_plane().like_istiod(true);
        let one = mesh.ready("one").await;
        mesh.applied(Kind::Listener, "one").await;
        let mut events = mesh.control_plane().events();
        drop(one);
        // Routes may be given up, so this is when the client has heard of it.
        let routes = Kind::RouteConfig.type_url();
        within("the end of its routes", mesh.control_plane().wait_for_unsubscription(routes, "one-routes")).await;
        let two = mesh.ready("two").await;
        assert_eq!(unary(&two).await.expect("a reply"), "b");
        let is_change = |event: &Event| match event {
            Event::Request { type_url, names, unsubscribed, .. } if type_url == LDS => match dialect {
                Dialect::Sotw => names != &["one"],
                Dialect::Delta => !names.is_empty() || !unsubscribed.is_empty(),
            },
            _ => false,
        };
        // The first change of listeners since then brings the other name.
        let first = within("a request", events.wait_for(is_change)).await.expect("nothing was missed");
        let Event::Request { names, unsubscribed, .. } = first else { unreachable!("waited for") };
        assert_eq!(names, ["two"], "{dialect:?}");
        let gone = if dialect == Dialect::Delta { vec!["one".to_owned()] } else { Vec::new() };
        assert_eq!(unsubscribed, gone, "{dialect:?}");
    }
}
