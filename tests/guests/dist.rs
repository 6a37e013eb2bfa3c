//! The components under guests/dist are the ones that the sources beside them make, and ask for nothing but the
//! adapter.
//!
//! What a digest covers is written at the head of guests/pack/src/sources.rs; here it is computed a second time, since
//! that crate belongs to another workspace.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Config, Engine};

/// The guests whose connections outlive a hot swap.
const MIGRATING: [&str; 6] = ["counter", "echo", "gb32960", "h02", "jt808", "leak"];

/// A guest was changed, and not built again.
#[test]
fn components_are_not_stale() {
    let recorded = read("guests/dist/SOURCES.sha256");
    let current: String = guests().iter().map(|guest| format!("{}  {}.wasm\n", sources(guest), guest.name)).collect();
    assert_eq!(recorded, current, "guests/dist was built from other sources; run guests/build and commit guests/dist");
}

/// A component was built, and its file was not committed, or another one was.
#[test]
fn components_are_the_ones_that_were_built() {
    let recorded = read("guests/dist/SHA256SUMS");
    let current: String =
        guests().iter().map(|Guest { name, .. }| format!("{}  {name}.wasm\n", sha256(&component(name)))).collect();
    assert_eq!(
        recorded, current,
        "guests/dist has a file that guests/build did not make; run it and commit guests/dist"
    );
}

/// No guest needs WASI or anything else from outside; all of them are handlers.
#[test]
fn components_import_the_adapter_alone() {
    let engine = Engine::new(Config::new().concurrency_support(false)).unwrap();
    for Guest { name, .. } in guests() {
        let component = Component::new(&engine, component(&name)).unwrap();
        let interfaces = component.component_type();
        let imports: Vec<_> = interfaces.imports(&engine).map(|(import, _)| import.to_owned()).collect();
        assert!(imports.iter().all(|import| import.starts_with("polygate:handler/")), "{name} imports {imports:?}");
        let mut exports: Vec<_> = interfaces.exports(&engine).map(|(export, _)| export.to_owned()).collect();
        let (handler, migrate) = ("polygate:handler/handler@0.1.0", "polygate:handler/migrate@0.1.0");
        let expected = if MIGRATING.contains(&name.as_str()) { vec![handler, migrate] } else { vec![handler] };
        exports.sort();
        assert_eq!(exports, expected, "{name}");
    }
}

/// What becomes a component.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Guest {
    name: String,
    language: Language,
    folder: PathBuf,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Language {
    Rust,
    C,
}

/// Every crate under guests/ that becomes a component, and every folder of guests/c with a handler, by name.
fn guests() -> Vec<Guest> {
    let file_name = |folder: &Path| folder.file_name().unwrap().to_str().unwrap().to_owned();
    let in_rust = ["guests", "guests/misbehaving"].map(|parent| list(&root().join(parent))).concat();
    let in_rust = in_rust
        .into_iter()
        .filter(|folder| fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| text.contains("cdylib")))
        .map(|folder| Guest { name: file_name(&folder), language: Language::Rust, folder });
    let in_c = list(&root().join("guests/c")).into_iter().filter(|folder| folder.join("handler.c").exists());
    let in_c = in_c.map(|folder| {
        let name = file_name(&folder);
        let taken = root().join("guests").join(&name).exists();
        Guest { name: if taken { format!("{name}-c") } else { name }, language: Language::C, folder }
    });
    let mut guests: Vec<_> = in_rust.chain(in_c).collect();
    guests.sort();
    guests
}

/// The digest of a guest's sources.
fn sources(Guest { language, folder, .. }: &Guest) -> String {
    let guests = root().join("guests");
    let mut files = Vec::new();
    match language {
        Language::Rust => {
            files.extend(["Cargo.toml", "Cargo.lock", ".cargo/config.toml"].map(|file| guests.join(file)));
            for folder in [folder, &guests.join("sdk")] {
                files.push(folder.join("Cargo.toml"));
                files.extend(walk(&folder.join("src")));
            }
        }
        Language::C => {
            files.extend([folder, &guests.join("c/sdk")].into_iter().flat_map(|folder| walk(folder)));
            files.retain(|file| file.extension().is_some_and(|extension| extension == "c" || extension == "h"));
            files.push(guests.join("build.d/c"));
        }
    }
    files.extend(walk(&root().join("wit")));
    let line = |file: &PathBuf| {
        let path: Vec<_> = file.strip_prefix(root()).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
        format!("{}\0{}\n", path.join("/"), sha256(&fs::read(file).unwrap()))
    };
    let mut lines: Vec<String> = files.iter().map(line).collect();
    lines.sort();
    sha256(lines.concat().as_bytes())
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    list(folder).into_iter().flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn list(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn component(name: &str) -> Vec<u8> {
    fs::read(root().join(format!("guests/dist/{name}.wasm"))).unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}; run guests/build"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
