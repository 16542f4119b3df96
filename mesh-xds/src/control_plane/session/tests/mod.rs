//! The machine of one stream, driven by hand in both dialects.

use super::*;
use crate::control_plane::resources::{self, Resources};
use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    google::{protobuf::Any, rpc::Status},
};
use prost::Message;

mod delta;
mod sotw;

const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();
const RDS: &str = Kind::RouteConfig.type_url();
const LDS: &str = Kind::Listener.type_url();

/// One session with what it is served.
struct Rig {
    session: Session,
    snapshot: Snapshot,
    hooks: Arc<Hooks>,
}

impl Rig {
    fn sotw(resources: &Resources) -> Self {
        Self::new(Dialect::Sotw, resources)
    }

    fn delta(resources: &Resources) -> Self {
        Self::new(Dialect::Delta, resources)
    }

    fn new(dialect: Dialect, resources: &Resources) -> Self {
        let snapshot = Snapshot::next(&Snapshot::default(), resources);
        Self { session: Session::new(1, dialect), snapshot, hooks: Arc::default() }
    }

    fn version(&self, type_url: &str, name: &str) -> String {
        self.snapshot.entry(type_url, name).expect("served").version.to_string()
    }

    fn received(&mut self, request: impl Into<Asked>) -> Verdict {
        match self.session.received(request.into(), self.hooks.manners, |node| node.id.clone()) {
            Event::Request { verdict, .. } => verdict,
            other => panic!("not a request: {other:?}"),
        }
    }

    // === SotW ===

    fn set(&mut self, resources: &Resources) {
        self.snapshot = Snapshot::next(&self.snapshot, resources);
    }

    fn hook(&mut self, change: impl FnOnce(&mut Hooks)) {
        let mut hooks = Hooks::clone(&self.hooks);
        change(&mut hooks);
        self.hooks = Arc::new(hooks);
    }

    fn asks(&mut self, type_url: &str, names: &[&str], nonce: &str) -> Verdict {
        self.request(type_url, names, nonce, None)
    }

    fn request(&mut self, type_url: &str, names: &[&str], nonce: &str, error: Option<&str>) -> Verdict {
        self.received(DiscoveryRequest {
            node: node(),
            type_url: type_url.into(),
            resource_names: strings(names),
            response_nonce: nonce.into(),
            error_detail: error.map(refusal),
            ..Default::default()
        })
    }

    /// The next answer, as (type, nonce, names), checked against its bytes.
    fn answer(&mut self) -> Option<(String, String, Vec<String>)> {
        let answer = self.session.next(&self.snapshot, &self.hooks, true)?;
        let response = DiscoveryResponse::decode(answer.pieces.concat().as_slice()).expect("a DiscoveryResponse");
        match answer.event {
            Some(Event::Response { type_url, nonce, names, version, .. }) => {
                assert_eq!(
                    (&response.type_url, &response.nonce, &response.version_info),
                    (&type_url, &nonce, &version)
                );
                Some((type_url, nonce, names))
            }
            other => panic!("not a response: {other:?}"),
        }
    }

    #[track_caller]
    fn answers(&mut self, type_url: &str, nonce: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(self.answer(), Some((type_url.to_owned(), nonce.to_owned(), names)));
    }

    // === Delta ===

    fn subscribes(&mut self, type_url: &str, names: &[&str]) -> Verdict {
        self.says(type_url, names, &[], "", None)
    }

    fn unsubscribes(&mut self, type_url: &str, names: &[&str]) -> Verdict {
        self.says(type_url, &[], names, "", None)
    }

    fn acks(&mut self, type_url: &str, nonce: &str) -> Verdict {
        self.says(type_url, &[], &[], nonce, None)
    }

    fn nacks(&mut self, type_url: &str, nonce: &str, reason: &str) -> Verdict {
        self.says(type_url, &[], &[], nonce, Some(reason))
    }

    fn says(&mut self, type_url: &str, subscribe: &[&str], un: &[&str], nonce: &str, error: Option<&str>) -> Verdict {
        self.received(DeltaDiscoveryRequest {
            node: node(),
            type_url: type_url.into(),
            resource_names_subscribe: strings(subscribe),
            resource_names_unsubscribe: strings(un),
            response_nonce: nonce.into(),
            error_detail: error.map(refusal),
            ..Default::default()
        })
    }

    /// The first request of a type, from a client that remembers an earlier stream.
    fn resumes(&mut self, type_url: &str, names: &[&str], held: &[(&str, &str)]) -> Verdict {
        let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
        self.received(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: strings(names),
            initial_resource_versions: held.collect(),
            ..Default::default()
        })
    }

    /// The next answer, checked against its bytes and the versions of what it holds.
    fn delta_answer(&mut self) -> Option<DeltaDiscoveryResponse> {
        let answer = self.session.next(&self.snapshot, &self.hooks, true)?;
        let response = DeltaDiscoveryResponse::decode(answer.pieces.concat().as_slice()).expect("well-formed");
        let Some(Event::Response { type_url, nonce, names, removed, version, .. }) = answer.event else {
            panic!("not a response");
        };
        let said = (&response.type_url, &response.nonce, &response.system_version_info, &response.removed_resources);
        assert_eq!(said, (&type_url, &nonce, &version, &removed));
        assert_eq!(response.resources.iter().map(|resource| resource.name.clone()).collect::<Vec<_>>(), names);
        for resource in &response.resources {
            assert_eq!(resource.version, self.version(&type_url, &resource.name));
        }
        Some(response)
    }

    /// The next answer has these resources and these removals.
    #[track_caller]
    fn tells(&mut self, type_url: &str, nonce: &str, names: &[&str], removed: &[&str]) {
        let answer = self.delta_answer().expect("an answer");
        let told: Vec<_> = answer.resources.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!((answer.type_url.as_str(), answer.nonce.as_str(), told.as_slice()), (type_url, nonce, names));
        assert_eq!(answer.removed_resources, removed);
    }

    #[track_caller]
    fn tells_nothing(&mut self) {
        assert_eq!(self.delta_answer(), None);
    }

    fn has_acked(&self, type_url: &str, name: &str) -> bool {
        self.session.has_acked(type_url, name, self.snapshot.entry(type_url, name))
    }
}

fn node() -> Option<Node> {
    Some(Node { id: "node".into(), ..Default::default() })
}

fn refusal(message: &str) -> Status {
    Status { message: message.into(), ..Default::default() }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).into()).collect()
}

fn clusters(names: &[&str]) -> Resources {
    names.iter().fold(Resources::default(), |all, name| all.with(resources::cluster_eds(name)))
}

fn assignments(ports: &[(&str, u16)]) -> Resources {
    ports.iter().fold(Resources::default(), |all, (name, port)| {
        all.with(resources::endpoints(name, &[([127, 0, 0, 1], *port).into()]))
    })
}
