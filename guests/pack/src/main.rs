//! Turns the built guests into components, and tells whether those under `dist/` are stale. `../build` runs it.
//!
//! Owns the folder that it writes, which is `dist/` unless another is asked for: the components, `SOURCES.sha256` (which sources each was built from, see [`sources`]) and
//! `SHA256SUMS` (what `sha256sum -c` wants). Never builds: that is the compilers' work, and finds their results under `target/`.

mod component;
mod sources;

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guests = manifest.parent().context("expected a workspace around this crate")?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", out] => write(guests, Path::new(out)),
        ["check"] => check(guests),
        other => bail!("expected \"write\" and a directory, or \"check\", found {other:?}"),
    }
}

/// Makes a component of each guest that a compiler has built, in a directory that is made when it is absent.
fn write(guests: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("making the directory {}", out.display()))?;
    let wit = guests.parent().context("expected a repository around the workspace")?.join("wit/handler.wit");
    let (mut digests, mut sums) = (String::new(), String::new());
    for guest in sources::guests(guests)? {
        let file = format!("{}.wasm", guest.name);
        let built = guests.join(guest.language.built()).join(guest.language.file_name(&guest.name));
        let module =
            fs::read(&built).with_context(|| format!("reading {}, which its compiler builds", built.display()))?;
        let component = component::from_module(&module, guest.language, &wit)
            .with_context(|| format!("making a component of {file}"))?;
        keep(out, &file, &component)?;
        digests += &format!("{}  {file}\n", sources::digest(guests, &guest)?);
        sums += &format!("{}  {file}\n", sources::sha256(&component));
        println!("{:>8} bytes  {file}", component.len());
    }
    keep(out, "SOURCES.sha256", digests.as_bytes())?;
    keep(out, "SHA256SUMS", sums.as_bytes())
}

fn keep(out: &Path, file: &str, contents: &[u8]) -> Result<()> {
    let path = out.join(file);
    fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))
}

/// Fails when a component is missing, was built from other sources, or is not the one that was built.
fn check(guests: &Path) -> Result<()> {
    let dist = guests.join("dist");
    let read = |name: &str| {
        fs::read_to_string(dist.join(name)).with_context(|| format!("reading dist/{name}; run guests/build"))
    };
    let (digests, sums) = (read("SOURCES.sha256")?, read("SHA256SUMS")?);
    let mut stale = Vec::new();
    for guest in sources::guests(guests)? {
        let file = format!("{}.wasm", guest.name);
        let fresh = digests
            .lines()
            .any(|line| line == format!("{}  {file}", sources::digest(guests, &guest).unwrap_or_default()));
        let whole = fs::read(dist.join(&file))
            .is_ok_and(|bytes| sums.lines().any(|line| line == format!("{}  {file}", sources::sha256(&bytes))));
        if !(fresh && whole) {
            stale.push(file);
        }
    }
    if stale.is_empty() {
        Ok(())
    } else {
        bail!("not built from the present sources: {}; run guests/build", stale.join(", "))
    }
}
