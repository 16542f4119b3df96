//! Every rule of the NACK table, sent by our control plane to a mesh under traffic (A46).
//!
//! A bad resource is refused with its name and the field, what was good before goes on, and the good siblings in the
//! same response take effect. Its valid twin is taken. `tests/nack_table.rs` holds decoding alone to the same rules;
//! this module does NOT look for the right field of every rule a second time in other words.

use crate::{
    mesh::unary,
    rig::{OurControlPlane, backends, bootstrap, within},
};
use interop_tests::{
    backend::Backend,
    nack_table::{CERTIFICATE_PROVIDERS, Row, rows},
};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, ResourceState,
    control_plane::{
        ControlPlane, Event, EventReceiver, Resources, Verdict,
        proto::{
            envoy::config::{
                listener::v3::Listener,
                route::v3::{VirtualHost, route_action::ClusterSpecifier},
            },
            google::protobuf::Any,
        },
        resources::{
            cluster_eds, cluster_static, endpoints, listener, listener_inline, pack, route, route_config, virtual_host,
            virtual_host_with,
        },
    },
    resource::Kind,
};
use serde_json::json;
use std::{collections::BTreeSet, net::SocketAddr, time::Duration};
use tokio::task::JoinSet;

/// Of each kind, what changes with every response.
const SIBLING: &str = "sibling";

/// A resource of the table, and a channel whose calls go through it.
struct Subject {
    kind: Kind,
    name: String,
    channel: MeshChannel,
}

struct World {
    control_plane: ControlPlane,
    events: EventReceiver,
    mesh: Mesh,
    subjects: Vec<Subject>,
    /// What is served when nothing is bad.
    good: Resources,
    backends: [Backend; 2],
    _serving: OurControlPlane,
}

impl World {
    async fn start(rows: &[Row]) -> Self {
        let backends = backends(["a", "b"]).await;
        let serving = OurControlPlane::start().await;
        let provider = json!({ "plugin_name": "file_watcher", "config": { "ca_certificate_file": "/none" } });
        let mut bootstrap = bootstrap("wire", serving.address);
        // For the rules about `xdstp:` names.
        bootstrap["authorities"] = json!({ "a": {} });
        bootstrap["certificate_providers"] =
            CERTIFICATE_PROVIDERS.iter().map(|name| (name.to_string(), provider.clone())).collect();
        let mesh = Mesh::builder(Bootstrap::parse(&bootstrap.to_string()).expect("a valid bootstrap")).build();
        let mut good = Resources::default();
        for backend in &backends {
            good.insert(cluster_static(&ground(backend), &[backend.address()]));
        }
        let mut subjects = Vec::new();
        for (index, (kind, name)) in names(rows).into_iter().enumerate() {
            let target = match kind {
                Kind::Listener => name.clone(),
                _ => format!("target-{index}"),
            };
            match kind {
                Kind::Listener => {}
                Kind::Other(_) => unreachable!("the table has the four of Kind::ALL"),
                Kind::RouteConfig => good.insert(listener(&target, &name)),
                Kind::Cluster => good.insert(to_cluster(&target, &name)),
                Kind::Endpoints => {
                    let mut cluster = cluster_eds(&target);
                    cluster.eds_cluster_config.get_or_insert_default().service_name.clone_from(&name);
                    good.insert(cluster);
                    good.insert(to_cluster(&target, &target));
                }
            }
            good.insert_any(leading_to(&backends[0], kind, &name));
            let channel = mesh.channel(&format!("xds:///{target}")).expect("a valid target");
            subjects.push(Subject { kind, name, channel });
        }
        let control_plane = serving.ads.clone();
        control_plane.set_unchecked(good.clone());
        for subject in &subjects {
            subject.channel.ready(Duration::from_secs(30)).await.expect("configured and connected");
        }
        let events = control_plane.events();
        Self { control_plane, events, mesh, subjects, good, backends, _serving: serving }
    }

    fn channel(&self, kind: Kind, name: &str) -> &MeshChannel {
        let subject = self.subjects.iter().find(|subject| (subject.kind, subject.name.as_str()) == (kind, name));
        &subject.expect("a subject of the table").channel
    }

    /// Serves `resource` under `name`, with a sibling that leads to this backend.
    fn serve(&self, kind: Kind, name: &str, resource: &Any, sibling: usize) {
        let mut resources = self.good.clone();
        resources.insert_any(leading_to(&self.backends[sibling], kind, SIBLING));
        resources.insert_raw(name, resource.clone());
        self.control_plane.set_unchecked(resources);
    }

    /// The version of the next response of this kind, and why it was refused if it was.
    async fn verdict(&mut self, kind: Kind) -> (String, Option<String>) {
        let events = &mut self.events;
        within("the verdict", async {
            let (mut version, mut nonce) = Default::default();
            loop {
                match events.recv().await.expect("events are read as they come") {
                    Event::Response { type_url, version: sent, nonce: with, .. } if type_url == kind.type_url() => {
                        (version, nonce) = (sent, with);
                    }
                    Event::Request { type_url, nonce: of, verdict, .. }
                        if type_url == kind.type_url() && of == nonce =>
                    {
                        match verdict {
                            Verdict::Ack => return (version, None),
                            Verdict::Nack { message } => return (version, Some(message)),
                            _ => {}
                        }
                    }
                    _ => {}
                }
            }
        })
        .await
    }

    /// Waits until calls see the sibling of `version`.
    async fn sibling_applied(&self, kind: Kind, version: &str) {
        within("the sibling", async {
            while self.mesh.status().applied_version(kind, SIBLING) != Some(version) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Calls all the time until it is dropped; ends at the first failure.
    fn traffic(&self) -> JoinSet<String> {
        let mut traffic = JoinSet::new();
        let channels: Vec<_> = self.subjects.iter().map(|subject| subject.channel.clone()).collect();
        traffic.spawn(async move {
            loop {
                for channel in &channels {
                    if let Err(status) = unary(channel).await {
                        return status.to_string();
                    }
                }
            }
        });
        traffic
    }
}

/// Every name of the table, and the siblings.
fn names(rows: &[Row]) -> BTreeSet<(Kind, String)> {
    let named = rows.iter().flat_map(|row| [(row.kind, name(row, &row.bad)), (row.kind, name(row, &row.good))]);
    named.chain(Kind::ALL.map(|kind| (kind, SIBLING.to_owned()))).collect()
}

/// Each row with the backend that the sibling of its kind leads to: never the one of the row before, and first `b`.
fn with_sibling(rows: &[Row]) -> impl Iterator<Item = (usize, &Row)> {
    let of_kind = |kind| rows.iter().filter(move |row| row.kind == kind);
    Kind::ALL.into_iter().flat_map(move |kind| [1, 0].into_iter().cycle().zip(of_kind(kind)))
}

/// The name under which a resource of the table is served: its own, or for one without the one of the file.
fn name(row: &Row, resource: &Any) -> String {
    let unnamed = match row.kind {
        Kind::Listener => "l",
        Kind::RouteConfig => "r",
        Kind::Cluster => "c",
        Kind::Endpoints => "e",
        Kind::Other(_) => unreachable!("the table has the four"),
    };
    let name = own_name(resource);
    if name.is_empty() { unnamed.to_owned() } else { name }
}

fn own_name(resource: &Any) -> String {
    let mut resources = Resources::default();
    resources.insert_any(resource.clone());
    resources.names(&resource.type_url).next().unwrap_or_default().to_owned()
}

fn ground(backend: &Backend) -> String {
    format!("ground-{}", backend.hostname())
}

/// A resource whose calls arrive at `backend`.
fn leading_to(backend: &Backend, kind: Kind, name: &str) -> Any {
    let addresses: [SocketAddr; 1] = [backend.address()];
    match kind {
        Kind::Listener => pack(listener_inline(name, route_config("inline", vec![to_ground(backend)]))),
        Kind::RouteConfig => pack(route_config(name, vec![to_ground(backend)])),
        Kind::Cluster => pack(cluster_static(name, &addresses)),
        Kind::Endpoints => pack(endpoints(name, &addresses)),
        Kind::Other(_) => unreachable!("the table has the four"),
    }
}

/// A virtual host that sends everything to `backend`. A route that is never reached names both clusters, so that what
/// is subscribed stays the same whoever gets the calls.
fn to_ground(backend: &Backend) -> VirtualHost {
    let cluster = |name: &str| ClusterSpecifier::Cluster(name.to_owned());
    let routes = [&ground(backend), "ground-a", "ground-b"].map(|name| route("", cluster(name)));
    virtual_host_with("*", routes.into())
}

/// A listener that sends everything to one cluster.
fn to_cluster(name: &str, cluster: &str) -> Listener {
    listener_inline(name, route_config("inline", vec![virtual_host("*", cluster)]))
}

#[tokio::test]
async fn each_bad_resource_is_refused_while_traffic_goes_on_and_siblings_take_effect() {
    let rows = rows();
    let mut world = World::start(&rows).await;
    let mut traffic = world.traffic();
    for (sibling, row) in with_sibling(&rows) {
        let (kind, name) = (row.kind, name(row, &row.bad));
        world.serve(kind, &name, &row.bad, sibling);
        let (version, refusal) = world.verdict(kind).await;
        let refusal = refusal.unwrap_or_else(|| panic!("{}: it was taken", row.rule));
        let own = own_name(&row.bad);
        let who = if own.is_empty() { format!("{kind} without a name") } else { format!("{kind} {own:?}") };
        let place = if row.path.is_empty() { format!("{who}: ") } else { format!("{who}: {}: ", row.path) };
        assert!(refusal.contains(&place), "{}: {place:?} is not in {refusal:?}", row.rule);
        world.sibling_applied(kind, &version).await;
        let answer = unary(world.channel(kind, SIBLING)).await.expect(&row.rule);
        assert_eq!(answer, world.backends[sibling].hostname(), "{}: the sibling", row.rule);
        let answer = unary(world.channel(kind, &name)).await.expect(&row.rule);
        assert_eq!(answer, "a", "{}: what was good before", row.rule);
    }
    if let Some(ended) = traffic.try_join_next() {
        panic!("a call failed meanwhile: {ended:?}");
    }
}

/// "a resource that cannot be decoded has no name, is counted as a top-level error and affects no watcher" (A46).
#[tokio::test]
async fn bytes_that_are_no_resource_are_refused_and_siblings_take_effect() {
    let rows = rows();
    let mut world = World::start(&rows).await;
    let mut traffic = world.traffic();
    for (kind, name) in Kind::ALL.into_iter().zip(["l", "r", "c", "e"]) {
        let bytes = Any { type_url: kind.type_url().to_owned(), value: vec![0xff] };
        world.serve(kind, name, &bytes, 1);
        let (version, refusal) = world.verdict(kind).await;
        let refusal = refusal.unwrap_or_else(|| panic!("{kind}: it was taken"));
        assert!(refusal.contains(&format!("{kind} without a name")), "{refusal}");
        world.sibling_applied(kind, &version).await;
        assert_eq!(unary(world.channel(kind, SIBLING)).await.expect("a reply"), "b", "{kind}: the sibling");
        assert_eq!(unary(world.channel(kind, name)).await.expect("a reply"), "a", "{kind}: what was good before");
    }
    if let Some(ended) = traffic.try_join_next() {
        panic!("a call failed meanwhile: {ended:?}");
    }
}

#[tokio::test]
async fn the_valid_twin_of_each_bad_resource_is_taken() {
    let rows = rows();
    let world = World::start(&rows).await;
    for (sibling, row) in with_sibling(&rows) {
        let name = name(row, &row.good);
        world.serve(row.kind, &name, &row.good, sibling);
        let type_url = row.kind.type_url();
        tokio::select! {
            () = within("the ACK", world.control_plane.wait_for_ack(type_url, &name)) => {}
            refusal = world.control_plane.wait_for_nack(type_url) => panic!("{}: {refusal}", row.rule),
        }
        let status = world.mesh.status().xds;
        let resource = status.resource(row.kind, &name).expect("a subject of the table");
        assert_eq!(resource.state, ResourceState::Acked, "{}", row.rule);
    }
}
