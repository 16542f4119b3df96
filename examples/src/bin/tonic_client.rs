//! tonic's generated client over the mesh.
//!
//! ```sh
//! GRPC_XDS_BOOTSTRAP=bootstrap.json cargo run -p examples --bin tonic_client -- xds:///greeter.prod:8080 Ada
//! ```
//! Without a control plane at hand, start the example `control_plane`. It does NOT retry: what the mesh repeats by
//! itself, nobody here sees.

use examples::proto::greeter::{HelloRequest, greeter_client::GreeterClient};
use mesh_client::Mesh;
use std::{env, error::Error, time::Duration};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [target, name] = env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: TARGET NAME")?;
    let mesh = Mesh::from_env().await?;
    let channel = mesh.channel(&target)?;
    // Not needed: the first call would wait, too. But this says what is missing when it takes too long.
    channel.ready(Duration::from_secs(10)).await?;
    let mut greeter = GreeterClient::new(channel);
    let reply = greeter.say_hello(HelloRequest { name }).await?;
    println!("{}", reply.into_inner().message);
    // Lets calls in flight finish, if there were some, and closes the connections.
    mesh.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
