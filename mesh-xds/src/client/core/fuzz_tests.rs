//! Frames that no control plane should send: nothing panics, and each gets its one answer.
//!
//! From the bytes of a message to the requests that follow, everything but the transport. The corpus is what an istiod
//! sent, in SotW and in delta, and what it never says: names of authorities, errors and removals; `mutate` makes of it what is nearly right. `FUZZ_INPUTS` sets how many frames each variant
//! gets, `FUZZ_SEED` where the dice start. A failure prints the frame. It does NOT ask what the resources mean.

#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

use super::*;
use crate::{
    Authority, XdsServer,
    ads::{Asks, Offline},
    bootstrap::Transport,
    in_process::InProcess,
    name::canonical_string,
};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::listener::v3 as pb,
        service::discovery::v3::{
            DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapper, ResourceError, ResourceName,
        },
    },
    google::{protobuf::Any, rpc},
};
use fastrand::Rng;
use mutate::{Seed, mutant, seeds};
use prost::Message;
use std::{
    collections::BTreeSet,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

/// A debug build takes its time for each.
const INPUTS: u64 = if cfg!(debug_assertions) { 10_000 } else { 200_000 };

#[test]
fn no_sotw_frame_panics_the_client() {
    fuzz(Transport::Sotw);
}

#[test]
fn no_delta_frame_panics_the_client() {
    fuzz(Transport::Delta);
}

fn fuzz(transport: Transport) {
    let setting = |name, default| env::var(name).map_or(default, |value| value.parse().expect(name));
    let (inputs, seed) = (setting("FUZZ_INPUTS", INPUTS), setting("FUZZ_SEED", 29));
    let corpus = corpus(transport);
    let mut rng = Rng::with_seed(seed);
    let mut client = Client::new(transport, &corpus);
    for number in 0..inputs {
        let index = rng.usize(..corpus.len());
        let frame = if rng.u8(..4) == 0 { corpus[index].bytes.to_vec() } else { mutant(&corpus, index, &mut rng) };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            client.gets(&frame, number);
            client.lives_on(&mut rng);
        }));
        assert!(outcome.is_ok(), "input {number} of FUZZ_SEED={seed}: {:?}", Bytes::from(frame));
    }
    let Client { acks, nacks, .. } = client;
    println!("{inputs} inputs in {transport:?}: {acks} ACKs, {nacks} NACKs");
    // Otherwise the mutations only scratch the surface, or break nothing.
    assert!(acks > inputs / 20 && nacks > inputs / 20, "{acks} ACKs, {nacks} NACKs of {inputs}");
}

// === Corpus ===

/// Everything recorded, in the words of one variant.
fn corpus(transport: Transport) -> Vec<Seed> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../interop-tests/fixtures/istiod");
    let mut frames = Vec::new();
    for scenario in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let is_delta = scenario.to_string_lossy().contains("-delta");
        let files = fs::read_dir(&scenario).unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|file| file.extension().is_some_and(|end| end == "pb")) {
            let bytes = Bytes::from(fs::read(file).unwrap());
            frames.push(match (is_delta, transport) {
                (false, Transport::Sotw) | (true, Transport::Delta) => bytes,
                (false, Transport::Delta) => wrapped(&bytes),
                (true, Transport::Sotw) => unwrapped(&bytes),
            });
        }
    }
    frames.extend(unsaid(&frames, transport));
    seeds(frames)
}

/// What no istiod says: the listeners of some of its frames under `xdstp:` names, with errors and removals of others.
fn unsaid(frames: &[Bytes], transport: Transport) -> Vec<Bytes> {
    let federated = |name: &str| format!("xdstp://a/envoy.config.listener.v3.Listener/{name}?b=2&a=1");
    let error = |name: &str, code| ResourceError {
        resource_name: Some(resource_name(name)),
        error_detail: Some(rpc::Status { code, message: "why".to_owned(), details: Vec::new() }),
    };
    let mut unsaid = Vec::new();
    for (name, code) in listeners(&seeds(frames.to_vec())).into_iter().take(40).zip([5, 7, 14, 0].into_iter().cycle()) {
        let address = Some(Default::default());
        let listener = pb::Listener { name: federated(&name), address, ..pb::Listener::default() };
        let any = Any { type_url: Kind::Listener.type_url().to_owned(), value: listener.encode_to_vec() };
        let (type_url, resource_errors) =
            (any.type_url.clone(), vec![error(&name, code), error(&federated(&name), code)]);
        unsaid.push(match transport {
            Transport::Sotw => {
                let resources = vec![any];
                DiscoveryResponse { type_url, resources, resource_errors, ..Default::default() }.encode_to_vec().into()
            }
            Transport::Delta => DeltaDiscoveryResponse {
                type_url,
                resources: vec![Wrapper { name: federated(&name), resource: Some(any), ..Wrapper::default() }],
                removed_resources: vec![name.clone()],
                removed_resource_names: vec![resource_name(&name), resource_name(&federated(&name))],
                resource_errors,
                ..Default::default()
            }
            .encode_to_vec()
            .into(),
        });
    }
    unsaid
}

fn resource_name(name: &str) -> ResourceName {
    ResourceName { name: name.to_owned(), ..ResourceName::default() }
}

fn wrapped(frame: &Bytes) -> Bytes {
    let DiscoveryResponse { version_info, resources, type_url, .. } = DiscoveryResponse::decode(frame.clone()).unwrap();
    let wrap = |any: Any| Wrapper {
        name: crate::decode::peek_name(&any.value).unwrap_or_default().to_owned(),
        version: version_info.clone(),
        resource: Some(any),
        ..Wrapper::default()
    };
    let resources = resources.into_iter().map(wrap).collect();
    DeltaDiscoveryResponse { resources, type_url, ..DeltaDiscoveryResponse::default() }.encode_to_vec().into()
}

fn unwrapped(frame: &Bytes) -> Bytes {
    let DeltaDiscoveryResponse { resources, type_url, .. } = DeltaDiscoveryResponse::decode(frame.clone()).unwrap();
    let resources = resources.into_iter().filter_map(|wrapper| wrapper.resource).collect();
    DiscoveryResponse { resources, type_url, ..DiscoveryResponse::default() }.encode_to_vec().into()
}

// === Client ===

struct Client {
    server: ServerId,
    core: Core,
    caches: Vec<Cache>,
    offline: Offline,
    runtime: Runtime,
    now: Instant,
    listeners: Vec<String>,
    watched: BTreeSet<usize>,
    acks: u64,
    nacks: u64,
}

impl Client {
    /// One that watches every listener of the corpus.
    fn new(transport: Transport, corpus: &[Seed]) -> Self {
        let server = XdsServer::new(InProcess::new("cp").0);
        let server = if transport == Transport::Delta { server.delta() } else { server };
        let bootstrap = Bootstrap::builder().server(server).authority("a", Authority::default());
        let bootstrap = bootstrap.build().expect("one server is enough");
        let id = bootstrap.servers().map(|(id, _)| id).next().expect("there is one");
        let mut client = Self {
            server: id,
            core: Core::new(Arc::new(bootstrap)),
            caches: vec![Cache::new("n", &[])],
            offline: Offline::new(transport),
            runtime: Builder::new_current_thread().build().expect("a runtime without I/O"),
            now: Instant::now(),
            listeners: listeners(corpus).into_iter().map(canonical_string).collect(),
            watched: BTreeSet::new(),
            acks: 0,
            nacks: 0,
        };
        (0..client.listeners.len()).for_each(|index| client.toggle(index));
        client.turn(Input::Connected(id));
        client
    }

    /// A turn, and everything that is said goes out.
    fn turn(&mut self, input: Input) -> Vec<Request> {
        drop(self.core.turn(&mut self.caches, input, self.now));
        while self.core.is_under_way() {
            drop(self.core.go_on(&mut self.caches, self.now));
        }
        let requests = self.core.take_requests(self.server);
        for request in &requests {
            self.offline.sent(request);
            let sent = Input::Sent { server: self.server, kind: request.kind, serial: request.serial };
            drop(self.core.turn(&mut self.caches, sent, self.now));
        }
        requests
    }

    fn gets(&mut self, frame: &[u8], number: u64) {
        // Never that of another frame, nor of a request that answers none.
        let nonce = format!("n{number}");
        match self.runtime.block_on(self.offline.brings(frame, &nonce)) {
            // No message: the transport ends the stream.
            Err(error) => {
                self.offline.breaks();
                self.turn(Input::Disconnected { server: self.server, cause: Some(error.to_string()) });
                self.turn(Input::Connected(self.server));
            }
            // A type that was never requested has no answer.
            Ok(None) => {}
            Ok(Some(response)) => {
                let kind = response.kind;
                let is_asked = self.core.protocol(self.server).asked(kind);
                let requests = self.turn(Input::Received(self.server, response));
                match is_asked {
                    true => self.judge(kind, &nonce, &requests),
                    false => assert!(requests.is_empty(), "neither ACK nor NACK: {requests:?}"),
                }
            }
        }
    }

    fn judge(&mut self, kind: Kind, nonce: &str, requests: &[Request]) {
        let answers: Vec<_> = requests.iter().filter(|request| &*request.nonce == nonce).collect();
        let Some(answer) = answers.first() else { panic!("not answered: {requests:?}") };
        assert!(answers.iter().all(|answer| answer.kind == kind));
        assert!(answers.iter().skip(1).all(|repeat| repeat.nack.is_none()), "refused twice: {answers:?}");
        for request in requests {
            match &request.asks {
                Asks::All { names, .. } => assert!(!names.is_empty() || !request.kind.is_full_state(), "a wildcard"),
                Asks::Change { .. } => assert!(answers.len() == 1, "answered twice: {answers:?}"),
            }
        }
        if answer.nack.is_some() { self.nacks += 1 } else { self.acks += 1 }
    }

    /// What happens besides: time passes, and targets come and go.
    fn lives_on(&mut self, rng: &mut Rng) {
        match rng.u8(..64) {
            0 => self.toggle(rng.usize(..self.listeners.len())),
            1 => {
                self.now += Duration::from_secs(rng.u64(..20));
                self.turn(Input::TimerFired);
            }
            _ => {}
        }
    }

    fn toggle(&mut self, index: usize) {
        let id = TargetId(index as u64);
        let listener = self.listeners[index].as_str();
        let added = Subject::Target { listener: listener.into(), authority: listener.into() };
        let input = if self.watched.insert(index) { Input::Added(id, added) } else { Input::Removed(id) };
        if matches!(input, Input::Removed(_)) {
            self.watched.remove(&index);
        }
        self.turn(input);
    }
}

/// The names of all listeners, in whichever variant.
fn listeners(corpus: &[Seed]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for seed in corpus {
        // The variants agree in where the type URL is, and a wrapper holds a name: good enough to find listeners.
        let sotw = DiscoveryResponse::decode(seed.bytes.clone()).ok();
        let delta = DeltaDiscoveryResponse::decode(seed.bytes.clone()).ok();
        let bare = sotw.into_iter().flat_map(|frame| frame.resources);
        let out = delta.into_iter().flat_map(|frame| frame.resources).filter_map(|wrapper| wrapper.resource);
        let found = bare.chain(out).filter(|any| any.type_url == Kind::Listener.type_url());
        names.extend(found.filter_map(|any| crate::decode::peek_name(&any.value).map(str::to_owned)));
    }
    names
}
