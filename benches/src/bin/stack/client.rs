//! The client process: one stack on one core, which runs the phases it is told to and says what came of them.
//!
//! It does NOT decide what to run.

use crate::{
    load::{self, Caller, Outcome, Phase},
    machine,
    options::Runtime,
    process::{self, BoxError, Peers},
    stacks::Stack,
};
use serde::{Deserialize, Serialize};
use std::{io::BufRead, time::Duration};
use tokio::sync::mpsc;

/// What a client process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) stack: Stack,
    pub(crate) peers: Peers,
    pub(crate) runtime: Runtime,
    pub(crate) core: Option<usize>,
}

/// The phases to run and where the outcomes go.
pub(crate) struct Session {
    phases: mpsc::Receiver<Phase>,
    report: fn(Phase, &Outcome) -> Result<(), BoxError>,
}

/// The role of a child: the setup is the first line of stdin, each further line is a phase.
pub(crate) fn main() -> Result<(), BoxError> {
    let setup: Setup = process::read(&mut std::io::stdin().lock())?;
    machine::pin(setup.core)?;
    // One: the parent sends the next phase when it has the outcome of the last.
    let (send, phases) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(phase) = serde_json::from_str(&line) else { break };
            if send.blocking_send(phase).is_err() {
                break;
            }
        }
        // The parent is gone or has finished: so has this process, whatever it is doing.
        std::process::exit(0);
    });
    block_on(&setup, Session { phases, report: |_, outcome| process::write(outcome) })
}

/// Runs phases in this very process.
pub(crate) fn run(
    setup: &Setup,
    phases: &[Phase],
    report: fn(Phase, &Outcome) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    machine::pin(setup.core)?;
    // All of them fit; the sender goes out of scope here, which ends the session after the last.
    let (send, receive) = mpsc::channel(phases.len().max(1));
    for phase in phases {
        send.try_send(*phase)?;
    }
    drop(send);
    block_on(setup, Session { phases: receive, report })
}

fn block_on(setup: &Setup, session: Session) -> Result<(), BoxError> {
    let mut builder = match setup.runtime {
        Runtime::Multi => tokio::runtime::Builder::new_multi_thread(),
        Runtime::Current => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.worker_threads(1).enable_all().build()?;
    runtime.block_on(setup.stack.serve(&setup.peers, session))
}

impl Session {
    /// Runs the phases as they come until no more can come.
    pub(crate) async fn serve(mut self, caller: impl Caller) -> Result<(), BoxError> {
        // Connects everything; a stack that cannot call at all says so here, once.
        let first = tokio::time::timeout(Duration::from_secs(10), caller.clone().call()).await;
        first.map_err(|_| "the first call did not return within 10 s")??;
        while let Some(phase) = self.phases.recv().await {
            let outcome = load::run(&caller, phase).await?;
            (self.report)(phase, &outcome)?;
        }
        Ok(())
    }
}
