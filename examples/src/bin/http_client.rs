//! Plain HTTP over the mesh: one client for many hosts, each of them a service of the control plane's.
//!
//! ```sh
//! GRPC_XDS_BOOTSTRAP=bootstrap.json cargo run -p examples --bin http_client -- http://catalog.prod:8080/items
//! ```
//! It does NOT look the host up in DNS: `catalog.prod:8080` is the target `xds:///catalog.prod:8080`.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use mesh_client::{Mesh, MeshError};
use std::{env, error::Error};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [uri] = env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: URI")?;
    let mesh = Mesh::from_env().await?;
    let client = mesh.http_client();
    let response = client.request(Request::get(uri).body(Empty::<Bytes>::new())?).await?;
    // A 503 or 504 may be the backend's own, or the mesh's; then this says why.
    if let Some(error) = response.extensions().get::<MeshError>() {
        return Err(error.clone().into());
    }
    println!("{}", response.status());
    let body = response.into_body().collect().await?.to_bytes();
    println!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
