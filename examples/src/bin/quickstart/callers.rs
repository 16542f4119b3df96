//! Two clients of the mesh that call at a steady rate: tonic's generated one, and one for plain HTTP.
//!
//! Open loop: a call begins when its time has come, however long others take. Every answer is compared with what was
//! sent. What the results mean is NOT decided here.

use crate::tally::{Answer, BACKENDS, Failure, Protocol, Tally};
use bytes::Bytes;
use examples::{
    backend::{BACKEND_HEADER, WORKED_HEADER},
    proto::echo::{EchoRequest, echo_client::EchoClient},
};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use mesh_client::{HttpClient, MeshChannel, MeshError};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, timeout},
};
use tonic::Code;

/// Calls per second of each of the two.
pub(crate) const RATE: u32 = 400;

/// A call without an answer by then has failed. Long, so that only a hang is one.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a backend says of itself.
struct Reply {
    backend: String,
    /// Microseconds.
    worked: u64,
}

impl Reply {
    fn known(self) -> Result<Answer, Failure> {
        let backend = BACKENDS.iter().position(|name| *name == self.backend);
        let backend = backend.ok_or_else(|| failed(format!("an answer from {:?}, whom nobody knows", self.backend)))?;
        Ok(Answer { backend, worked: Duration::from_micros(self.worked) })
    }
}

/// The running clients.
pub(crate) struct Callers {
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<()>>,
}

impl Callers {
    pub(crate) fn start(channel: MeshChannel, http: HttpClient, tally: &Arc<Tally>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let grpc = {
            let client = EchoClient::new(channel);
            steadily(Protocol::Grpc, Arc::clone(tally), stopped.clone(), move |text| by_grpc(client.clone(), text))
        };
        let http = steadily(Protocol::Http, Arc::clone(tally), stopped, move |text| by_http(http.clone(), text));
        Self { stop, clients: vec![tokio::spawn(grpc), tokio::spawn(http)] }
    }

    /// Makes no more calls; returns when the last one has ended.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        for client in self.clients {
            // An error is a panic of the task, whose message is out already.
            let _ = client.await;
        }
    }
}

async fn steadily<F>(
    protocol: Protocol,
    tally: Arc<Tally>,
    mut stopped: watch::Receiver<bool>,
    call: impl Fn(String) -> F,
) where
    F: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    let mut calls = JoinSet::new();
    for number in 0_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        // Forget those that have ended.
        while calls.try_join_next().is_some() {}
        let (tally, answer) = (Arc::clone(&tally), call(format!("call {number}")));
        calls.spawn(async move {
            let began = Instant::now();
            let answer = timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(failed("no answer within 10 s")));
            tally.ended(protocol, began, answer.and_then(Reply::known));
        });
    }
    while calls.join_next().await.is_some() {}
}

/// The generated client, as everywhere: only the channel is the mesh's.
async fn by_grpc(mut client: EchoClient<MeshChannel>, text: String) -> Result<Reply, Failure> {
    let reply = client.echo(EchoRequest { text: text.clone() }).await.map_err(|status| Failure {
        unavailable: status.code() == Code::Unavailable,
        text: format!("{:?}: {}", status.code(), status.message()),
    })?;
    let reply = reply.into_inner();
    same(&text, &reply.text)?;
    Ok(Reply { backend: reply.backend, worked: reply.worked })
}

async fn by_http(client: HttpClient, text: String) -> Result<Reply, Failure> {
    let request = Request::post("http://echo.prod/").body(Full::new(Bytes::from(text.clone())));
    let request = request.map_err(|error| failed(error.to_string()))?;
    let response = client.request(request).await.map_err(broken)?;
    if let Some(error) = response.extensions().get::<MeshError>() {
        return Err(broken(error.clone()));
    }
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(broken)?.to_bytes();
    if head.status != StatusCode::OK {
        return Err(failed(format!("{}: {}", head.status, String::from_utf8_lossy(&body))));
    }
    same(&text, &String::from_utf8_lossy(&body))?;
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let worked = header(WORKED_HEADER).and_then(|micros| micros.parse().ok());
    let reply = header(BACKEND_HEADER).map(str::to_owned).zip(worked);
    reply.map(|(backend, worked)| Reply { backend, worked }).ok_or_else(|| failed("an answer without a name"))
}

/// A failure that the mesh reports, not a backend.
fn broken(error: MeshError) -> Failure {
    let status = error.http_status();
    Failure { unavailable: status == StatusCode::SERVICE_UNAVAILABLE, text: format!("{status}: {error}") }
}

fn failed(text: impl Into<String>) -> Failure {
    Failure { unavailable: false, text: text.into() }
}

fn same(sent: &str, received: &str) -> Result<(), Failure> {
    if sent == received { Ok(()) } else { Err(failed(format!("{sent:?} came back as {received:?}"))) }
}
