//! Retries when many calls fail at once: they save what can be saved, and no more than that.
//!
//! One of ten backends is bad: an open loop of 1,000 calls a second. All of them are in trouble, which comes in all kinds: a
//! closed loop of a hundred callers, and backends that count what each budget lets through. It does NOT test single
//! conditions of a policy.

use crate::{
    crowd::Crowd,
    features::{Call, get, grpc},
    fleet::{Fate, Fleet},
    load::Load,
    mesh::{all_are_ready, mesh, ready, soak},
    rig::{addresses, backends, until},
};
use http::Version;
use interop_tests::backend::Backend;
use mesh_client::{HttpVersion, MeshChannel, retry::RetryThrottling, testing::TestMesh};
use mesh_xds::control_plane::{
    Resources,
    proto::{
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster,
                    circuit_breakers::{Thresholds, thresholds::RetryBudget},
                },
                route::v3::{
                    Route, RouteAction,
                    retry_policy::{RetryBackOff, RetryHostPredicate},
                    route::Action,
                },
            },
            r#type::v3::Percent,
        },
        google::protobuf::{Duration as ProtoDuration, UInt32Value},
    },
    resources::{RouteExt, cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host_with},
};
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;

// === One of ten is bad ===

const PER_SECOND: u32 = 1_000;

/// "unavailable, 2 retries, previous_hosts".
fn elsewhere() -> Route {
    let mut route = route("", to_cluster("c")).with_retries("unavailable", 2);
    if let Some(Action::Route(action)) = &mut route.action
        && let Some(policy) = &mut action.retry_policy
    {
        let name = "envoy.retry_host_predicates.previous_hosts".to_owned();
        policy.retry_host_predicate = vec![RetryHostPredicate { name, config_type: None }];
    }
    route
}

fn resources(route: Route, cluster: Cluster, addresses: &[SocketAddr]) -> Resources {
    let name = cluster.name.clone();
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host_with("*", vec![route])]))
        .with(cluster)
        .with(endpoints(&name, addresses))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_backend_of_ten_that_fails_costs_no_call() {
    let [bad, b, c, d, e, f, g, h, i, j] = backends(["bad", "b", "c", "d", "e", "f", "g", "h", "i", "j"]).await;
    let all = addresses([&bad, &b, &c, &d, &e, &f, &g, &h, &i, &j]);
    let mesh = mesh(resources(elsewhere(), cluster_eds("c"), &all));
    let channel = ready(&mesh, "echo").await;
    all_are_ready(mesh.mesh()).await;
    let load =
        Load::start_with(channel, PER_SECOND, |_| Some(("rpc-behavior", "hostname=bad error-code-14".to_owned())));
    load.goes_on(u64::from(soak(3_000))).await;
    load.stop().await.were_all_answered_by(&[&b, &c, &d, &e, &f, &g, &h, &i, &j]);
    // No call met it twice: a tenth of the calls began there, and none came back.
    let (met, others) = (bad.counters().calls, [&b, &c, &d].map(|backend: &Backend| backend.counters().calls));
    assert!(
        met > 0 && others.iter().all(|calls| met <= calls + calls / 5),
        "{met} at the bad one, {others:?} at others"
    );
}

// === All are in trouble ===

const BACKENDS: usize = 5;
const CALLERS: usize = 100;

/// Of the policy: five attempts are as many as gRPC knows (A6).
const RETRIES: u64 = 4;

/// A mesh, and backends that fail all of its calls.
struct Storm {
    fleet: Fleet,
    channel: MeshChannel,
    mesh: TestMesh,
}

impl Storm {
    /// With these limits for the cluster, whose name must be another one in each test: retries are counted in the whole
    /// process.
    async fn start(cluster: &str, limits: Thresholds, throttling: Option<RetryThrottling>, fate: Fate) -> Self {
        let fleet = Fleet::start(BACKENDS, fate).await;
        let circuit_breakers = CircuitBreakers { thresholds: vec![limits], ..CircuitBreakers::default() };
        let cluster = Cluster { circuit_breakers: Some(circuit_breakers), ..cluster_eds(cluster) };
        let mut route = route("", to_cluster(&cluster.name)).with_retries("unavailable,5xx", RETRIES as u32);
        if let Some(Action::Route(RouteAction { retry_policy: Some(policy), .. })) = &mut route.action {
            let base_interval = Some(ProtoDuration { seconds: 0, nanos: 1_000_000 });
            policy.retry_back_off = Some(RetryBackOff { base_interval, max_interval: None });
        }
        let mesh = mesh(resources(route, cluster, fleet.addresses()));
        let mut builder = mesh.mesh().channel_builder("xds:///echo").http_protocol(HttpVersion::Http2);
        if let Some(throttling) = throttling {
            builder = builder.retry_throttling(throttling);
        }
        let channel = builder.build().expect("a valid target");
        channel.ready(Duration::from_secs(30)).await.expect("configured and connected");
        all_are_ready(mesh.mesh()).await;
        Self { fleet, channel, mesh }
    }

    /// `count` calls, all of which fail: how many attempts backends saw.
    async fn fails(&self, count: u64, call: fn() -> Call) -> u64 {
        let before = self.fleet.counts().attempts;
        let outcome = Crowd::make(&self.channel, CALLERS, count, call).await;
        assert_eq!((outcome.answered, outcome.failed), (0, count));
        let codes = |failure: &String| failure.starts_with("Unavailable") || failure.starts_with("503");
        assert!(outcome.failures.keys().all(codes), "{:?}", outcome.failures);
        self.fleet.counts().attempts - before
    }

    /// So many times all callers wait at a backend and are failed at once: how many retries were among them each time.
    async fn waves(&self, count: u32, call: fn() -> Call) -> Vec<u64> {
        self.fleet.holds();
        let crowd = Crowd::start(&self.channel, CALLERS, call);
        let mut retries = Vec::new();
        for _ in 0..count {
            retries.push(self.fleet.wave(CALLERS).await);
        }
        // The last one waits when all is well again.
        retries.push(self.fleet.gathered(CALLERS).await);
        crowd.stops();
        self.fleet.meets(Fate::Answered);
        let outcome = crowd.ended().await;
        assert_eq!(outcome.answered, CALLERS as u64, "those that waited; {:?}", outcome.failures);
        retries
    }

    /// All heal: each call succeeds at once, and nothing of the storm is left.
    async fn is_over(&self) {
        self.fleet.meets(Fate::Answered);
        all_are_ready(self.mesh.mesh()).await;
        let (before, count) = (self.fleet.counts(), u64::from(soak(500)));
        let outcome = Crowd::make(&self.channel, CALLERS, count, grpc).await;
        assert_eq!((outcome.answered, outcome.failed), (count, 0), "{:?}", outcome.failures);
        let after = self.fleet.counts();
        assert_eq!((after.attempts - before.attempts, after.retries - before.retries), (count, 0));
        until("every gauge at zero", || {
            let in_use = |cluster: &mesh_client::ClusterStatus| {
                (cluster.active_requests, cluster.pending_requests, cluster.active_retries) != (0, 0, 0)
            };
            !self.channel.status().clusters.iter().any(in_use)
        })
        .await;
    }
}

/// A storm of them. A connection that did not last is dialled again after a second: one call a caller is enough there.
fn calls(fate: Fate) -> u64 {
    if fate == Fate::Cut { CALLERS as u64 } else { u64::from(soak(300)) }
}

fn plain_http() -> Call {
    get("/").version(Version::HTTP_2)
}

/// More retries at once than there are callers: as if there were no limit. Plain HTTP has one of three (Envoy).
fn unlimited() -> Thresholds {
    max_retries(1_000)
}

fn max_retries(max: u32) -> Thresholds {
    Thresholds { max_retries: Some(UInt32Value { value: max }), ..Thresholds::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_makes_so_many_attempts_of_each_call_and_no_more() {
    for (cluster, fate, call) in [
        ("storm-unavailable", Fate::Unavailable, grpc as fn() -> Call),
        ("storm-503", Fate::Unavailable, plain_http),
        // "transparent once, then policy" (A6).
        ("storm-refused", Fate::Refused, grpc),
        ("storm-refused-http", Fate::Refused, plain_http),
        ("storm-cut", Fate::Cut, grpc),
    ] {
        let (storm, calls) = (Storm::start(cluster, unlimited(), None, fate).await, calls(fate));
        let attempts = storm.fails(calls, call).await;
        let by_the_book = calls * (1 + RETRIES + u64::from(fate == Fate::Refused));
        // A connection that is cut may take attempts with it that nobody has read.
        let holds = if fate == Fate::Cut { attempts <= by_the_book } else { attempts == by_the_book };
        assert!(holds && attempts > 0, "{cluster}: {attempts} attempts, and not {by_the_book}");
        storm.is_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_ends_the_retries_of_a_storm() {
    for (cluster, fate) in
        [("storm-tokens", Fate::Unavailable), ("storm-tokens-refused", Fate::Refused), ("storm-tokens-cut", Fate::Cut)]
    {
        let throttling = RetryThrottling::new(100.0, 1.0).expect("valid");
        let (storm, calls) = (Storm::start(cluster, unlimited(), Some(throttling), fate).await, calls(fate));
        let attempts = storm.fails(calls, grpc).await;
        // Of a hundred tokens each failure takes one, and a retry needs more than fifty to be left: 49 failures may have
        // one. Those that do not are of calls that have had their four.
        let (least, most) = ((49 * RETRIES).div_ceil(1 + RETRIES), 49);
        let transparent = if fate == Fate::Refused { calls } else { 0 };
        let retries = attempts.saturating_sub(calls + transparent);
        let fewer = fate == Fate::Cut || retries >= least;
        assert!(fewer && retries <= most, "{cluster}: {retries} retries, and not {least} to {most}");
        assert_eq!(storm.fails(calls, grpc).await.saturating_sub(calls + transparent), 0, "{cluster}: none is left");
        // A success brings back a token: a hundred of them are enough for the next call's retries.
        storm.is_over().await;
        storm.fleet.meets(Fate::Unavailable);
        assert_eq!(storm.fails(1, grpc).await, 1 + RETRIES, "{cluster}");
        storm.is_over().await;
    }
}

/// A limit on retries in flight is one on attempts: where all callers fail at once, so many repeat, and the others give
/// up and make their next call.
async fn keeps_within(cluster: &str, limits: Thresholds, most: u64, least: u64) {
    for fate in [Fate::Unavailable, Fate::Refused, Fate::Cut] {
        let storm = Storm::start(&format!("{cluster}-{fate:?}"), limits, None, fate).await;
        let waves = if fate == Fate::Cut { 3 } else { soak(6) };
        let waves = storm.waves(waves, grpc).await;
        assert!(waves.iter().all(|retries| *retries <= most), "{cluster}, {fate:?}: {waves:?}, and not {most} at most");
        // The first wave is of first attempts, and all of them fail.
        let second = if fate == Fate::Unavailable { waves[1] } else { least };
        assert!(waves[0] == 0 && second >= least, "{cluster}: {waves:?}, and not {least} at least");
        storm.is_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_retries_than_max_retries_are_in_flight_in_a_storm() {
    keeps_within("storm-max-retries", max_retries(10), 10, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_a_share_of_the_calls_in_a_storm() {
    let budget = |percent, least| {
        let (budget_percent, min_retry_concurrency) =
            (Some(Percent { value: percent }), Some(UInt32Value { value: least }));
        let retry_budget = Some(RetryBudget { budget_percent, min_retry_concurrency, ..Default::default() });
        // "the retry budget will override any configured retry circuit breaker" (Envoy).
        Thresholds { retry_budget, ..max_retries(0) }
    };
    // A fifth of the hundred calls, while all of them are in flight. The 16th to fail finds at least 85, a fifth of which
    // is 17; only the 17th may be refused: a fifth of 84 is no more than 16.
    keeps_within("storm-budget", budget(20.0, 3), 20, 16).await;
    // Five in any case, where the share is less.
    keeps_within("storm-budget-least", budget(1.0, 5), 5, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_has_three_retries_in_flight_in_a_storm() {
    let storm = Storm::start("storm-usual", Thresholds::default(), None, Fate::Unavailable).await;
    let waves = u64::from(soak(6));
    storm.fleet.holds();
    let crowd = Crowd::start(&storm.channel, CALLERS, plain_http);
    for _ in 0..waves {
        storm.fleet.wave(CALLERS).await;
    }
    storm.fleet.gathered(CALLERS).await;
    crowd.stops();
    storm.fleet.meets(Fate::Answered);
    let calls = crowd.ended().await.calls();
    let retries = storm.fleet.counts().attempts - calls;
    assert!((3..=3 * waves).contains(&retries), "{retries} retries in {waves} waves");
    storm.is_over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_are_gone_get_nothing_and_each_gets_one_connection_when_it_is_back() {
    let mut storm = Storm::start("storm-gone", unlimited(), None, Fate::Answered).await;
    storm.fleet.leaves().await;
    assert_eq!(storm.fails(u64::from(soak(1_000)), grpc).await, 0);
    storm.fleet.returns();
    storm.is_over().await;
    assert_eq!(storm.fleet.counts().connections, 2 * BACKENDS as u64);
}

/// How often one endpoint may have been dialled by then: with a second of pause, then 1.6 times as long and so on, each at
/// most a fifth shorter.
fn dials(elapsed: Duration) -> u64 {
    let (mut dials, mut pause, mut due) = (1, 0.8, 0.8);
    while due <= elapsed.as_secs_f64() {
        pause *= 1.6;
        due += pause;
        dials += 1;
    }
    dials
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_hang_up_are_not_dialled_for_each_call() {
    let mut storm = Storm::start("storm-hung-up", unlimited(), None, Fate::Answered).await;
    storm.fleet.leaves().await;
    storm.fleet.meets(Fate::HungUp);
    storm.fleet.returns();
    let (before, begin) = (storm.fleet.counts().connections, Instant::now());
    assert_eq!(storm.fails(u64::from(soak(1_000)), grpc).await, 0);
    let dialled = storm.fleet.counts().connections - before;
    // The first dial has no pause in front of it.
    let most = BACKENDS as u64 * (1 + dials(begin.elapsed()));
    assert!(dialled <= most, "{dialled} connections, and not {most} at most");
    storm.is_over().await;
}
