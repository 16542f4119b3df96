//! A worker by script: configurations, dials that succeed or fail, time. No socket: dials are given to a runtime that
//! nobody drives, and the script says what came of them.

mod aggregates;
mod books;
mod elsewhere;

use super::*;
use crate::{
    balance::Picked,
    balance::Tried,
    endpoint::{Connection, EndpointState, Slot, tests::connection},
    task::Tasks,
};
use mesh_xds::{
    load::LoadReports,
    resource::{
        Addresses, CircuitBreakers, Cluster, ClusterLoadAssignment, Discovery, DropOverload, Endpoint, Health,
        HttpProtocol, LbPolicy, Locality, LocalityId, Millionths, TransportSocket,
    },
};
use std::net::SocketAddr;
use tokio::runtime::{Builder, Runtime};

/// A worker, and a runtime whose tasks never run. Endpoints are named by letters. In a configuration `/` separates
/// priorities and `|` localities.
struct Script {
    worker: Worker,
    parked: Option<Runtime>,
    policy: LbPolicy,
    drops: Vec<DropOverload>,
}

fn address(name: char) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(name).expect("a letter")], 80))
}

fn name(address: SocketAddr) -> char {
    match address {
        SocketAddr::V4(address) => char::from(address.ip().octets()[3]),
        SocketAddr::V6(_) => '?',
    }
}

fn assignment(endpoints: &str, drops: Vec<DropOverload>) -> ClusterLoadAssignment {
    let endpoint = |name| Endpoint {
        addresses: Addresses::one(address(name)),
        health: Health::Unknown,
        weight: 1,
        hostname: None,
    };
    let locality = |(index, names): (usize, &str)| {
        let id = LocalityId { zone: index.to_string(), ..LocalityId::default() };
        Locality { id: Arc::new(id), weight: 1, endpoints: names.chars().map(endpoint).collect() }
    };
    let priorities = endpoints.split('/').filter(|_| !endpoints.is_empty());
    ClusterLoadAssignment {
        name: "c".to_owned(),
        priorities: priorities.map(|names| names.split('|').enumerate().map(locality).collect()).collect(),
        drops,
    }
}

fn resolved(lb_policy: LbPolicy, transport_socket: TransportSocket, endpoints: ClusterLoadAssignment) -> ClusterConfig {
    let name = ClusterName::new("c");
    let cluster = Cluster {
        name: name.clone(),
        discovery: Discovery::Eds { service_name: "c".to_owned() },
        lb_policy,
        transport_socket,
        http_protocol: HttpProtocol::default(),
        circuit_breakers: CircuitBreakers::default(),
        outlier_detection: None,
        load_reporting: None,
        connect_timeout: None,
    };
    let (cluster, endpoints) = (Arc::new(cluster), Arc::new(endpoints));
    let leaf = Arc::new(ResolvedCluster { cluster, server: None, endpoints, note: None });
    ClusterConfig { name, server: None, state: Ok(Leaves::one(leaf)) }
}

/// A leaf with a policy of its own, and `TransportSocket::Unsupported` if its name ends in `!`.
fn leaf(name: &str, policy: &LbPolicy, endpoints: &str) -> Arc<ResolvedCluster> {
    let transport_socket = match name.ends_with('!') {
        true => TransportSocket::Unsupported { field: "tls".to_owned() },
        false => TransportSocket::Plaintext,
    };
    let config = resolved(policy.clone(), transport_socket, assignment(endpoints, Vec::new()));
    let own = config.state.expect("resolved").first;
    let cluster = Cluster { name: name.into(), ..Cluster::clone(&own.cluster) };
    Arc::new(ResolvedCluster { cluster: Arc::new(cluster), ..ResolvedCluster::clone(&own) })
}

impl Script {
    fn new(policy: LbPolicy, endpoints: &str) -> Self {
        let parked = Builder::new_current_thread().build().expect("a runtime");
        let options = ClusterOptions {
            dial: Arc::default(),
            max_pending: 10,
            outlier_detection: None,
            tasks: Tasks::new(parked.handle().clone()),
            loads: LoadReports::default(),
            name_failures: mesh_xds::NameFailures::default(),
            node: "n".into(),
        };
        let config = Arc::new(resolved(policy.clone(), TransportSocket::Plaintext, assignment("", Vec::new())));
        let shared = Arc::new(Backends {
            cluster: config.name.clone(),
            max_pending: 10,
            offer: ArcSwap::from_pointee(Offer::open(Picker::Wait)),
            wakeups: Arc::default(),
            asked: Asked::default(),
            applied: watch::Sender::new(None),
            roster: ArcSwap::default(),
        });
        let worker = Worker::new(shared, Protocol::Http2, options, config);
        let mut script = Self { worker, parked: Some(parked), policy, drops: Vec::new() };
        script.update(endpoints);
        script
    }

    fn round_robin(endpoints: &str) -> Self {
        Self::new(LbPolicy::RoundRobin, endpoints)
    }

    fn pick_first(endpoints: &str) -> Self {
        Self::new(LbPolicy::PickFirst { shuffle: false }, endpoints)
    }

    // === What happens ===

    fn update(&mut self, endpoints: &str) -> &mut Self {
        let assignment = assignment(endpoints, self.drops.clone());
        self.configure(resolved(self.policy.clone(), TransportSocket::Plaintext, assignment))
    }

    /// An aggregate of these leaves.
    fn aggregate(&mut self, leaves: &[&Arc<ResolvedCluster>]) -> &mut Self {
        let leaves = Leaves::new(leaves.iter().map(|&leaf| Arc::clone(leaf))).expect("at least one");
        self.configure(ClusterConfig { name: "c".into(), server: None, state: Ok(leaves) })
    }

    fn configure(&mut self, config: ClusterConfig) -> &mut Self {
        self.worker.configure(Arc::new(config));
        self.worker.turn();
        self
    }

    /// The newest dial of an endpoint, named by its first address.
    #[track_caller]
    fn dial_of(&mut self, name: char) -> (Id, DialId) {
        let first = address(name);
        for id in self.worker.roster.ids() {
            let Some(backend) = self.worker.roster.get_mut(id) else { continue };
            if backend.endpoint.addresses.first == first {
                return (id, backend.dial());
            }
        }
        panic!("{name} is not in the roster")
    }

    fn event(&mut self, (backend, dial): (Id, DialId), event: ConnectionEvent) -> &mut Self {
        self.worker.reporter.send(News { backend, dial, event }).expect("the worker listens");
        self.worker.turn();
        self
    }

    /// The dial of this endpoint succeeds, at its first address.
    async fn ready(&mut self, name: char) -> Arc<Connection> {
        let dial = self.dial_of(name);
        self.ready_by(dial).await
    }

    async fn ready_by(&mut self, dial: (Id, DialId)) -> Arc<Connection> {
        let endpoint = Arc::clone(&self.worker.roster.get_mut(dial.0).expect("in the roster").endpoint);
        let connection = connection(endpoint, 9).await;
        self.event(dial, ConnectionEvent::Ready(Arc::clone(&connection)));
        connection
    }

    fn fails(&mut self, name: char) -> &mut Self {
        let dial = self.dial_of(name);
        self.event(dial, ConnectionEvent::Failed("refused".to_owned()))
    }

    fn closes(&mut self, name: char) -> &mut Self {
        let dial = self.dial_of(name);
        self.event(dial, ConnectionEvent::Closed("GOAWAY".to_owned()))
    }

    /// Lets time pass as the worker does: it turns at each deadline.
    async fn after(&mut self, time: Duration) -> &mut Self {
        let end = Instant::now() + time;
        while let Some(deadline) = self.worker.deadline().filter(|deadline| *deadline <= end) {
            tokio::time::advance(deadline.saturating_duration_since(Instant::now())).await;
            self.worker.turn();
        }
        tokio::time::advance(end.saturating_duration_since(Instant::now())).await;
        self
    }

    async fn after_seconds(&mut self, seconds: u64) -> &mut Self {
        self.after(Duration::from_secs(seconds)).await
    }

    // === What follows ===

    /// Endpoints in this state, in the order of the configuration.
    fn in_state(&self, state: EndpointState) -> String {
        let report = self.worker.shared.report();
        report.into_iter().filter(|endpoint| endpoint.state == state).map(|endpoint| name(endpoint.address)).collect()
    }

    /// Who is being dialled now.
    #[track_caller]
    fn dials(&mut self, expected: &str) -> &mut Self {
        let mut dialled = String::new();
        for id in self.worker.roster.ids() {
            let Some(backend) = self.worker.roster.get_mut(id) else { continue };
            if backend.is_dialled_by(backend.dial()) {
                dialled.push(name(backend.endpoint.addresses.first));
            }
        }
        assert_eq!((dialled.as_str(), dialled.len()), (expected, self.worker.dials));
        self
    }

    fn pick(&self) -> Picked {
        self.worker.shared.offer.load().pick(&Tried::default(), &mut |below| fastrand::u32(..below.max(1)))
    }

    fn slot(&self) -> Option<Slot> {
        match self.pick() {
            Picked::Slot(slot) => Some(slot),
            _ => None,
        }
    }

    /// Who gets calls.
    #[track_caller]
    fn picks(&mut self, expected: &str) -> &mut Self {
        let picked: std::collections::BTreeSet<char> =
            (0..20).filter_map(|_| self.slot()).map(|slot| name(slot.peer())).collect();
        assert_eq!(picked.into_iter().collect::<String>(), expected);
        self
    }

    #[track_caller]
    fn waits(&mut self) -> &mut Self {
        assert!(matches!(self.pick(), Picked::Wait), "{:?}", self.pick());
        self
    }

    #[track_caller]
    fn refuses(&mut self, reason: &str) -> &mut Self {
        match self.pick() {
            Picked::Fail(text) => assert!(text.contains(reason), "{text}"),
            other => panic!("{other:?}"),
        }
        self
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(parked) = self.parked.take() {
            parked.shutdown_background();
        }
    }
}

// === Connections ===

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_first_connection_and_then_use_all_that_are_ready() {
    let mut script = Script::round_robin("abc");
    script.dials("abc").waits();
    script.ready('b').await;
    script.dials("ac").picks("b");
    script.ready('c').await;
    script.picks("bc");
    script.fails('a').picks("bc");
    assert_eq!(script.in_state(EndpointState::TransientFailure), "a");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_lasted_is_dialled_again_at_once() {
    let mut script = Script::round_robin("a");
    script.ready('a').await;
    script.after_seconds(2).await.closes('a').dials("a").waits();
    script.ready('a').await;
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_did_not_last_is_dialled_again_after_a_second() {
    let mut script = Script::round_robin("a");
    script.ready('a').await;
    // It was READY once: calls wait, they do not fail.
    script.closes('a').dials("").waits();
    script.after(Duration::from_millis(799)).await.dials("");
    script.after(Duration::from_millis(402)).await.dials("a");
}

#[tokio::test(start_paused = true)]
async fn all_failed_fails_calls_until_one_is_ready_also_while_dialled_again() {
    let mut script = Script::round_robin("ab");
    script.fails('a').waits();
    script.fails('b').refuses("refused");
    script.after_seconds(2).await.dials("ab").refuses("refused");
    script.ready('a').await;
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn the_pause_grows_with_each_failure_and_starts_over_after_ready() {
    let mut script = Script::round_robin("a");
    for expected in [1.0, 1.6, 2.56, 4.096] {
        let pause = |share: f64| Duration::from_secs_f64(expected * share);
        script.fails('a');
        script.after(pause(0.79)).await.dials("");
        script.after(pause(0.42)).await.dials("a");
    }
    script.ready('a').await;
    script.after_seconds(2).await.closes('a').dials("a").fails('a');
    script.after(Duration::from_millis(1201)).await.dials("a");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_256_are_dialled_at_once() {
    let endpoints: String =
        (0..255u8).map(char::from).filter(|name| !"/|".contains(*name) && name.is_ascii()).collect();
    let twice = format!("{endpoints}|{endpoints}|{endpoints}");
    let mut script = Script::round_robin(&twice);
    assert_eq!(script.worker.dials, 256);
    let waiting = script.worker.queue.len();
    let id = script.worker.roster.ids()[0];
    let first = script.worker.roster.get_mut(id).expect("the first").dial();
    script.event((id, first), ConnectionEvent::Failed("refused".to_owned()));
    assert_eq!((script.worker.dials, script.worker.queue.len()), (256, waiting - 1));
}

// === Updates ===

#[tokio::test(start_paused = true)]
async fn endpoints_that_stay_keep_their_connection_and_those_that_leave_get_no_call() {
    let mut script = Script::round_robin("abc");
    let (a, b) = (script.ready('a').await, script.ready('b').await);
    script.ready('c').await;
    let dials = script.worker.last_dial;
    script.update("dca").picks("ac").dials("d");
    assert_eq!(script.worker.last_dial, dials + 1, "only d is new");
    assert!(b.slot(None).is_none() && a.slot(None).is_some(), "b was retired");
    assert_eq!(script.worker.shared.report().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_leaves_while_it_is_dialled_is_forgotten() {
    let mut script = Script::round_robin("ab");
    let a = script.dial_of('a');
    let late = connection(Arc::new(crate::endpoint::Endpoint::new(Addresses::one(address('a')))), 9).await;
    script.update("b").dials("b");
    script.event(a, ConnectionEvent::Ready(Arc::clone(&late))).dials("b").waits();
    assert!(late.slot(None).is_none(), "retired as soon as it arrives");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_old_connection_does_not_touch_the_new_one() {
    let mut script = Script::round_robin("a/b");
    let old = script.dial_of('a');
    script.ready('a').await;
    script.after_seconds(2).await.closes('a');
    script.ready('a').await;
    script.event(old, ConnectionEvent::Closed("its task has ended".to_owned())).picks("a").dials("");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_named_twice_has_two_connections_and_loses_one() {
    let mut script = Script::round_robin("ab|a");
    script.dials("aba");
    script.update("ab").dials("ab");
    script.update("b").dials("b");
}

#[tokio::test(start_paused = true)]
async fn no_endpoints_fail_calls_at_once_and_new_ones_are_dialled() {
    let mut script = Script::round_robin("");
    script.refuses("no endpoints");
    script.update("a").dials("a").waits();
    let a = script.ready('a').await;
    script.update("").refuses("no endpoints");
    assert!(a.slot(None).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_transport_socket_that_is_not_supported_stops_everything() {
    let mut script = Script::round_robin("ab");
    let a = script.ready('a').await;
    let unsupported = TransportSocket::Unsupported { field: "transport_socket: tls".to_owned() };
    script.configure(resolved(LbPolicy::RoundRobin, unsupported, assignment("ab", Vec::new())));
    script.dials("").refuses("transport_socket: tls");
    assert!(a.slot(None).is_none());
    script.after_seconds(100).await.dials("");
    script.update("ab").dials("ab");
}

#[tokio::test(start_paused = true)]
async fn drops_apply_to_calls_that_could_be_sent() {
    let mut script = Script::round_robin("a");
    script.drops = vec![DropOverload { category: "all".into(), rate: Millionths::ALL }];
    script.update("a").waits();
    script.ready('a').await;
    assert!(matches!(script.pick(), Picked::Dropped(category) if &*category == "all"));
    script.drops.clear();
    script.update("a").picks("a");
}

// === Priorities ===

#[tokio::test(start_paused = true)]
async fn a_lower_priority_is_dialled_when_all_of_the_higher_have_failed() {
    let mut script = Script::round_robin("ab/c/d");
    script.dials("ab").fails('a').dials("b").fails('b').dials("c").waits();
    assert_eq!(script.in_state(EndpointState::Idle), "d");
    script.ready('c').await;
    script.picks("c");
}

#[tokio::test(start_paused = true)]
async fn a_lower_priority_is_dialled_when_the_higher_takes_more_than_10_seconds() {
    let mut script = Script::round_robin("a/b");
    script.after(Duration::from_millis(9_999)).await.dials("a");
    script.after(Duration::from_millis(1)).await.dials("ab");
    script.ready('b').await;
    script.picks("b");
    script.ready('a').await;
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn a_lower_priority_is_let_go_after_15_minutes() {
    let mut script = Script::round_robin("a/b");
    script.fails('a');
    let b = script.ready('b').await;
    script.after_seconds(2).await.dials("a");
    script.ready('a').await;
    script.after_seconds(15 * 60 - 1).await.picks("a");
    assert!(b.slot(None).is_some(), "kept for a while");
    script.after_seconds(1).await.picks("a");
    assert!(b.slot(None).is_none());
    assert_eq!(script.in_state(EndpointState::Idle), "b");
    // And back: it starts afresh.
    script.closes('a').fails('a').dials("b");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_moves_to_a_lower_priority_is_used_there_at_once_if_needed() {
    let mut script = Script::round_robin("a");
    let a = script.ready('a').await;
    script.update("/a").picks("a").dials("");
    assert!(a.slot(None).is_some(), "the same connection");
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_move_to_a_priority_that_is_not_needed_are_let_go() {
    let mut script = Script::round_robin("abc");
    let a = script.ready('a').await;
    script.ready('c').await;
    script.fails('b');
    script.update("c/ab").picks("c").dials("");
    assert!(a.slot(None).is_none());
    assert_eq!(script.in_state(EndpointState::Idle), "ab");
    script.after_seconds(60).await.dials("");
}

// === pick_first ===

#[tokio::test(start_paused = true)]
async fn pick_first_dials_all_addresses_as_one() {
    let mut script = Script::pick_first("abc");
    script.dials("a");
    let (id, _) = script.dial_of('a');
    let order: String = {
        let addresses = &script.worker.roster.get_mut(id).expect("there").endpoint.addresses;
        addresses.iter().map(name).collect()
    };
    assert_eq!(order, "abc");
    script.ready('a').await;
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn pick_first_keeps_its_connection_while_the_list_has_its_address() {
    let mut script = Script::pick_first("ab");
    let a = script.ready('a').await;
    script.update("bca").picks("a").dials("");
    script.update("cb").dials("c").waits();
    assert!(a.slot(None).is_none());
}

#[tokio::test(start_paused = true)]
async fn pick_first_turns_to_the_new_list_when_its_old_connection_ends() {
    let mut script = Script::pick_first("ab");
    script.ready('a').await;
    script.update("ca").picks("a");
    script.after_seconds(2).await.closes('a').dials("c").waits();
    assert_eq!(script.worker.shared.report()[0].address, address('c'));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_policy_takes_effect() {
    let mut script = Script::round_robin("ab");
    let (a, b) = (script.ready('a').await, script.ready('b').await);
    script.policy = LbPolicy::PickFirst { shuffle: false };
    script.update("ab");
    assert_eq!(
        usize::from(a.slot(None).is_some()) + usize::from(b.slot(None).is_some()),
        1,
        "one connection is enough"
    );
    script.dials("");
    script.policy = LbPolicy::Random;
    script.update("ab").dials("ab");
}

// === The end ===

#[tokio::test(start_paused = true)]
async fn a_worker_whose_runtime_ended_fails_calls() {
    let script = Script::round_robin("a");
    let shared = Arc::clone(&script.worker.shared);
    drop(script);
    assert!(matches!(&shared.offer.load().picker, Picker::Fail(reason) if reason.contains("runtime")));
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_cluster_left_the_routes_sends_calls_to_be_routed_again() {
    let mut script = Script::round_robin("a");
    let a = script.ready('a').await;
    let shared = Arc::clone(&script.worker.shared);
    script.worker.last_word = Some(Picker::Removed);
    drop(script);
    assert!(matches!(&shared.offer.load().picker, Picker::Removed));
    assert!(a.slot(None).is_none(), "its connections are retired");
}
