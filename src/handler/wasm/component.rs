//! Component encoding: converts a core module to a component (`wit-component`). Pure.
//!
//! A component stays unchanged. A core module, the output of most compilers, is converted by its component metadata if
//! a binding generator has embedded them, else by the names of its exports, which must then be those of
//! `wit/handler.wit`. WASI preview 1, which some language runtimes require, is implemented inside the component, by
//! `wasi_stub.wat`.

use std::collections::BTreeSet;
use std::fmt::Display;

use wasmparser::{ExternalKind, Payload};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

/// Interface that every handler exports.
pub(super) const HANDLER_INTERFACE: &str = "polygate:handler/handler@0.1.0";

/// Optional interface for the migration of a connection's state to another version of its guest.
pub(super) const MIGRATE_INTERFACE: &str = "polygate:handler/migrate@0.1.0";

const INTERFACE: &str = include_str!("../../../wit/handler.wit");

/// `wasi_stub.wat`, assembled by build.rs.
const WASI_STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wasi_stub.wasm"));

/// Import module of WASI preview 1, which the stub implements.
const WASI: &str = "wasi_snapshot_preview1";

/// Import module of the gateway's host functions.
const ADAPTER: &str = "polygate:handler/adapter@0.1.0";

/// Required exports of every core module: the events, its memory and its allocator.
const REQUIRED: [&str; 7] = [
    "polygate:handler/handler@0.1.0#on-socket-created",
    "polygate:handler/handler@0.1.0#on-received-bytes",
    "polygate:handler/handler@0.1.0#on-timer-timeout",
    "polygate:handler/handler@0.1.0#on-received-messages",
    "polygate:handler/handler@0.1.0#on-socket-closed",
    "memory",
    "cabi_realloc",
];

/// Exports of a core module that migrates its connections: both or neither.
const MIGRATE: [&str; 2] = ["polygate:handler/migrate@0.1.0#snapshot", "polygate:handler/migrate@0.1.0#restore"];

/// Error of the conversion of a core module to a component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The file begins with a module header, but is not a valid module.
    #[error("it is a broken core module: {0}")]
    Broken(String),
    /// The module lacks exports of a handler.
    #[error(
        "it is a core module without component metadata, and does not export {}; it exports {}",
        listed(.missing), listed(.exports)
    )]
    NotExported { missing: Vec<String>, exports: Vec<String> },
    /// The module imports from an unknown import module.
    #[error(
        "it is a core module without component metadata, and imports {}; expected imports from {ADAPTER} and {WASI}",
        listed(.0)
    )]
    NotOffered(Vec<String>),
    /// The types of its functions differ from the interface, or its metadata do not match the module.
    #[error("it is a core module that cannot be converted to a component: {0}")]
    Unfit(String),
}

/// Converts a core module to a component; every other file is returned unchanged, and checked by the compiler.
///
/// Not safe for untrusted files in a long-running process: metadata with cyclic package dependencies make `wit-parser`
/// recurse until the stack overflows. The gateway tries each file in the compiler process first.
///
/// # Errors
///
/// [`ComponentError`]: a core module is not a handler.
pub fn from_file(file: Vec<u8>) -> Result<Vec<u8>, ComponentError> {
    // Bytes 4 to 7 of a module are version 1; a component has another version (Binary.md of the component model).
    if !file.starts_with(b"\0asm\x01\0\0\0") {
        return Ok(file);
    }
    let module = Module::read(&file).map_err(|error| ComponentError::Broken(error.to_string()))?;
    let with_metadata = if module.has_metadata { file } else { embed_metadata(file, &module)? };
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(&with_metadata).map_err(unfit)?;
    if module.imports_wasi {
        encoder.adapter(WASI, WASI_STUB).map_err(unfit)?;
    }
    encoder.encode().map_err(unfit)
}

/// Imports, exports and metadata of a core module.
#[derive(Default)]
struct Module {
    has_metadata: bool,
    imports_wasi: bool,
    /// Import modules besides the gateway and WASI.
    other_imports: BTreeSet<String>,
    exports: Vec<String>,
}

impl Module {
    fn read(bytes: &[u8]) -> wasmparser::Result<Self> {
        let mut module = Self::default();
        for payload in wasmparser::Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            if let Payload::ImportSection(imports) = payload {
                for import in imports.into_imports() {
                    match import?.module {
                        WASI => module.imports_wasi = true,
                        ADAPTER => {}
                        other => {
                            module.other_imports.insert(other.to_owned());
                        }
                    }
                }
            } else if let Payload::ExportSection(exports) = payload {
                for export in exports {
                    let export = export?;
                    if matches!(export.kind, ExternalKind::Func | ExternalKind::Memory) {
                        module.exports.push(export.name.to_owned());
                    }
                }
            } else if let Payload::CustomSection(section) = payload {
                module.has_metadata |= section.name().starts_with("component-type");
            }
        }
        Ok(module)
    }

    fn exports(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export == name)
    }
}

/// Embeds the metadata of the handler interface, if the module's exports and imports match it.
fn embed_metadata(mut file: Vec<u8>, module: &Module) -> Result<Vec<u8>, ComponentError> {
    let migrates = MIGRATE.iter().any(|name| module.exports(name));
    let expected = REQUIRED.iter().chain(if migrates { &MIGRATE[..] } else { &[] });
    let missing: Vec<_> = expected.filter(|name| !module.exports(name)).map(|name| (*name).to_owned()).collect();
    if !missing.is_empty() {
        return Err(ComponentError::NotExported { missing, exports: module.exports.clone() });
    }
    if !module.other_imports.is_empty() {
        return Err(ComponentError::NotOffered(module.other_imports.iter().cloned().collect()));
    }
    let mut resolve = Resolve::default();
    let package = resolve.push_source("handler.wit", INTERFACE).map_err(unfit)?;
    let name = if migrates { "migrating-connection-handler" } else { "connection-handler" };
    let world = resolve.select_world(&[package], Some(name)).map_err(unfit)?;
    wit_component::embed_component_metadata(&mut file, &resolve, world, StringEncoding::UTF8, false).map_err(unfit)?;
    Ok(file)
}

fn unfit(reason: impl Display) -> ComponentError {
    // The alternate format includes the causes.
    ComponentError::Unfit(format!("{reason:#}"))
}

/// A list of names for an error text, limited in length.
fn listed(names: &[String]) -> String {
    const SHOWN_MAX: usize = 8;
    match names.len() {
        0 => "nothing".to_owned(),
        count if count > SHOWN_MAX => format!("{} and {} more", names[..SHOWN_MAX].join(", "), count - SHOWN_MAX),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::component::Component;
    use wasmtime::{Config, Engine};

    use super::*;

    /// Exports of the handler interface without metadata, with their core types.
    const HANDLER: &str = r#"
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
        (func (export "polygate:handler/handler@0.1.0#on-socket-created")
            (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32))
        (func (export "polygate:handler/handler@0.1.0#on-received-bytes") (param i64 i32 i32))
        (func (export "polygate:handler/handler@0.1.0#on-timer-timeout") (param i64 i32))
        (func (export "polygate:handler/handler@0.1.0#on-received-messages") (param i64 i32 i32))
        (func (export "polygate:handler/handler@0.1.0#on-socket-closed") (param i64 i32 i32 i32))"#;

    const MIGRATION: &str = r#"
        (func (export "polygate:handler/migrate@0.1.0#snapshot") (param i64) (result i32) i32.const 0)
        (func (export "polygate:handler/migrate@0.1.0#restore") (param i32) (result i32) i32.const 0)"#;

    fn converted(imports: &str, exports: &str) -> Result<Vec<u8>, ComponentError> {
        from_file(wat::parse_str(format!("(module {imports} {exports})")).unwrap())
    }

    fn refusal(imports: &str, exports: &str) -> String {
        converted(imports, exports).unwrap_err().to_string()
    }

    /// Imports and exports of a component.
    fn interfaces(component: &[u8]) -> (Vec<String>, Vec<String>) {
        let engine = Engine::new(Config::new().concurrency_support(false)).unwrap();
        let component = Component::new(&engine, component).unwrap();
        let ty = component.component_type();
        let imports = ty.imports(&engine).map(|(name, _)| name.to_owned()).collect();
        let exports = ty.exports(&engine).map(|(name, _)| name.to_owned()).collect();
        (imports, exports)
    }

    /// The names of its exports select a module's world, with or without the migrate interface.
    #[test]
    fn exports_select_the_world() {
        let imports = r#"(import "polygate:handler/adapter@0.1.0" "now-ms" (func (result i64)))"#;
        let (imports, exports) = interfaces(&converted(imports, HANDLER).unwrap());
        assert_eq!(imports, ["polygate:handler/types@0.1.0", "polygate:handler/adapter@0.1.0"]);
        assert_eq!(exports, ["polygate:handler/handler@0.1.0"]);

        let (_, mut exports) = interfaces(&converted("", &format!("{HANDLER}{MIGRATION}")).unwrap());
        exports.sort();
        assert_eq!(exports, ["polygate:handler/handler@0.1.0", "polygate:handler/migrate@0.1.0"]);
    }

    /// The stub implements every function of WASI preview 1: the component imports none from the host.
    #[test]
    fn the_stub_implements_wasi_preview_1() {
        let mut imports = String::new();
        let mut count = 0;
        let types = wasmparser::Validator::new().validate_all(WASI_STUB).unwrap();
        let stub = types.as_ref();
        for payload in wasmparser::Parser::new(0).parse_all(WASI_STUB) {
            let Payload::ExportSection(functions) = payload.unwrap() else { continue };
            for function in functions {
                let function = function.unwrap();
                let ty = stub[stub.core_function_at(function.index)].unwrap_func();
                let list = |keyword: &str, types: &[wasmparser::ValType]| {
                    types.iter().map(|ty| format!(" ({keyword} {ty})")).collect::<String>()
                };
                imports += &format!(
                    "(import \"wasi_snapshot_preview1\" \"{}\" (func{}{}))\n",
                    function.name,
                    list("param", ty.params()),
                    list("result", ty.results())
                );
                count += 1;
            }
        }
        assert_eq!(count, 46, "preview 1 has 46 functions");
        let (imports, exports) = interfaces(&converted(&imports, HANDLER).unwrap());
        assert!(imports.iter().all(|import| import.starts_with("polygate:handler/")), "{imports:?}");
        assert_eq!(exports, ["polygate:handler/handler@0.1.0"]);
    }

    /// The error lists the missing exports and the existing ones.
    #[test]
    fn missing_exports_are_named() {
        assert_eq!(
            refusal("", r#"(memory (export "memory") 1) (func (export "main"))"#),
            "it is a core module without component metadata, and does not export \
             polygate:handler/handler@0.1.0#on-socket-created, polygate:handler/handler@0.1.0#on-received-bytes, \
             polygate:handler/handler@0.1.0#on-timer-timeout, polygate:handler/handler@0.1.0#on-received-messages, \
             polygate:handler/handler@0.1.0#on-socket-closed, cabi_realloc; it exports memory, main"
        );
        assert!(refusal("", "").ends_with("it exports nothing"));
        let half = MIGRATION.split(')').next().unwrap().to_owned() + ") (param i64) (result i32) i32.const 0)";
        assert!(
            refusal("", &format!("{HANDLER}{half}"))
                .contains("does not export polygate:handler/migrate@0.1.0#restore;")
        );
    }

    /// The error names unknown import modules, and unknown functions of known modules.
    #[test]
    fn unknown_imports_are_named() {
        assert_eq!(
            refusal(r#"(import "env" "open" (func))"#, HANDLER),
            "it is a core module without component metadata, and imports env; expected imports from \
             polygate:handler/adapter@0.1.0 and wasi_snapshot_preview1"
        );
        for (module, name) in [("polygate:handler/adapter@0.1.0", "reboot"), (WASI, "fd_reboot")] {
            let refusal = refusal(&format!("(import {module:?} {name:?} (func))"), HANDLER);
            assert!(refusal.contains(name), "{refusal}");
        }
    }

    /// A function with another type than in the interface is refused.
    #[test]
    fn types_must_match() {
        let refusal = refusal("", &HANDLER.replace("(param i64 i32 i32 i32))", "(param i64 i32))"));
        assert!(refusal.contains("on-socket-closed"), "{refusal}");
    }

    /// A truncated module is an error.
    #[test]
    fn a_truncated_module() {
        let mut module = wat::parse_str(format!("(module {HANDLER})")).unwrap();
        module.truncate(module.len() / 2);
        assert!(matches!(from_file(module), Err(ComponentError::Broken(_))));
    }

    /// Files that are not core modules are returned unchanged.
    #[test]
    fn other_files_are_unchanged() {
        for file in [&b"\0asm\x0d\0\x01\0"[..], b"not wasm", b""] {
            assert_eq!(from_file(file.to_vec()).unwrap(), file);
        }
    }
}
