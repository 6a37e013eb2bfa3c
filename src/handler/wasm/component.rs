//! From whatever file the user names to a component. Pure.
//!
//! A component stays as it is. A core module, which is what compilers make, becomes one by its component metadata if a
//! binding generator has put them there; else by the names of its exports, which then must be those of `wit/handler.wit`.
//! WASI preview 1, which some runtimes cannot do without, is answered inside of the component, by `wasi_stub.wat`.

use std::collections::BTreeSet;
use std::fmt::Display;

use wasmparser::{ExternalKind, Payload};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

/// The exported interface that makes a component a handler.
pub(super) const HANDLER_INTERFACE: &str = "polygate:handler/handler@0.1.0";

/// The exported interface that carries the state of a connection to another version of its guest.
pub(super) const MIGRATE_INTERFACE: &str = "polygate:handler/migrate@0.1.0";

const INTERFACE: &str = include_str!("../../../wit/handler.wit");

/// `wasi_stub.wat`, assembled by build.rs.
const WASI_STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wasi_stub.wasm"));

/// The import module that the stub stands in for.
const WASI: &str = "wasi_snapshot_preview1";

/// Where a core module finds the gateway.
const ADAPTER: &str = "polygate:handler/adapter@0.1.0";

/// What every core module must export: the events, its memory, and how the host gets room in it.
const REQUIRED: [&str; 7] = [
    "polygate:handler/handler@0.1.0#on-socket-created",
    "polygate:handler/handler@0.1.0#on-received-bytes",
    "polygate:handler/handler@0.1.0#on-timer-timeout",
    "polygate:handler/handler@0.1.0#on-received-messages",
    "polygate:handler/handler@0.1.0#on-socket-closed",
    "memory",
    "cabi_realloc",
];

/// What a core module exports that keeps its connections over a swap: both or neither.
const MIGRATE: [&str; 2] = ["polygate:handler/migrate@0.1.0#snapshot", "polygate:handler/migrate@0.1.0#restore"];

/// Why a core module cannot be made a component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The file begins like a module and does not go on like one.
    #[error("it is a broken core module: {0}")]
    Broken(String),
    /// It is some other module.
    #[error(
        "it is a core module without component metadata, and does not export {}; it exports {}",
        listed(.missing), listed(.exports)
    )]
    NotExported {
        /// What a handler exports and this does not.
        missing: Vec<String>,
        /// What it exports instead.
        exports: Vec<String>,
    },
    /// It asks for what nobody offers.
    #[error("it is a core module without component metadata, and imports {}; offered are {ADAPTER} and {WASI}", listed(.0))]
    NotOffered(Vec<String>),
    /// Its functions are not of the interface's types, or its metadata do not fit it.
    #[error("it is a core module that cannot be made a component: {0}")]
    Unfit(String),
}

/// A core module becomes a component; everything else stays as it is, and is the compiler's to judge.
///
/// Not for files of strangers in a process that others rely on: metadata whose packages need one another in a circle make
/// `wit-parser` call itself until the stack is used up. The gateway lets a process of its own try each file first.
///
/// # Errors
///
/// [`ComponentError`], when a core module is no handler.
pub fn from_file(file: Vec<u8>) -> Result<Vec<u8>, ComponentError> {
    // Bytes 4 to 7 of a module are the version 1; a component has another there (Binary.md of the component model).
    if !file.starts_with(b"\0asm\x01\0\0\0") {
        return Ok(file);
    }
    let module = Module::read(&file).map_err(|error| ComponentError::Broken(error.to_string()))?;
    let described = if module.has_metadata { file } else { with_metadata(file, &module)? };
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(&described).map_err(unfit)?;
    if module.imports_wasi {
        encoder.adapter(WASI, WASI_STUB).map_err(unfit)?;
    }
    encoder.encode().map_err(unfit)
}

/// What a core module says of itself.
#[derive(Default)]
struct Module {
    has_metadata: bool,
    imports_wasi: bool,
    /// Modules that it imports from, besides the gateway and WASI.
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

/// Adds the metadata of our own interface, if the module's exports and imports are the interface's.
fn with_metadata(mut file: Vec<u8>, module: &Module) -> Result<Vec<u8>, ComponentError> {
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

fn unfit(why: impl Display) -> ComponentError {
    // The alternate form has the causes too.
    ComponentError::Unfit(format!("{why:#}"))
}

/// Names for people; many are cut short.
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

    /// The functions of the interface by their names alone, with the types that a compiler gives them.
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

    /// What a component imports and exports.
    fn interfaces(component: &[u8]) -> (Vec<String>, Vec<String>) {
        let engine = Engine::new(Config::new().concurrency_support(false)).unwrap();
        let component = Component::new(&engine, component).unwrap();
        let ty = component.component_type();
        let imports = ty.imports(&engine).map(|(name, _)| name.to_owned()).collect();
        let exports = ty.exports(&engine).map(|(name, _)| name.to_owned()).collect();
        (imports, exports)
    }

    /// The names of its exports make a module a handler, and whether it can move its connections.
    #[test]
    fn exports_name_the_world() {
        let imports = r#"(import "polygate:handler/adapter@0.1.0" "now-ms" (func (result i64)))"#;
        let (imports, exports) = interfaces(&converted(imports, HANDLER).unwrap());
        assert_eq!(imports, ["polygate:handler/types@0.1.0", "polygate:handler/adapter@0.1.0"]);
        assert_eq!(exports, ["polygate:handler/handler@0.1.0"]);

        let (_, mut exports) = interfaces(&converted("", &format!("{HANDLER}{MIGRATION}")).unwrap());
        exports.sort();
        assert_eq!(exports, ["polygate:handler/handler@0.1.0", "polygate:handler/migrate@0.1.0"]);
    }

    /// Every function of WASI preview 1 is answered inside, and none is left to the host.
    #[test]
    fn wasi_stays_inside() {
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

    /// What is missing is named, beside what is there.
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

    /// What nobody offers is named; so is a function of the adapter that there is not.
    #[test]
    fn unknown_imports_are_named() {
        assert_eq!(
            refusal(r#"(import "env" "open" (func))"#, HANDLER),
            "it is a core module without component metadata, and imports env; offered are \
             polygate:handler/adapter@0.1.0 and wasi_snapshot_preview1"
        );
        for (module, name) in [("polygate:handler/adapter@0.1.0", "reboot"), (WASI, "fd_reboot")] {
            let refusal = refusal(&format!("(import {module:?} {name:?} (func))"), HANDLER);
            assert!(refusal.contains(name), "{refusal}");
        }
    }

    /// A function of another type than the interface's is refused.
    #[test]
    fn types_must_fit() {
        let refusal = refusal("", &HANDLER.replace("(param i64 i32 i32 i32))", "(param i64 i32))"));
        assert!(refusal.contains("on-socket-closed"), "{refusal}");
    }

    /// Half a module says so.
    #[test]
    fn a_broken_module() {
        let mut module = wat::parse_str(format!("(module {HANDLER})")).unwrap();
        module.truncate(module.len() / 2);
        assert!(matches!(from_file(module), Err(ComponentError::Broken(_))));
    }

    /// What is no core module is left alone.
    #[test]
    fn other_files_stay_as_they_are() {
        for file in [&b"\0asm\x0d\0\x01\0"[..], b"not wasm", b""] {
            assert_eq!(from_file(file.to_vec()).unwrap(), file);
        }
    }
}
