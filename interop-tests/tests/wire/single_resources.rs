//! Resources watched by themselves with `mesh-xds` alone, a user's own type among them.
//!
//! It does NOT make calls.

use crate::rig::{until, within};
use mesh_xds::{
    Bootstrap, ResourceUpdate, ResourceWatch, XdsClient,
    control_plane::{
        ControlPlane, Resources,
        proto::google::protobuf::Any,
        resources::{cluster_eds, endpoints},
    },
    resource::{Cluster, ClusterLoadAssignment, Invalid, ResourceType, Watchable},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

/// `name=limit`, as text.
#[derive(Debug, PartialEq)]
struct Quota {
    name: String,
    limit: u32,
}

impl ResourceType for Quota {
    const TYPE_URL: &'static str = "type.googleapis.com/example.Quota";

    fn name(bytes: &[u8]) -> Option<String> {
        std::str::from_utf8(bytes).ok()?.split_once('=').map(|(name, _)| name.to_owned())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let name = Self::name(bytes).ok_or_else(|| Invalid::new("not name=limit"))?;
        let limit = std::str::from_utf8(&bytes[name.len() + 1..]).ok().and_then(|limit| limit.parse().ok());
        Ok(Self { name, limit: limit.ok_or_else(|| Invalid::new("not a number").within("limit"))? })
    }
}

fn quotas(all: &[&str]) -> Resources {
    let mut resources = Resources::default();
    for text in all {
        let (name, _) = text.split_once('=').expect("name=limit");
        let any = Any { type_url: Quota::TYPE_URL.to_owned(), value: text.as_bytes().to_vec() };
        resources.insert_raw(name, any);
    }
    resources
}

fn client(control_plane: &ControlPlane) -> XdsClient {
    let server = control_plane.in_process();
    XdsClient::connect(Bootstrap::builder().node_id("alone").server(server).build().expect("a server"))
}

/// The next value, with its ambient error.
async fn next<T: Watchable>(watch: &mut ResourceWatch<T>) -> (Arc<T>, Option<Arc<str>>) {
    within("the resource", async {
        loop {
            match watch.changed().await.expect("the client lives") {
                ResourceUpdate::Ready { value, error } => return (value, error),
                ResourceUpdate::Pending | ResourceUpdate::Failed(_) => {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_type_of_the_users_own_is_watched_acked_and_nacked_like_any_other() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(quotas(&["a=1", "b=2"]));
    let client = client(&control_plane);
    let mut watch = client.watch_resource::<Quota>("a");
    assert_eq!(next(&mut watch).await, (Arc::new(Quota { name: "a".to_owned(), limit: 1 }), None));
    control_plane.wait_for_ack(Quota::TYPE_URL, "a").await;
    let before = watch.current();
    // A bad one is NACKed with its place, and the good one stays.
    control_plane.set_unchecked(quotas(&["a=many", "b=3"]));
    let nack = control_plane.wait_for_nack(Quota::TYPE_URL).await;
    assert!(nack.contains("Quota \"a\": limit: not a number"), "{nack}");
    let (value, error) = next(&mut watch).await;
    assert_eq!(value.limit, 1);
    assert!(error.is_some_and(|error| error.contains("limit: not a number")));
    assert_ne!(watch.current(), before);
    control_plane.set_unchecked(quotas(&["a=4"]));
    assert_eq!(next(&mut watch).await, (Arc::new(Quota { name: "a".to_owned(), limit: 4 }), None));
    // Unwatched, unsubscribed.
    let subscribed = || client.status().resources.len();
    assert_eq!(subscribed(), 1);
    drop(watch);
    control_plane.wait_for_unsubscription(Quota::TYPE_URL, "a").await;
}

#[tokio::test]
async fn one_resource_is_watched_without_what_it_refers_to() {
    let control_plane = ControlPlane::new();
    let address = "127.0.0.1:1".parse().expect("an address");
    let resources = Resources::default().with(cluster_eds("c")).with(endpoints("c", &[address]));
    control_plane.set_unchecked(resources);
    let client = client(&control_plane);
    let mut cluster = client.watch_resource::<Cluster>("c");
    assert_eq!(next(&mut cluster).await.0.name.as_str(), "c");
    assert_eq!(client.status().resources.len(), 1, "the cluster, and not its endpoints");
    let mut assignment = client.watch_resource::<ClusterLoadAssignment>("c");
    assert_eq!(next(&mut assignment).await.0.endpoints().count(), 1);
    // A second watch of the same resource gets what there is, and costs no request.
    let mut again = client.watch_resource::<Cluster>("c");
    assert_eq!(next(&mut again).await.0, next_of(&cluster));
}

fn next_of(watch: &ResourceWatch<Cluster>) -> Arc<Cluster> {
    match watch.current() {
        ResourceUpdate::Ready { value, .. } => value,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_resource_of_an_unknown_authority_has_failed_at_once() {
    let control_plane = ControlPlane::new();
    let mut watch = client(&control_plane).watch_resource::<Cluster>("xdstp://nope/t/c");
    let failed = within("the failure", async { watch.changed().await.expect("the client lives") }).await;
    assert!(matches!(&failed, ResourceUpdate::Failed(why) if why.contains("has no authority \"nope\"")), "{failed:?}");
}

/// Comparisons that have panicked; the first two do.
static COMPARED: AtomicU32 = AtomicU32::new(0);

/// A type whose user made a mistake.
#[derive(Debug)]
struct Careless(u8);

impl PartialEq for Careless {
    fn eq(&self, other: &Self) -> bool {
        assert!(COMPARED.fetch_add(1, Ordering::Relaxed) >= 2, "a mistake in the user's code");
        self.0 == other.0
    }
}

impl ResourceType for Careless {
    const TYPE_URL: &'static str = "type.googleapis.com/example.Careless";

    fn name(_: &[u8]) -> Option<String> {
        Some("c".to_owned())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        bytes.first().map(|byte| Self(*byte)).ok_or_else(|| Invalid::new("empty"))
    }
}

#[tokio::test]
async fn a_panic_of_user_code_takes_nothing_away_and_the_client_starts_again() {
    let control_plane = ControlPlane::new();
    let world = |byte: u8, port: u16| {
        let mut resources =
            Resources::default().with(endpoints("e", &[SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]));
        resources.insert_raw("c", Any { type_url: Careless::TYPE_URL.to_owned(), value: vec![byte] });
        resources
    };
    control_plane.set_unchecked(world(1, 1));
    let client = client(&control_plane);
    let mut careless = client.watch_resource::<Careless>("c");
    let mut other = client.watch_resource::<ClusterLoadAssignment>("e");
    assert_eq!(next(&mut careless).await.0.0, 1);
    next(&mut other).await;
    // The new value is compared with the old one, first by the stream, then by the driver, and both panic.
    control_plane.set_unchecked(world(2, 2));
    until("both panics", || COMPARED.load(Ordering::Relaxed) >= 2).await;
    assert!(matches!(other.current(), ResourceUpdate::Ready { .. }), "{:?}", other.current());
    assert_eq!(next(&mut careless).await.0.0, 2);
    // Whoever else is watched is followed again as well.
    control_plane.set_unchecked(world(2, 3));
    within("the newest", async {
        while next(&mut other).await.0.endpoints().all(|endpoint| endpoint.addresses.first.port() != 3) {}
    })
    .await;
}
