//! Compiles proto/exproto.proto without protoc, so that cargo is all a build needs.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/exproto.proto");
    println!("cargo:rerun-if-changed=wit");

    let descriptors = protox::compile(["proto/exproto.proto"], ["proto"])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("exproto.bin"), descriptors.encode_to_vec())?;
    // Payloads as `Bytes`: a message is taken out of the HTTP/2 frame without a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
