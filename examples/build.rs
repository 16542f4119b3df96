//! Compiles the examples' protos with `protox`, so that no system `protoc` is needed.
//!
//! It does NOT fetch anything: the `.proto` files are in `proto/`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["echo.proto", "greeter.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
