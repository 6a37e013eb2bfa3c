//! Static inspection of a component file: interfaces, memories, tables, data, debug information. Runs no guest code.
//! Pure.

use wasmparser::{Encoding, Instance, KnownCustom, Parser, Payload, ProducersSectionReader};

use super::component::{self, MIGRATE_INTERFACE};

/// Package of the handler interfaces, of any version.
const PACKAGE: &str = "polygate:handler/";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Component,
    /// A core module, converted to a component.
    CoreModule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The interface, with its package and version.
    pub name: String,
    /// The granted capability, in one phrase.
    pub granted: &'static str,
}

/// A linear memory of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Initial size.
    pub minimum_bytes: u64,
    /// Declared maximum size.
    pub maximum_bytes: Option<u64>,
}

/// Result of the inspection of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inspection {
    pub form: Form,
    /// Length of the file.
    pub file_bytes: usize,
    /// Length of the component; differs from `file_bytes` for a core module.
    pub component_bytes: usize,
    /// Exported interfaces.
    pub exports: Vec<String>,
    pub imports: Vec<Import>,
    /// Memories of all modules.
    pub memories: Vec<Memory>,
    /// Initial number of elements of each table.
    pub tables: Vec<u64>,
    /// Number of core modules.
    pub modules: usize,
    /// Number of core instances in each instance of the guest.
    pub instances: usize,
    /// Total size of the data segments, which each instance gets.
    pub data_bytes: usize,
    /// Whether backtraces have function names (name section).
    pub has_names: bool,
    /// Whether backtraces have files and lines (DWARF).
    pub has_lines: bool,
    /// Languages and tools of the producers section.
    pub producers: Vec<String>,
}

impl Inspection {
    /// Inspects a file.
    ///
    /// # Errors
    ///
    /// The reason, in one phrase: the file is not WebAssembly, or it is a core module that cannot be converted to a
    /// component.
    pub(crate) fn of(file: &[u8]) -> Result<Self, String> {
        let form = match Parser::is_core_wasm(file) {
            true => Form::CoreModule,
            false if Parser::is_component(file) => Form::Component,
            false => return Err("expected WebAssembly in binary form, came another format".to_owned()),
        };
        let component = component::from_file(file.to_vec()).map_err(|error| error.to_string())?;
        let mut inspection = Self {
            form,
            file_bytes: file.len(),
            component_bytes: component.len(),
            exports: Vec::new(),
            imports: Vec::new(),
            memories: Vec::new(),
            tables: Vec::new(),
            modules: 0,
            instances: 0,
            data_bytes: 0,
            has_names: false,
            has_lines: false,
            producers: Vec::new(),
        };
        inspection.read(&component).map_err(|error| error.to_string())?;
        Ok(inspection)
    }

    /// Name and version of the exported handler interface; `None` for a component that is not a handler.
    pub(crate) fn interface(&self) -> Option<&str> {
        let is_handler = |name: &&str| name.strip_prefix(PACKAGE).is_some_and(|rest| rest.starts_with("handler@"));
        self.exports.iter().map(String::as_str).find(is_handler)
    }

    /// Whether the component exports the migrate interface.
    pub(crate) fn migrates(&self) -> bool {
        self.exports.iter().any(|name| name == MIGRATE_INTERFACE)
    }

    /// Initial linear memory of an instance, in bytes.
    pub(crate) fn minimum_bytes(&self) -> u64 {
        self.memories.iter().map(|memory| memory.minimum_bytes).sum()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the inspection reports only these sections")]
    fn read(&mut self, component: &[u8]) -> Result<(), wasmparser::BinaryReaderError> {
        let mut nesting = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            // Imports and exports of the outermost component are those of the guest.
            let outermost = nesting.len() == 1;
            match payload? {
                Payload::Version { encoding, .. } => {
                    self.modules += usize::from(encoding == Encoding::Module);
                    nesting.push(encoding);
                }
                Payload::End(_) => {
                    nesting.pop();
                }
                Payload::ComponentImportSection(imports) if outermost => {
                    for import in imports {
                        let name = import?.name.name.to_owned();
                        let granted = granted(&name);
                        self.imports.push(Import { name, granted });
                    }
                }
                Payload::ComponentExportSection(exports) if outermost => {
                    for export in exports {
                        self.exports.push(export?.name.name.to_owned());
                    }
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        let memory = memory?;
                        let bytes = |pages: u64| pages.saturating_mul(1 << memory.page_size_log2.unwrap_or(16));
                        let (minimum_bytes, maximum_bytes) = (bytes(memory.initial), memory.maximum.map(bytes));
                        self.memories.push(Memory { minimum_bytes, maximum_bytes });
                    }
                }
                Payload::TableSection(tables) => {
                    for table in tables {
                        self.tables.push(table?.ty.initial);
                    }
                }
                Payload::InstanceSection(instances) => {
                    for instance in instances {
                        self.instances += usize::from(matches!(instance?, Instance::Instantiate { .. }));
                    }
                }
                Payload::DataSection(data) => {
                    for data in data {
                        self.data_bytes += data?.data.len();
                    }
                }
                Payload::CustomSection(section) => match section.as_known() {
                    KnownCustom::Name(_) => self.has_names = true,
                    KnownCustom::Producers(producers) => self.read_producers(producers)?,
                    _ => self.has_lines |= section.name() == ".debug_line",
                },
                _ => {}
            }
        }
        Ok(())
    }

    fn read_producers(&mut self, fields: ProducersSectionReader<'_>) -> Result<(), wasmparser::BinaryReaderError> {
        for field in fields {
            for value in field?.values {
                let value = value?;
                let version = if value.version.is_empty() { String::new() } else { format!(" {}", value.version) };
                let producer = format!("{}{version}", value.name);
                if !self.producers.contains(&producer) {
                    self.producers.push(producer);
                }
            }
        }
        Ok(())
    }
}

/// The capability that the host grants for an import.
fn granted(name: &str) -> &'static str {
    if name.starts_with("polygate:handler/types@") {
        return "plain data";
    }
    if name.starts_with(PACKAGE) {
        return "the operations of its own connection";
    }
    let Some(wasi) = name.strip_prefix("wasi:") else { return "nothing: unknown interface" };
    match wasi.split(['/', '@']).collect::<Vec<_>>()[..] {
        ["cli", "stdout" | "stderr", ..] => "output to the log",
        ["clocks", ..] => "the time",
        ["random", ..] => "random numbers",
        ["io", ..] => "streams and polling of granted resources",
        ["cli", "environment", ..] => "nothing: no variables, no arguments",
        ["filesystem", ..] => "nothing: no files",
        ["sockets", ..] => "nothing: no network",
        _ => "nothing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::wasm::component::HANDLER_INTERFACE;

    /// The echo guest imports the adapter, and has one memory and some data.
    #[test]
    fn inspection_of_the_echo_guest() {
        let file = std::fs::read("guests/dist/echo.wasm").unwrap();
        let inspection = Inspection::of(&file).unwrap();
        assert_eq!((inspection.form, inspection.file_bytes), (Form::Component, file.len()));
        assert_eq!(inspection.interface(), Some(HANDLER_INTERFACE));
        assert!(inspection.migrates());
        let imports: Vec<_> = inspection.imports.iter().map(|import| (import.name.as_str(), import.granted)).collect();
        let expected = [
            ("polygate:handler/types@0.1.0", "plain data"),
            ("polygate:handler/adapter@0.1.0", "the operations of its own connection"),
        ];
        assert_eq!(imports, expected);
        assert_eq!(inspection.memories.len(), 1);
        assert!((64 << 10..1 << 20).contains(&inspection.minimum_bytes()), "{inspection:?}");
        let Inspection { modules, instances, data_bytes, .. } = inspection;
        assert!(modules >= 1 && instances >= 1 && data_bytes > 0, "{inspection:?}");
    }

    /// WASI imports grant the log, clocks and random numbers only.
    #[test]
    fn granted_capabilities() {
        assert_eq!(granted("wasi:filesystem/preopens@0.2.0"), "nothing: no files");
        assert_eq!(granted("wasi:sockets/tcp@0.2.0"), "nothing: no network");
        assert_eq!(granted("wasi:cli/stdout@0.2.0"), "output to the log");
        assert_eq!(granted("wasi:cli/stdin@0.2.0"), "nothing");
        assert_eq!(granted("example:other/thing@1.0.0"), "nothing: unknown interface");
    }

    /// Files that are not WebAssembly, or are truncated, are errors without a panic.
    #[test]
    fn invalid_files_are_errors() {
        let error = Inspection::of(b"#!/bin/sh\n").unwrap_err();
        assert_eq!(error, "expected WebAssembly in binary form, came another format");
        let file = std::fs::read("guests/dist/echo.wasm").unwrap();
        for end in (0..file.len()).step_by(997) {
            assert!(Inspection::of(&file[..end]).is_err() || end == 8, "{end}");
        }
    }
}
