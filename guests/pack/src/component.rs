//! From a core module to a component that the gateway will take.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wit_component::{ComponentEncoder, DecodedWasm, StringEncoding};
use wit_parser::{Resolve, WorldId, WorldItem};

use crate::sources::Language;

/// What a guest may import, and what it must export.
const ALLOWED: [&str; 2] = ["polygate:handler/types@0.1.0", "polygate:handler/adapter@0.1.0"];
const EXPORTED: &str = "polygate:handler/handler@0.1.0";

/// Makes a component of a core module, and checks that it imports nothing but the gateway's adapter and exports the handler.
pub(crate) fn from_module(module: &[u8], language: Language, wit: &Path) -> Result<Vec<u8>> {
    let mut module = module.to_vec();
    match language {
        // Its bindings carry the description of the interface.
        Language::Rust => {}
        Language::C => describe(&mut module, wit)?,
    }
    let component = ComponentEncoder::default().validate(true).module(&module)?.encode()?;
    let DecodedWasm::Component(resolve, world) = wit_component::decode(&component)? else {
        bail!("expected a component, found a WIT package");
    };
    let (imports, exports) = interfaces(&resolve, world)?;
    for import in &imports {
        if !ALLOWED.contains(&import.as_str()) {
            bail!("expected imports from {ALLOWED:?} only, found {import:?}");
        }
    }
    if !exports.iter().any(|export| export == EXPORTED) {
        bail!("expected the export {EXPORTED:?}, found {exports:?}");
    }
    Ok(component)
}

/// Adds the description of the handler's interface to a module that only has its names.
fn describe(module: &mut Vec<u8>, wit: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("handler.wit", &fs::read_to_string(wit).context("reading the interface")?)?;
    let world = resolve.select_world(&[package], Some("connection-handler"))?;
    wit_component::embed_component_metadata(module, &resolve, world, StringEncoding::UTF8, false)
}

/// The names of a component's imports and exports.
fn interfaces(resolve: &Resolve, world: WorldId) -> Result<(Vec<String>, Vec<String>)> {
    let world = resolve.worlds.get(world).context("the component's world is missing")?;
    let names = |items: &mut dyn Iterator<Item = _>| -> Vec<String> {
        items.map(|(key, _): (_, &WorldItem)| resolve.name_world_key(key)).collect()
    };
    Ok((names(&mut world.imports.iter()), names(&mut world.exports.iter())))
}
