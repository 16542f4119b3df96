//! Retries when many calls fail at once: they save what can be saved, and no more than that.
//!
//! An open loop of 1,000 calls a second. It does NOT test single conditions.

use crate::{
    load::Load,
    mesh::{all_are_ready, mesh, ready, soak},
    rig::{addresses, backends},
};
use interop_tests::backend::Backend;
use mesh_xds::control_plane::{
    Resources,
    proto::envoy::config::route::v3::{Route, retry_policy::RetryHostPredicate, route::Action},
    resources::{RouteExt, cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host_with},
};
use std::net::SocketAddr;

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

fn resources(route: Route, addresses: &[SocketAddr]) -> Resources {
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host_with("*", vec![route])]))
        .with(cluster_eds("c"))
        .with(endpoints("c", addresses))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_backend_of_ten_that_fails_costs_no_call() {
    let [bad, b, c, d, e, f, g, h, i, j] = backends(["bad", "b", "c", "d", "e", "f", "g", "h", "i", "j"]).await;
    let all = addresses([&bad, &b, &c, &d, &e, &f, &g, &h, &i, &j]);
    let mesh = mesh(resources(elsewhere(), &all));
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
