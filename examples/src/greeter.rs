//! The service that README speaks of, as somebody might have written it.
//!
//! It knows nothing of the mesh.

use crate::proto::greeter::{HelloReply, HelloRequest, greeter_server::Greeter};
use tonic::{Request, Response, Status};

/// Greets.
#[derive(Clone, Copy, Debug, Default)]
pub struct MyGreeter;

#[tonic::async_trait]
impl Greeter for MyGreeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        match request.into_inner().name.as_str() {
            "" => Err(Status::invalid_argument("who is it?")),
            name => Ok(Response::new(HelloReply { message: format!("Hello, {name}!") })),
        }
    }
}
