//! Which sources a component is made of, as one digest that is easy to compute again.
//!
//! A guest in Rust is a folder of the workspace, or of `misbehaving/`, whose `Cargo.toml` asks for a `cdylib`. Its sources
//! are
//!
//! - its own `Cargo.toml` and everything under its `src/`,
//! - the same of `sdk`,
//! - the workspace's `Cargo.toml`, `Cargo.lock` and `.cargo/config.toml`,
//! - everything under `wit/` at the top of the repository.
//!
//! A guest in C is a folder of `c/` with a `handler.c`. Its sources are the files in it whose names end in `.c` or `.h`, the
//! same of `c/sdk`, `build.d/c`, and everything under `wit/`.
//!
//! The digest is the SHA-256, in hexadecimal, of one line for each file: its path from the top of the repository with `/`
//! between the parts, a zero byte, the SHA-256 of its contents in hexadecimal, a line feed. The lines are sorted by bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// What becomes a component.
pub(crate) struct Guest {
    /// The component's name: its folder's, with `-c` where a guest in Rust has the name already.
    pub(crate) name: String,
    /// What it is written in.
    pub(crate) language: Language,
    folder: PathBuf,
}

/// The languages whose guests are committed.
#[derive(Clone, Copy)]
pub(crate) enum Language {
    Rust,
    C,
}

impl Language {
    /// Where its compiler leaves core modules, in the workspace.
    pub(crate) fn built(self) -> &'static str {
        match self {
            Self::Rust => "target/wasm32-unknown-unknown/release",
            Self::C => "target/c",
        }
    }
}

/// All guests that are committed, by name.
pub(crate) fn guests(workspace: &Path) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for parent in [workspace.to_owned(), workspace.join("misbehaving")] {
        for entry in fs::read_dir(&parent).with_context(|| format!("reading {}", parent.display()))? {
            let folder = entry?.path();
            let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
            if let (true, Some(name)) = (manifest.contains("cdylib"), folder.file_name()) {
                guests.push(Guest { name: name.to_string_lossy().into_owned(), language: Language::Rust, folder });
            }
        }
    }
    for entry in fs::read_dir(workspace.join("c")).context("reading c/")? {
        let folder = entry?.path();
        if let (true, Some(name)) = (folder.join("handler.c").exists(), folder.file_name()) {
            let name = name.to_string_lossy();
            let taken = workspace.join(&*name).exists();
            let name = if taken { format!("{name}-c") } else { name.into_owned() };
            guests.push(Guest { name, language: Language::C, folder });
        }
    }
    guests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(guests)
}

/// The digest of a guest's sources.
pub(crate) fn digest(workspace: &Path, guest: &Guest) -> Result<String> {
    let repository = workspace.parent().context("expected a repository around the workspace")?;
    let mut files = Vec::new();
    match guest.language {
        Language::Rust => {
            files.extend(["Cargo.toml", "Cargo.lock", ".cargo/config.toml"].map(|file| workspace.join(file)));
            for folder in [&guest.folder, &workspace.join("sdk")] {
                files.push(folder.join("Cargo.toml"));
                walk(&folder.join("src"), &mut files)?;
            }
        }
        Language::C => {
            walk(&guest.folder, &mut files)?;
            walk(&workspace.join("c/sdk"), &mut files)?;
            files.retain(|file| file.extension().is_some_and(|extension| extension == "c" || extension == "h"));
            files.push(workspace.join("build.d/c"));
        }
    }
    walk(&repository.join("wit"), &mut files)?;
    let mut lines = files
        .iter()
        .map(|file| {
            let parts: Vec<_> = file.strip_prefix(repository)?.iter().map(|part| part.to_string_lossy()).collect();
            let contents = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            Ok(format!("{}\0{}\n", parts.join("/"), sha256(&contents)))
        })
        .collect::<Result<Vec<_>>>()?;
    lines.sort();
    Ok(sha256(lines.concat().as_bytes()))
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
