//! What an operator reads in the log: configuration applied, NACK, endpoint state, ADS up and down, ignored fields; each
//! limited.
//!
//! Wording is NOT fixed here beyond what a search would look for.

use crate::{
    alone::alone,
    mesh::{applied, mesh, ready, service},
    rig::{addresses, backends, within},
};
use mesh_xds::{
    control_plane::{
        proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers::Thresholds},
        resources::{cluster_eds, endpoints},
    },
    resource::Kind,
};
use std::{
    io::{Result, Write},
    sync::{Arc, Mutex, PoisonError},
};
use tracing_subscriber::fmt::MakeWriter;

/// Collects lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Everything of level INFO and above, from every thread of this process.
    fn of_this_process() -> Self {
        let log = Self::default();
        tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).with_writer(log.clone()).init();
        log
    }

    /// The lines that hold all of `parts`.
    fn lines(&self, parts: &[&str]) -> usize {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
        text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    async fn says(&self, parts: &[&str]) {
        let said = async {
            while self.lines(parts) == 0 {
                tokio::task::yield_now().await;
            }
        };
        within(&format!("a line with {parts:?}"), said).await;
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn an_operator_reads_what_happens() {
    alone(
        "events::an_operator_reads_what_happens",
        |_| Vec::new(),
        async |_| {
            let log = Log::of_this_process();
            let [mut a] = backends(["a"]).await;
            let good = service("echo", &[a.address()]);
            let mesh = mesh(good.clone());
            let _channel = ready(&mesh, "echo").await;
            log.says(&["INFO", "ADS stream up"]).await;
            log.says(&["INFO", "configuration applied", "echo"]).await;
            log.says(&["INFO", "endpoint ready", "echo-cluster", &a.address().to_string()]).await;

            let limit = Thresholds { track_remaining: true, ..Default::default() };
            let limits = CircuitBreakers { thresholds: vec![limit], ..Default::default() };
            mesh.control_plane().set_unchecked(
                good.clone().with(Cluster { circuit_breakers: Some(limits), ..cluster_eds("echo-cluster") }),
            );
            log.says(&["INFO", "field has no effect", "echo-cluster", "circuit_breakers", "track_remaining"]).await;

            mesh.control_plane()
                .set_unchecked(good.clone().with(Cluster { lb_policy: 77, ..cluster_eds("echo-cluster") }));
            log.says(&["WARN", "NACKed", "echo-cluster", "lb_policy"]).await;

            a.kill().await;
            log.says(&["INFO", "endpoint connection closed", "echo-cluster"]).await;
            log.says(&["INFO", "endpoint failed", "echo-cluster"]).await;
            mesh.control_plane().refuse(true);
            mesh.control_plane().cut_streams();
            log.says(&["ADS stream ended"]).await;
            log.says(&["WARN", "ADS stream down", "refuses streams"]).await;
        },
    );
}

#[test]
fn a_thousand_changes_are_not_a_thousand_lines() {
    alone(
        "events::a_thousand_changes_are_not_a_thousand_lines",
        |_| Vec::new(),
        async |_| {
            const CHANGES: usize = 300;
            let log = Log::of_this_process();
            let [a, b] = backends(["a", "b"]).await;
            let good = service("echo", &addresses([&a, &b]));
            let mesh = mesh(good.clone());
            let _channel = ready(&mesh, "echo").await;
            for number in 0..CHANGES {
                // A valid change, so that something is applied, and a bad one, another each time.
                let one = [&a, &b][number % 2].address();
                let bad =
                    Cluster { lb_policy: 77 + i32::try_from(number).expect("small"), ..cluster_eds("echo-cluster") };
                mesh.control_plane().set_unchecked(good.clone().with(endpoints("echo-cluster", &[one])).with(bad));
                applied(&mesh, Kind::Endpoints, "echo-cluster").await;
            }
            for event in ["configuration applied", "NACKed", "endpoint ready", "resource error"] {
                let lines = log.lines(&[event]);
                assert!(0 < lines && lines < CHANGES, "{lines} of {event:?}");
            }
        },
    );
}
