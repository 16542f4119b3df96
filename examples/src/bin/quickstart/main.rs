//! The mesh in half a minute: a control plane on a directory of YAML, three backends, two clients, and what happens to
//! their calls when routes change, backends die or restart, and the control plane goes away.
//!
//! ```sh
//! cargo run --release -p examples --bin quickstart
//! cargo run --release -p examples --bin quickstart -- --serve
//! ```
//! Calls in flight on the backend that is killed would fail UNAVAILABLE (and be counted as `cut`) if the routes had no retry
//! policy. Any failure makes the exit code 1. With `--serve` everything stays up after the story, to play with: edit the YAML. Everything
//! is in this process and on loopback; nothing is mocked. It does NOT show how short a program can be: see the other
//! examples for that.

mod callers;
mod latencies;
mod screen;
mod story;
mod tally;
mod world;

use callers::Callers;
use screen::Screen;
use std::{env, process::ExitCode, sync::Arc};
use tally::Tally;
use tokio::signal;
use world::{Failed, World};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let stays = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--serve"] => true,
        _ => {
            eprintln!("usage: quickstart [--serve]");
            return ExitCode::from(2);
        }
    };
    match run(stays).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every call was answered.
async fn run(stays: bool) -> Result<bool, Failed> {
    let tally = Arc::new(Tally::new());
    let mut world = World::create(Arc::clone(&tally)).await?;
    screen::introduction(&world);
    let screen = Screen::start(Arc::clone(&tally));
    let callers = Callers::start(world.channel.clone(), world.mesh.http_client(), &tally);
    let told = tokio::select! {
        told = async {
            story::tell(&mut world, &tally).await?;
            if stays {
                play(&mut world, &tally).await;
            }
            Ok(())
        } => told,
        _ = signal::ctrl_c() => if told_all(&tally) { Ok(()) } else { Err("interrupted".into()) },
    };
    callers.stop().await;
    screen.stop().await;
    let picture = tally.picture();
    screen::conclusion(&picture);
    let (_, cut, failed) = picture.totals();
    told.map(|()| cut + failed == 0)
}

fn told_all(tally: &Tally) -> bool {
    tally.picture().chapters.len() > story::CHAPTERS.len() + 1
}

/// Everything stays up until Ctrl-C.
async fn play(world: &mut World, tally: &Tally) {
    tally.begin("yours: edit the YAML");
    let directory = world.directory().display().to_string();
    tally.say(format!("edit {directory}/*.yaml; Ctrl-C ends it"));
    loop {
        let news = world.reloaded().await;
        tally.say(format!("{directory}: {news}"));
    }
}
