//! What a guest's file says about itself, before anything of it runs. Pure.

use wasmparser::{Encoding, Instance, KnownCustom, Parser, Payload, ProducersSectionReader};

use super::component::{self, MIGRATE_INTERFACE};

/// Interfaces of one package that versions of `polygate:handler` have.
const PACKAGE: &str = "polygate:handler/";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A component.
    Component,
    /// A core module with component metadata, of which a component was made.
    CoreModule,
}

/// What a guest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The interface, with its package and version.
    pub name: String,
    /// What it gets, in one phrase.
    pub granted: &'static str,
}

/// A linear memory that a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Bytes at its start.
    pub minimum_bytes: u64,
    /// Bytes at most, by its own declaration.
    pub maximum_bytes: Option<u64>,
}

/// What a guest's file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// What the file is.
    pub form: Form,
    /// Length of the file.
    pub file_bytes: usize,
    /// Length of the component, which is another for a core module.
    pub component_bytes: usize,
    /// The interfaces it offers.
    pub exports: Vec<String>,
    /// The interfaces it asks for.
    pub imports: Vec<Import>,
    /// The memories of all its modules.
    pub memories: Vec<Memory>,
    /// Elements at the start of each of its tables.
    pub tables: Vec<u64>,
    /// Modules in it.
    pub modules: usize,
    /// Instances that are made of them for each connection.
    pub instances: usize,
    /// Bytes of data that are copied into each instance.
    pub data_bytes: usize,
    /// Whether a failure can be told with the names of its functions.
    pub has_names: bool,
    /// Whether a failure can be told with files and lines.
    pub has_lines: bool,
    /// Languages and tools that made it, as they say it themselves.
    pub producers: Vec<String>,
}

impl Inspection {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It is no WebAssembly, or a core module that cannot be made a component: why, in one phrase.
    pub(crate) fn of(file: &[u8]) -> Result<Self, String> {
        let form = match Parser::is_core_wasm(file) {
            true => Form::CoreModule,
            false if Parser::is_component(file) => Form::Component,
            false => return Err("expected WebAssembly in binary form, found something else".to_owned()),
        };
        let component = component::from_file(file.to_vec()).map_err(|error| error.to_string())?;
        let mut found = Self {
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
        found.read(&component).map_err(|error| error.to_string())?;
        Ok(found)
    }

    /// The version of the handler interface; `None` for a component that is no handler of any version.
    pub(crate) fn interface(&self) -> Option<&str> {
        let is_handler = |name: &&str| name.strip_prefix(PACKAGE).is_some_and(|rest| rest.starts_with("handler@"));
        self.exports.iter().map(String::as_str).find(is_handler)
    }

    /// Whether it can carry a connection's state over to another version.
    pub(crate) fn migrates(&self) -> bool {
        self.exports.iter().any(|name| name == MIGRATE_INTERFACE)
    }

    /// Linear memory that an instance has at its start.
    pub(crate) fn minimum_bytes(&self) -> u64 {
        self.memories.iter().map(|memory| memory.minimum_bytes).sum()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "of all that a file may have, these parts are told")]
    fn read(&mut self, component: &[u8]) -> Result<(), wasmparser::BinaryReaderError> {
        let mut inside = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            // The outermost component's imports and exports are those of the guest.
            let outermost = inside.len() == 1;
            match payload? {
                Payload::Version { encoding, .. } => {
                    self.modules += usize::from(encoding == Encoding::Module);
                    inside.push(encoding);
                }
                Payload::End(_) => {
                    inside.pop();
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

/// What the host gives behind an import.
fn granted(name: &str) -> &'static str {
    if name.starts_with("polygate:handler/types@") {
        return "plain data";
    }
    if name.starts_with(PACKAGE) {
        return "the operations of its own connection";
    }
    let Some(wasi) = name.strip_prefix("wasi:") else { return "nothing: it is not known" };
    match wasi.split(['/', '@']).collect::<Vec<_>>()[..] {
        ["cli", "stdout" | "stderr", ..] => "a way to the log",
        ["clocks", ..] => "the time",
        ["random", ..] => "random numbers",
        ["io", ..] => "streams and waiting, for what it is given",
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

    /// The echo guest asks for the adapter, and has what a small guest has.
    #[test]
    fn a_guest_tells_about_itself() {
        let file = std::fs::read("guests/dist/echo.wasm").unwrap();
        let found = Inspection::of(&file).unwrap();
        assert_eq!((found.form, found.file_bytes), (Form::Component, file.len()));
        assert_eq!(found.interface(), Some(HANDLER_INTERFACE));
        assert!(found.migrates());
        let imports: Vec<_> = found.imports.iter().map(|import| (import.name.as_str(), import.granted)).collect();
        let expected = [
            ("polygate:handler/types@0.1.0", "plain data"),
            ("polygate:handler/adapter@0.1.0", "the operations of its own connection"),
        ];
        assert_eq!(imports, expected);
        assert_eq!(found.memories.len(), 1);
        assert!(found.minimum_bytes() >= 64 << 10 && found.minimum_bytes() < 1 << 20, "{found:?}");
        assert!(found.modules >= 1 && found.instances >= 1 && found.data_bytes > 0, "{found:?}");
    }

    /// Nothing of WASI reaches anything but the log, the clock and chance.
    #[test]
    fn what_is_granted() {
        assert_eq!(granted("wasi:filesystem/preopens@0.2.0"), "nothing: no files");
        assert_eq!(granted("wasi:sockets/tcp@0.2.0"), "nothing: no network");
        assert_eq!(granted("wasi:cli/stdout@0.2.0"), "a way to the log");
        assert_eq!(granted("wasi:cli/stdin@0.2.0"), "nothing");
        assert_eq!(granted("example:other/thing@1.0.0"), "nothing: it is not known");
    }

    /// What is no WebAssembly, or is cut off, is told; nothing panics.
    #[test]
    fn what_is_no_guest() {
        let found = Inspection::of(b"#!/bin/sh\n").unwrap_err();
        assert_eq!(found, "expected WebAssembly in binary form, found something else");
        let file = std::fs::read("guests/dist/echo.wasm").unwrap();
        for end in (0..file.len()).step_by(997) {
            assert!(Inspection::of(&file[..end]).is_err() || end == 8, "{end}");
        }
    }
}
