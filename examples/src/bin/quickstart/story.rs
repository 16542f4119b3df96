//! What the quickstart does, in order. A chapter begins when its change is in effect.
//!
//! It does NOT count or draw.

use crate::{
    tally::Tally,
    world::{Failed, World},
};
use std::time::Duration;
use tokio::time::sleep;

/// The titles, for a reader who wants to know what is to come.
pub(crate) const CHAPTERS: [&str; 7] = [
    "90 % to v1, 10 % to v2",
    "routes.yaml: 50 / 50",
    "kill b (resets)",
    "revive b",
    "restart a (GOAWAY)",
    "stop the control plane",
    "start it: 10 / 90",
];

/// Positions of backends.
const A: usize = 0;
const B: usize = 1;

pub(crate) async fn tell(world: &mut World, tally: &Tally) -> Result<(), Failed> {
    let [ninety_ten, fifty_fifty, kill, revive, restart, stop, start] = CHAPTERS;

    tally.begin(ninety_ten);
    tally.say("v1 is the backends a and b, v2 is c; routes.yaml says 90 / 10");
    look(2500).await;

    let before = world.routes_version();
    world.edit_weights(50, 50)?;
    let took = world.rerouted(&before).await?;
    tally.begin(fifty_fifty);
    tally.say(format!("routes.yaml edited: in effect {} ms later", took.as_millis()));
    look(2500).await;

    tally.begin(kill);
    world.kill(B).await?;
    tally.say("b died: calls in flight there are made again, all others go elsewhere");
    look(1500).await;

    let took = world.revive(B).await?;
    tally.begin(revive);
    tally.say(format!("b is back: found again {} ms later", took.as_millis()));
    look(2000).await;

    tally.begin(restart);
    let took = world.stop(A).await;
    tally.say(format!("a said GOAWAY and answered what was in flight, in {} ms", took.as_millis()));
    look(500).await;
    let took = world.revive(A).await?;
    tally.say(format!("a is back: found again {} ms later", took.as_millis()));
    look(1500).await;

    let before = world.routes_version();
    tally.begin(stop);
    world.stop_control_plane().await?;
    tally.say("the control plane is gone: calls go on as before");
    look(1000).await;
    world.edit_weights(10, 90)?;
    tally.say("routes.yaml says 10 / 90 now, and nobody is there to tell");
    look(1000).await;

    world.start_control_plane().await?;
    let took = world.rerouted(&before).await?;
    tally.begin(start);
    tally.say(format!("the control plane is back: its news in effect {} ms later", took.as_millis()));
    look(2000).await;
    Ok(())
}

/// Time to look at the screen.
async fn look(millis: u64) {
    sleep(Duration::from_millis(millis)).await;
}
