//! A88's table over the wire, cell by cell: what an event does to the users of a resource of each type, when nothing is
//! cached, when something is, and when the operator wants such errors to be fatal.
//!
//! ```text
//! event                            nothing cached   cached          cached, fail_on_data_errors
//! stream failed before a response  calls fail       calls go on     calls go on
//! client NACK                      calls fail       calls go on     calls fail
//! LDS or CDS omission; removal     n/a              calls go on     calls fail
//! NOT_FOUND, PERMISSION_DENIED     calls fail       calls go on     calls fail
//! another code                     calls fail       calls go on     calls go on
//! timer                            calls fail, NOT_FOUND or TIMEOUT
//! ```
//!
//! The machine's rules have their own tests (`cache`); this module does NOT repeat their corners.

use crate::{
    control_plane_failures::{bootstrap, config, echo, fails, go_on, is_unreachable, leads, recovers, scripted},
    mesh::{applied, mesh, ready, service, unary},
    rig::{addresses, backends, until},
};
use interop_tests::scripted::{ScriptedServer, ScriptedStream};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    ResourceState,
    control_plane::proto::{
        envoy::{
            config::{
                cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
                route::v3::RouteConfiguration,
            },
            service::discovery::v3::{DiscoveryResponse, ResourceError, ResourceName},
        },
        google::rpc,
    },
    control_plane::{
        proto::google::protobuf::Any,
        resources::{cluster_eds, endpoints, pack},
    },
    resource::Kind,
};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tokio::task::JoinSet;
use tonic::Status;

/// No timer decides here.
const PATIENT: Duration = Duration::from_secs(60);

/// What happens to one resource.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Unreachable,
    Invalid,
    Omitted,
    Reported(i32),
}

const EVENTS: [Event; 6] =
    [Event::Unreachable, Event::Invalid, Event::Omitted, Event::Reported(5), Event::Reported(7), Event::Reported(14)];

/// A column of the table, and the same in delta. A53's feature is a no-op, with or without the other.
const COLUMNS: [(bool, &[&str]); 8] = [
    (false, &[]),
    (true, &[]),
    (true, &["ignore_resource_deletion"]),
    (true, &["fail_on_data_errors"]),
    (true, &["fail_on_data_errors", "ignore_resource_deletion"]),
    (false, &[DELTA]),
    (true, &[DELTA]),
    (true, &[DELTA, "fail_on_data_errors"]),
];

const DELTA: &str = "delta_ads";

/// Of the resources of "echo".
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Listener => "echo",
        Kind::RouteConfig => "echo-routes",
        Kind::Cluster | Kind::Endpoints => "echo-cluster",
        Kind::Other(_) => unreachable!("four types"),
    }
}

/// A resource that nobody accepts.
fn invalid(kind: Kind) -> Any {
    let name = name(kind).to_owned();
    match kind {
        Kind::Listener => pack(Listener { name, ..Listener::default() }),
        Kind::RouteConfig => {
            let hosts = vec![Default::default()];
            pack(RouteConfiguration { name, virtual_hosts: hosts, ..RouteConfiguration::default() })
        }
        Kind::Cluster => pack(Cluster { lb_policy: 77, ..cluster_eds(&name) }),
        Kind::Endpoints => {
            let localities = vec![Default::default()];
            pack(ClusterLoadAssignment { cluster_name: name, endpoints: localities, ..Default::default() })
        }
        Kind::Other(_) => unreachable!("four types"),
    }
}

impl Event {
    /// Whether calls fail.
    fn is_fatal(self, cached: bool, fail_on_data_errors: bool) -> bool {
        match self {
            Self::Unreachable | Self::Reported(14) => !cached,
            _ => !cached || fail_on_data_errors,
        }
    }

    /// What the caller reads, or would.
    fn words(self) -> &'static str {
        match self {
            Self::Unreachable => "away",
            Self::Invalid => "invalid",
            Self::Omitted => "deleted",
            Self::Reported(_) => "reported",
        }
    }

    fn is_shown_by(self, state: &ResourceState) -> bool {
        match self {
            Self::Unreachable => matches!(state, ResourceState::Acked | ResourceState::Requested),
            Self::Invalid => matches!(state, ResourceState::Nacked { .. }),
            Self::Omitted => *state == ResourceState::DoesNotExist,
            Self::Reported(_) => *state == ResourceState::ReceivedError,
        }
    }

    /// "Absent in LDS/CDS = gone; absent in EDS/RDS = unchanged", where it is not said in so many words; and what never
    /// came is not gone.
    fn is_possible(self, kind: Kind, cached: bool, in_delta: bool) -> bool {
        self != Self::Omitted || (cached && (in_delta || matches!(kind, Kind::Listener | Kind::Cluster)))
    }
}

/// A client of its own, led up to a resource or past it.
struct Cell {
    server: ScriptedServer,
    stream: ScriptedStream,
    mesh: Mesh,
    channel: MeshChannel,
    kind: Kind,
}

impl Cell {
    async fn start(features: &[&str], patience: Duration, kind: Kind, cached: bool, backend: SocketAddr) -> Self {
        let mut server = scripted().await;
        let bootstrap = bootstrap(server.address(), features).with_resource_timeout(patience);
        let mesh = Mesh::builder(bootstrap).build();
        let channel = echo(&mesh);
        let mut stream = server.stream().await.expect("dialled");
        let before = config(&[backend]).into_iter().take_while(|(before, _)| cached || *before != kind);
        leads(&mut stream, before).await;
        if cached {
            recovers(&channel).await;
        } else {
            stream.request(kind).await.expect("asked for");
        }
        Self { server, stream, mesh, channel, kind }
    }

    async fn answers(&mut self, event: Event) {
        let mut response = DiscoveryResponse { type_url: self.kind.type_url().to_owned(), ..Default::default() };
        match event {
            Event::Unreachable | Event::Omitted => {}
            Event::Invalid => response.resources.push(invalid(self.kind)),
            Event::Reported(code) => response.resource_errors.push(ResourceError {
                resource_name: Some(ResourceName { name: name(self.kind).to_owned(), ..ResourceName::default() }),
                error_detail: Some(rpc::Status { code, message: "reported".to_owned(), details: Vec::new() }),
            }),
        }
        let nonce = match event {
            Event::Omitted => self.stream.remove(self.kind, name(self.kind)),
            _ => self.stream.send(response),
        };
        let verdict = self.stream.verdict(self.kind, &nonce).await.expect("answered");
        assert_eq!(verdict.error_detail.is_some(), event == Event::Invalid, "{:?}", verdict.error_detail);
    }

    fn state(&self) -> Option<ResourceState> {
        self.mesh.status().xds.resource(self.kind, name(self.kind)).map(|resource| resource.state.clone())
    }

    /// What the event does to calls, and that they are well again once the resource comes (again).
    async fn check(mut self, event: Event, fatal: bool, backend: SocketAddr) {
        let what = format!("{event:?} of {}", self.kind);
        if event == Event::Unreachable {
            self.stream.end(Status::unavailable("away"));
            self.server.call().await.expect("dialled again").refuse(Status::unavailable("away"));
            until(&what, || is_unreachable(&self.mesh)).await;
            check_calls(&self.channel, self.kind, event, fatal).await;
            self.stream = self.server.stream().await.expect("dialled on the curve");
        } else {
            self.answers(event).await;
            until(&what, || self.state().is_some_and(|state| event.is_shown_by(&state))).await;
            check_calls(&self.channel, self.kind, event, fatal).await;
            let again = config(&[backend]).into_iter().find(|(kind, _)| *kind == self.kind).expect("one of the four");
            self.stream.answer(again.0, again.1);
        }
        tokio::select! {
            () = serves(self.stream, backend) => unreachable!("it serves as long as it is asked"),
            () = recovers(&self.channel) => {}
        }
    }
}

/// Answers whenever the names of a type are not those that were answered: what was dropped took what it referred to
/// with it, and that is asked for again.
async fn serves(mut stream: ScriptedStream, backend: SocketAddr) {
    let mut answered = BTreeMap::new();
    loop {
        let request = stream.next().await.expect("the client stays");
        let (kind, resources) = config(&[backend])
            .into_iter()
            .find(|(kind, _)| kind.type_url() == request.type_url)
            .expect("one of the four");
        if answered.insert(request.type_url, request.resource_names.clone()) != Some(request.resource_names) {
            stream.answer(kind, resources);
        }
    }
}

async fn check_calls(channel: &MeshChannel, kind: Kind, event: Event, fatal: bool) {
    if fatal {
        fails(channel, &[&format!("{kind} {:?}", name(kind)), event.words()]).await;
    } else {
        go_on(channel, 20).await;
    }
}

#[tokio::test]
async fn each_cell_of_a88s_table_does_what_it_says() {
    let [a] = backends(["a"]).await;
    let mut cells = JoinSet::new();
    for kind in Kind::ALL {
        for event in EVENTS {
            for (cached, features) in COLUMNS {
                if event.is_possible(kind, cached, features.contains(&DELTA)) {
                    let (fatal, backend) =
                        (event.is_fatal(cached, features.contains(&"fail_on_data_errors")), a.address());
                    cells.spawn(async move {
                        Cell::start(features, PATIENT, kind, cached, backend).await.check(event, fatal, backend).await;
                    });
                }
            }
        }
    }
    assert!(cells.len() > 150, "{} cells", cells.len());
    while let Some(cell) = cells.join_next().await {
        cell.expect("the cell holds");
    }
}

#[tokio::test]
async fn what_is_not_answered_in_time_does_not_exist_or_timed_out_as_the_server_has_it() {
    let [a] = backends(["a"]).await;
    let mut cells = JoinSet::new();
    let rows: [(&[&str], &str, ResourceState); 3] = [
        (&[], "does not exist", ResourceState::DoesNotExist),
        (&["resource_timer_is_transient_error"], "did not answer", ResourceState::Timeout),
        (&["resource_timer_is_transient_failure"], "did not answer", ResourceState::Timeout),
    ];
    for kind in Kind::ALL {
        for (features, words, state) in rows.clone() {
            let backend = a.address();
            cells.spawn(async move {
                let cell = Cell::start(features, Duration::from_millis(100), kind, false, backend).await;
                fails(&cell.channel, &[&format!("{kind} {:?}", name(kind)), words]).await;
                assert_eq!(cell.state(), Some(state));
                // It comes late.
                let Cell { mut stream, channel, .. } = cell;
                let (_, resources) = config(&[backend]).into_iter().find(|(of, _)| *of == kind).expect("one of four");
                stream.answer(kind, resources);
                tokio::select! {
                    () = serves(stream, backend) => unreachable!("it serves as long as it is asked"),
                    () = recovers(&channel) => {}
                }
            });
        }
    }
    while let Some(cell) = cells.join_next().await {
        cell.expect("the cell holds");
    }
}

#[tokio::test]
async fn an_ambient_error_is_what_callers_read_once_nothing_else_works() {
    let [mut a] = backends(["a"]).await;
    let mut cell = Cell::start(&[], PATIENT, Kind::Cluster, true, a.address()).await;
    cell.answers(Event::Invalid).await;
    go_on(&cell.channel, 10).await;
    a.stop().await;
    fails(&cell.channel, &["no endpoint can be reached", "Cluster \"echo-cluster\": invalid: lb_policy"]).await;
}

// === Deleted clusters ===

#[tokio::test]
async fn a_deleted_cluster_that_is_kept_loses_endpoints_and_gains_none() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let whole = || service("echo", &addresses([&a, &b]));
    let mesh = mesh(whole());
    let channel = ready(&mesh, "echo").await;
    // As istiod does for a deleted subset: CDS drops it ...
    let mut deleted = whole();
    assert!(deleted.remove(Kind::Cluster.type_url(), "echo-cluster"));
    mesh.control_plane().set_unchecked(deleted.clone());
    let is_deleted = || {
        let status = mesh.mesh().status();
        let cluster = status.xds.resource(Kind::Cluster, "echo-cluster");
        cluster.is_some_and(|cluster| cluster.state == ResourceState::DoesNotExist)
    };
    until("the deletion", is_deleted).await;
    // ... and EDS answers with every endpoint of the service.
    deleted.insert(endpoints("echo-cluster", &addresses([&a, &b, &c])));
    mesh.control_plane().set_unchecked(deleted.clone());
    applied(&mesh, Kind::Endpoints, "echo-cluster").await;
    for _ in 0..30 {
        unary(&channel).await.expect("kept");
    }
    assert_eq!(c.counters().calls, 0, "a deleted cluster got a new endpoint");
    // What EDS takes away is gone.
    mesh.control_plane().set_unchecked(deleted.with(endpoints("echo-cluster", &addresses([&b, &c]))));
    applied(&mesh, Kind::Endpoints, "echo-cluster").await;
    for _ in 0..30 {
        assert_eq!(unary(&channel).await.expect("kept"), "b");
    }
    // It is back: all of EDS counts.
    mesh.control_plane().set_unchecked(service("echo", &addresses([&c])));
    applied(&mesh, Kind::Cluster, "echo-cluster").await;
    applied(&mesh, Kind::Endpoints, "echo-cluster").await;
    assert_eq!(unary(&channel).await.expect("back"), "c");
}
