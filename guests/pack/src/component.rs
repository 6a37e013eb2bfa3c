//! From a core module to a component that the gateway will take.

use anyhow::{Context, Result, bail};
use wit_component::{ComponentEncoder, DecodedWasm};
use wit_parser::{Resolve, WorldId, WorldItem};

/// What a guest may import, and what it must export.
const ALLOWED: [&str; 2] = ["polygate:handler/types@0.1.0", "polygate:handler/adapter@0.1.0"];
const EXPORTED: &str = "polygate:handler/handler@0.1.0";

/// Makes a component of a core module that carries the description of its interface, and checks that it imports
/// nothing but the gateway's adapter and exports the handler.
pub(crate) fn from_module(module: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default().validate(true).module(module)?.encode()?;
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

/// The names of a component's imports and exports.
fn interfaces(resolve: &Resolve, world: WorldId) -> Result<(Vec<String>, Vec<String>)> {
    let world = resolve.worlds.get(world).context("the component's world is missing")?;
    let names = |items: &mut dyn Iterator<Item = _>| -> Vec<String> {
        items.map(|(key, _): (_, &WorldItem)| resolve.name_world_key(key)).collect()
    };
    Ok((names(&mut world.imports.iter()), names(&mut world.exports.iter())))
}
