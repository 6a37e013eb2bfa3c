//! `polygate guest check`: validates a component as a handler, and lists its requirements.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::loading::{Loading, Metered};
use super::{Error, bytes_text, count, time_text};
use crate::adapter::{Backend, DryRunAdapter};
use crate::conn::{ConnId, ConnInfo, Event, ListenAddr, PeerAddr, SocketKind};
use crate::error::report;
use crate::handler::wasm::{Form, Inspection, MEMORY_BYTES_DEFAULT, Usage};

/// Validates a component as a handler, and lists its requirements
///
/// Reads it, compiles it, makes one instance and sends it the first event of a connection. Exits with 0 if it is a
/// handler that this gateway can run, with 1 and the reason otherwise.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  polygate guest check handler.wasm\n  polygate guest check handler.wasm --json")]
pub(crate) struct Args {
    /// The guest, its limits and its settings.
    #[command(flatten)]
    pub loading: Loading,

    /// Prints one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// A guest that has started once.
struct Checked {
    found: Inspection,
    compiled_in: Duration,
    started_in: Duration,
    usage: Usage,
    memory_bytes_max: usize,
    engine: &'static str,
}

/// Runs the subcommand: the description goes to `out`, or the reason why it is no handler.
///
/// # Errors
///
/// An error that is not of the file: a configuration, the machine, the output.
pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<ExitCode, Error> {
    let file = &args.loading.file;
    let refused =
        |why: String| if args.json { json!({ "file": file, "handler": false, "why": why }).to_string() } else { why };
    let checked = match check(&args.loading).await? {
        Ok(checked) => checked,
        Err(why) => {
            writeln!(out, "{}", refused(format!("{} is no handler: {why}", file.display())))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    if args.json {
        writeln!(out, "{}", as_json(file, &checked))?;
    } else {
        write!(out, "{}", as_text(file, &checked))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Inner result: why it is no handler.
async fn check(loading: &Loading) -> Result<Result<Checked, String>, Error> {
    let bytes = match std::fs::read(&loading.file) {
        Ok(bytes) => bytes,
        Err(source) => return Err(Error::File { path: loading.file.clone(), source }),
    };
    let found = match Inspection::of(&bytes) {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let loaded = match loading.load(Metered::No).await {
        Ok(loaded) => loaded,
        Err(Error::Load(why)) => return Ok(Err(report(&why))),
        Err(other) => return Err(other),
    };
    let conn = ConnId::from_u64(1);
    let nowhere = ([127, 0, 0, 1], 0).into();
    let info =
        ConnInfo { kind: SocketKind::Tcp, peer: PeerAddr(nowhere), local: ListenAddr(nowhere), certificate: None };
    let info = Arc::new(info);
    let mut guest = loaded.handler.attach(conn, &info);
    let backend = Backend::DryRun(Box::new(DryRunAdapter::strict(conn)));
    let begun = Instant::now();
    let (_, called) = guest.call(backend, &Event::SocketCreated(info)).await;
    let started_in = begun.elapsed();
    if let Err(error) = called {
        let at_start = found.minimum_bytes();
        let hint = match at_start > loaded.options.memory_bytes_max as u64 {
            true => format!("; it needs --memory-max (memory_max) of at least {at_start} bytes"),
            false => String::new(),
        };
        return Ok(Err(format!("it does not start: {error}{hint}")));
    }
    Ok(Ok(Checked {
        found,
        compiled_in: loaded.took,
        started_in,
        usage: guest.usage(),
        engine: loaded.handler.engine(),
        memory_bytes_max: loaded.options.memory_bytes_max,
    }))
}

fn as_json(file: &Path, checked: &Checked) -> serde_json::Value {
    let Checked { found, usage, .. } = checked;
    let imports: Vec<_> =
        found.imports.iter().map(|import| json!({ "name": import.name, "granted": import.granted })).collect();
    let memories: Vec<_> = found
        .memories
        .iter()
        .map(|memory| json!({ "minimum_bytes": memory.minimum_bytes, "maximum_bytes": memory.maximum_bytes }))
        .collect();
    json!({
        "file": file,
        "handler": true,
        "form": form(found.form),
        "file_bytes": found.file_bytes,
        "component_bytes": found.component_bytes,
        "interface": found.interface(),
        "migrates": found.migrates(),
        "imports": imports,
        "memories": memories,
        "tables": found.tables,
        "modules": found.modules,
        "instances": found.instances,
        "data_bytes": found.data_bytes,
        "names": found.has_names,
        "lines": found.has_lines,
        "producers": found.producers,
        "engine": checked.engine,
        "compile_ms": millis(checked.compiled_in),
        "start_ms": millis(checked.started_in),
        "start_memory_bytes": usage.memory_bytes,
    })
}

fn as_text(file: &Path, checked: &Checked) -> String {
    let Checked { found, compiled_in, started_in, usage, memory_bytes_max, engine } = checked;
    let mut text = format!("{} is a handler\n", file.display());
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<11} {value}\n"));
    let size = bytes_text(found.file_bytes as u64);
    match found.form {
        Form::Component => line("file", &format!("a component of {size}")),
        Form::CoreModule => {
            let made = bytes_text(found.component_bytes as u64);
            line("file", &format!("a core module of {size}, made a component of {made}"));
        }
    }
    line("interface", found.interface().unwrap_or("none"));
    line("migrates", if found.migrates() { "yes: keeps its connections' state over a swap" } else { "no" });
    let width = found.imports.iter().map(|import| import.name.len()).max().unwrap_or(0);
    for (index, import) in found.imports.iter().enumerate() {
        let name = if index == 0 { "imports" } else { "" };
        line(name, &format!("{:width$}  {}", import.name, import.granted));
    }
    let data = bytes_text(found.data_bytes as u64);
    let memories = if found.memories.len() == 1 { "1 memory" } else { &format!("{} memories", found.memories.len()) };
    let at_start = bytes_text(found.minimum_bytes());
    line("memory", &format!("{memories}, {at_start} at the start, {data} of them data that it brings"));
    let elements = found.tables.iter().sum::<u64>();
    line("tables", &format!("{}, {elements} elements", found.tables.len()));
    line("instances", &format!("{} of {}", found.instances, count(found.modules, "module")));
    if !found.producers.is_empty() {
        line("made with", &found.producers.join(", "));
    }
    line(
        "failures",
        match (found.has_names, found.has_lines) {
            (_, true) => "are reported with functions, files and lines",
            (true, false) => "are reported with function names",
            (false, false) => "are reported without names: the file is stripped",
        },
    );
    line(
        "engine",
        match *engine {
            "small" => "small: space for 100,000 instances in a gateway",
            _ => "large: the kernel's mappings bound the number of instances",
        },
    );
    line("compiled", &format!("in {}", time_text(*compiled_in)));
    line(
        "started",
        &format!("in {}, with {} of memory then", time_text(*started_in), bytes_text(usage.memory_bytes as u64)),
    );
    if *memory_bytes_max > MEMORY_BYTES_DEFAULT && usage.memory_bytes > MEMORY_BYTES_DEFAULT {
        line("needs", &format!("memory_max above {}, the default", bytes_text(MEMORY_BYTES_DEFAULT as u64)));
    }
    text
}

fn form(form: Form) -> &'static str {
    match form {
        Form::Component => "component",
        Form::CoreModule => "core-module",
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
