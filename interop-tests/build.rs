//! Compiles the interop suite's protos with `protox`, so that no system `protoc` is needed.
//!
//! The descriptors are also left as `suite.bin`, from which peers in other languages make their messages. It does NOT
//! fetch anything: the `.proto` files are in `proto/`.

use prost::Message;
use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["grpc/testing/test.proto", "grpc/channelz/v1/channelz.proto"], ["proto"])?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("suite.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
