//! Turns the built guests into components under `dist/`, and tells whether they are stale. `../build` runs it.
//!
//! Owns the folder `dist/`: the components, `SOURCES.sha256` (which sources each was built from, see [`sources`]) and
//! `SHA256SUMS` (what `sha256sum -c` wants). Never builds: that is cargo's work, and finds its result under `target/`.

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
        ["write"] => write(guests),
        ["check"] => check(guests),
        other => bail!("expected \"write\" or \"check\", found {other:?}"),
    }
}

/// Makes a component of each guest that cargo has built.
fn write(guests: &Path) -> Result<()> {
    let built = guests.join("target/wasm32-unknown-unknown/release");
    let dist = guests.join("dist");
    fs::create_dir_all(&dist)?;
    let (mut digests, mut sums) = (String::new(), String::new());
    for guest in sources::guests(guests)? {
        let file = format!("{}.wasm", guest.name);
        let module = fs::read(built.join(&file)).with_context(|| format!("reading {file}, which cargo builds"))?;
        let component = component::from_module(&module).with_context(|| format!("making a component of {file}"))?;
        fs::write(dist.join(&file), &component)?;
        digests += &format!("{}  {file}\n", sources::digest(guests, &guest)?);
        sums += &format!("{}  {file}\n", sources::sha256(&component));
        println!("{:>8} bytes  dist/{file}", component.len());
    }
    fs::write(dist.join("SOURCES.sha256"), digests)?;
    fs::write(dist.join("SHA256SUMS"), sums)?;
    Ok(())
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
