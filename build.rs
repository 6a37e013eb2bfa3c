//! Build script: compiles proto/exproto.proto without protoc, so that a build needs only cargo; assembles the WASI stub
//! of the guests; embeds the conversations of `polygate demo` and the templates of `polygate guest new`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
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
    fs::write(out_dir.join("guest_templates.rs"), guest_templates()?)?;
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

/// Folders that tools create in a template when it is tried out in place.
const TOOL_FOLDERS: [&str; 5] = ["target", "node_modules", "__pycache__", ".venv", "venv"];

/// Content of a `template.toml`.
#[derive(Default)]
struct Manifest {
    /// Files and folders to copy: source relative to the template, and destination.
    copy: Vec<(PathBuf, PathBuf)>,
    /// Next commands for the user; by default those of the README.
    next: Option<Vec<String>>,
}

/// A Rust expression: the templates of guests/templates, with every file that a new project gets.
fn guest_templates() -> Result<String, Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let folder = root.join("guests/templates");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut languages = Vec::new();
    for entry in fs::read_dir(&folder)? {
        languages.push(entry?.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?);
    }
    languages.sort();
    let mut list = "&[\n".to_owned();
    for language in languages {
        let template = folder.join(&language);
        let manifest = read_manifest(&template)?;
        let mut files = BTreeMap::new();
        collect(&template, Path::new(""), &mut files)?;
        files.remove(Path::new("template.toml"));
        if let Some(file) = files.remove(Path::new("Cargo.toml.template")) {
            files.insert("Cargo.toml".into(), file);
        }
        for (from, to) in &manifest.copy {
            let from = template.join(from);
            println!("cargo:rerun-if-changed={}", from.display());
            if from.is_dir() {
                collect(&from, to, &mut files)?;
            } else {
                files.insert(to.clone(), from);
            }
        }
        files.insert("wit/handler.wit".into(), root.join("wit/handler.wit"));
        let next = match manifest.next {
            Some(next) => next,
            None => commands(&fs::read_to_string(template.join("README.md"))?),
        };
        writeln!(list, "    Template {{ language: {language:?}, next: &{next:?}, files: &[")?;
        for (path, file) in files {
            let is_executable = fs::metadata(&file)?.permissions().mode() & 0o100 != 0;
            writeln!(
                list,
                "        File {{ path: {path:?}, is_executable: {is_executable}, bytes: include_bytes!({file:?}) }},"
            )?;
        }
        list.push_str("    ] },\n");
    }
    list.push_str("]\n");
    Ok(list)
}

fn read_manifest(template: &Path) -> Result<Manifest, Box<dyn Error>> {
    let file = template.join("template.toml");
    let wrong = |what: &str| format!("{}: {what}", file.display());
    let table: toml::Table = fs::read_to_string(&file).map_err(|error| wrong(&error.to_string()))?.parse()?;
    let mut manifest = Manifest::default();
    for entry in table.get("copy").and_then(|copy| copy.as_array()).into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(|value| value.as_str());
        let (from, to) = match (entry.as_str(), text("from"), text("to")) {
            (Some(from), ..) => {
                let name = Path::new(from).file_name().ok_or_else(|| wrong("expected a file to copy"))?;
                (from.into(), name.into())
            }
            (None, Some(from), Some(to)) => (from.into(), to.into()),
            (None, ..) => return Err(wrong("expected a path or { from = \"..\", to = \"..\" } in copy").into()),
        };
        manifest.copy.push((from, to));
    }
    if let Some(next) = table.get("next").and_then(|next| next.as_array()) {
        manifest.next = Some(next.iter().filter_map(|line| line.as_str()).map(str::to_owned).collect());
    }
    Ok(manifest)
}

/// Collects the files below a folder, each with its destination.
fn collect(from: &Path, to: &Path, files: &mut BTreeMap<PathBuf, PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if !path.is_dir() {
            files.insert(to, path);
        } else if !TOOL_FOLDERS.iter().any(|left| entry.file_name() == *left) {
            collect(&path, &to, files)?;
        }
    }
    Ok(())
}

/// The lines of the first block of commands in a README.
fn commands(readme: &str) -> Vec<String> {
    let mut lines = readme.lines().skip_while(|line| *line != "```sh").skip(1);
    lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect()
}
