//! Compiles proto/exproto.proto without protoc, so that cargo is all a build needs, assembles the WASI stub of the guests,
//! and lists the recorded conversations that `polygate demo` carries with it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
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
    let wasi_stub = "src/handler/wasm/wasi_stub.wat";
    println!("cargo:rerun-if-changed={wasi_stub}");
    fs::write(out_dir.join("wasi_stub.wasm"), wat::parse_file(wasi_stub)?)?;
    fs::write(out_dir.join("demo_conversations.rs"), demo_conversations()?)?;
    Ok(())
}

/// A Rust expression: name and text of every conversation, in the order of their names.
fn demo_conversations() -> Result<String, Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let folder = Path::new("examples/conversations/jt808");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join(folder))? {
        let name = entry?.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?;
        if name.ends_with(".conversation") {
            names.push(name);
        }
    }
    names.sort();
    let mut list = "&[\n".to_owned();
    for name in names {
        let file = root.join(folder).join(&name);
        println!("cargo:rerun-if-changed={}", file.display());
        writeln!(list, "    ({name:?}, include_str!({file:?})),")?;
    }
    list.push_str("]\n");
    Ok(list)
}
