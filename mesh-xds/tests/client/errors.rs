//! What a bad or a deleted resource does to those who use it (A46, A53, A88).

use super::*;
use mesh_xds::{ResourceState, control_plane::proto::google::protobuf::Any};

#[tokio::test(start_paused = true)]
async fn a_nack_names_the_field_and_good_siblings_take_effect() {
    let control_plane = ControlPlane::new();
    let split = xds::virtual_host_weighted("*", &[("good", 1), ("bad", 1)]);
    let mut bad = xds::cluster_eds("bad");
    bad.lb_policy = 77;
    let base = || {
        Resources::default()
            .with(xds::listener("web", "routes"))
            .with(xds::route_config("routes", vec![split.clone()]))
            .with(xds::cluster_eds("good"))
            .with(xds::endpoints("good", &[address(1)]))
            .with(xds::endpoints("bad", &[address(9)]))
    };
    control_plane.set_unchecked(base().with(bad));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let first = snapshot(&mut watch, serves("good", 1)).await;
    let error = cluster(&first, "bad").expect_err("NACKed with nothing cached");
    assert!(error.contains("\"bad\"") && error.contains("lb_policy") && error.contains(NODE), "{error}");
    let nack = soon(control_plane.wait_for_nack(CDS)).await;
    assert!(nack.contains("Cluster \"bad\": lb_policy") && !nack.contains("good"), "{nack}");

    control_plane.set_unchecked(base().with(xds::cluster_eds("bad")));
    snapshot(&mut watch, serves("bad", 9)).await;
    soon(control_plane.wait_for_ack(CDS, "bad")).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_cluster_serves_on_and_says_so() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    // As istiod does for a deleted subset: CDS forgets it, EDS answers with all endpoints of the service.
    let mut without = web("a", 1);
    without.remove(CDS, "a");
    control_plane.set_unchecked(without.clone());
    let noted = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_some())
    })
    .await;
    assert_eq!(cluster(&noted, "a"), Ok(vec![address(1)]));
    control_plane.set_unchecked(without.with(xds::endpoints("a", &[address(1), address(2)])));
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    idle().await;
    let Target::Ready(now) = watch.current() else { panic!("serves on") };
    assert_eq!(cluster(&now, "a"), Ok(vec![address(1)]), "a deleted cluster gets no new endpoints");
    control_plane.set_unchecked(web("a", 1).with(xds::endpoints("a", &[address(1), address(2)])));
    snapshot(&mut watch, |snapshot| cluster(snapshot, "a") == Ok(vec![address(1), address(2)])).await;
}

/// A client of a server that wants `feature`.
fn client_with(feature: &str, control_plane: &ControlPlane) -> XdsClient {
    let bootstrap = Bootstrap::builder().node_id(NODE).server(control_plane.in_process()).server_feature(feature);
    XdsClient::connect_on(&Handle::current(), bootstrap.build().expect("one server"))
}

fn broken(cluster: &str, endpoint: u8) -> Resources {
    let mut bad = xds::cluster_eds(cluster);
    bad.lb_policy = 77;
    web(cluster, endpoint).with(bad)
}

#[tokio::test(start_paused = true)]
async fn a_nack_of_a_served_cluster_keeps_its_last_good_value() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let good = snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(CDS, "a")).await;
    let version = || client.status().resource(Kind::Cluster, "a").expect("subscribed").version.clone();
    let accepted = version();

    control_plane.set_unchecked(broken("a", 2));
    let nack = soon(control_plane.wait_for_nack(CDS)).await;
    assert!(nack.contains("Cluster \"a\": lb_policy"), "{nack}");
    let kept = snapshot(&mut watch, serves("a", 2)).await;
    let (before, now) = (good.clusters["a"].state.as_ref(), kept.clusters["a"].state.as_ref());
    let (before, now) = (&before.expect("resolved").first, &now.expect("resolved").first);
    assert!(Arc::ptr_eq(&before.cluster, &now.cluster), "the bad one takes no effect");
    let note = now.note.as_ref().expect("says so");
    assert!(note.contains("lb_policy") && note.contains(NODE), "{note}");
    assert_eq!(version(), accepted);
    let status = client.status();
    let state = &status.resource(Kind::Cluster, "a").expect("subscribed").state;
    assert!(matches!(state, ResourceState::Nacked { error } if error.contains("lb_policy")), "{state:?}");
    // "New watcher on a resource with value and ambient error gets both" - A88.
    let late = snapshot(&mut client.watch(target("web")), |_| true).await;
    assert_eq!(late.clusters["a"].state, kept.clusters["a"].state);
    let late = snapshot(&mut client.watch(TargetName::new("web", "another.example")), |_| true).await;
    assert_eq!(late.clusters["a"].state, kept.clusters["a"].state);

    control_plane.set_unchecked(web("a", 3));
    let clear = |snapshot: &Snapshot| {
        serves("a", 3)(snapshot)
            && snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_none())
    };
    snapshot(&mut watch, clear).await;
    soon(control_plane.wait_for_ack(CDS, "a")).await;
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_cannot_be_decoded_is_nacked_and_hurts_nobody() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(CDS, "a")).await;
    let garbage = Any { type_url: CDS.to_owned(), value: vec![0xff] };
    control_plane.send_raw(CDS, "raw", vec![garbage]);
    let nack = soon(control_plane.wait_for_nack(CDS)).await;
    assert!(nack.contains("without a name"), "{nack}");
    // Whatever it was, it may have been "a": that is not deleted.
    assert_eq!(client.status().resource(Kind::Cluster, "a").expect("subscribed").state, ResourceState::Acked);
    control_plane.set_unchecked(web("a", 2));
    snapshot(&mut watch, serves("a", 2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_listener_serves_on_and_says_so() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    let mut without = web("a", 2);
    without.remove(LDS, "web");
    control_plane.set_unchecked(without);
    snapshot(&mut watch, serves("a", 2)).await;
    let status = client.status();
    let listener = status.resource(Kind::Listener, "web").expect("subscribed");
    assert_eq!(listener.state, ResourceState::DoesNotExist);
    assert!(
        listener.failure.as_ref().is_some_and(|failure| failure.details.contains("deleted"))
            && listener.version.is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn with_fail_on_data_errors_what_is_deleted_or_bad_is_gone_until_it_returns() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client_with("fail_on_data_errors", &control_plane);
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;

    let mut without = web("a", 1);
    without.remove(CDS, "a");
    control_plane.set_unchecked(without);
    let gone = snapshot(&mut watch, |snapshot| snapshot.clusters["a"].state.is_err()).await;
    assert!(cluster(&gone, "a").expect_err("deleted").contains("deleted"));
    soon(control_plane.wait_for_unsubscription(EDS, "a")).await;
    control_plane.set_unchecked(web("a", 2));
    snapshot(&mut watch, serves("a", 2)).await;

    control_plane.set_unchecked(broken("a", 2));
    let bad = snapshot(&mut watch, |snapshot| snapshot.clusters["a"].state.is_err()).await;
    assert!(cluster(&bad, "a").expect_err("NACKed").contains("lb_policy"));
    control_plane.set_unchecked(web("a", 3));
    snapshot(&mut watch, serves("a", 3)).await;

    let mut without = web("a", 3);
    without.remove(LDS, "web");
    control_plane.set_unchecked(without);
    let error = failure(&mut watch).await;
    assert!(error.contains("Listener \"web\"") && error.contains("deleted") && error.contains(NODE), "{error}");
    control_plane.set_unchecked(web("a", 4));
    snapshot(&mut watch, serves("a", 4)).await;
}

#[tokio::test(start_paused = true)]
async fn where_the_timer_is_transient_it_takes_thirty_seconds() {
    let control_plane = ControlPlane::new();
    control_plane.silent(true);
    let client = client_with("resource_timer_is_transient_error", &control_plane);
    let began = Instant::now();
    let error = failure(&mut client.watch(target("web"))).await;
    assert_eq!(began.elapsed().as_secs(), 30);
    assert!(error.contains("did not answer") && !error.contains("does not exist"), "{error}");
    assert_eq!(client.status().resource(Kind::Listener, "web").expect("subscribed").state, ResourceState::Timeout);
}

#[tokio::test(start_paused = true)]
async fn a_delta_server_that_comes_back_with_nothing_new_is_an_outage_no_longer() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client_with("delta_ads", &control_plane);
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    control_plane.refuse(true);
    control_plane.cut_streams();
    let has_note =
        |snapshot: &Snapshot| snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_some());
    snapshot(&mut watch, has_note).await;
    let mut events = control_plane.events();
    control_plane.refuse(false);
    // Every resource is held in the version of the server, which has no reason to say a word.
    snapshot(&mut watch, |snapshot| !has_note(snapshot)).await;
    while let Ok(event) = timeout(Duration::from_secs(60), events.recv()).await {
        assert!(!matches!(event, Ok(Event::Response { .. })), "{event:?}");
    }
}
