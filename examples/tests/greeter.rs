//! A service tested through the mesh: the YAML of production, the whole client, no control plane to run.
//!
//! It does NOT test the mesh: interop-tests does.

use examples::{
    greeter::MyGreeter,
    proto::greeter::{HelloRequest, greeter_client::GreeterClient, greeter_server::GreeterServer},
};
use mesh_client::testing::TestMesh;
use std::error::Error;
use tonic::transport::{Server, server::TcpIncoming};

#[tokio::test]
async fn a_caller_is_greeted_by_name() -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let yaml = include_str!("greeter.yaml").replace("50051", &incoming.local_addr()?.port().to_string());
    tokio::spawn(Server::builder().add_service(GreeterServer::new(MyGreeter)).serve_with_incoming(incoming));

    let test = TestMesh::from_yaml(&yaml)?;
    let mut greeter = GreeterClient::new(test.mesh().channel("xds:///greeter.prod:8080")?);
    let reply = greeter.say_hello(HelloRequest { name: "Ada".to_owned() }).await?;
    assert_eq!(reply.into_inner().message, "Hello, Ada!");
    Ok(())
}
