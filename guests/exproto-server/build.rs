//! Compiles proto/exproto.proto without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../../proto/exproto.proto");
    let descriptors = protox::compile(["../../proto/exproto.proto"], ["../../proto"])?;
    Ok(tonic_prost_build::configure().compile_fds(descriptors)?)
}
