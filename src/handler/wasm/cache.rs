//! Compiled-component cache: a directory of wasmtime's `.cwasm` files, so that a restart does not compile again.
//!
//! A compiled component is machine code that runs without validation. The directory is therefore created with mode 700,
//! and a directory that another user owns or can write to is refused. The least recently used files beyond
//! [`CACHED_MAX`] are removed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::atomic_file::write_atomic;

/// Maximum number of cached components; a compiled component is several times as large as its source.
const CACHED_MAX: usize = 64;

/// Directory of compiled components.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    compiles: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("cannot use {dir:?} for compiled components")]
    Dir { dir: PathBuf, source: io::Error },
    /// Other users could write machine code into the directory.
    #[error(
        "expected mode 700 of {dir:?}, which holds compiled components; came mode {mode:o}, writable by other users"
    )]
    Writable { dir: PathBuf, mode: u32 },
    /// Another user owns the directory, and could write machine code into it.
    #[error(
        "expected {dir:?}, which holds compiled components, to belong to the gateway's user {user}; came owner {owner}"
    )]
    Foreign {
        dir: PathBuf,
        owner: u32,
        /// User of the gateway's process.
        user: u32,
    },
    #[error("cannot write a compiled component to {file:?}")]
    Write { file: PathBuf, source: io::Error },
}

#[derive(Debug)]
pub(super) enum CompileError {
    Compile(wasmtime::Error),
    /// The compiled component could not be written.
    Cache(CacheError),
    /// The component is not cached, and this cache does not compile.
    Missing,
}

impl Cache {
    /// Opens the directory; creates it if it is missing.
    pub(super) fn open(dir: PathBuf) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Dir { dir: dir.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let metadata = fs::metadata(&dir).map_err(failed)?;
        check(&dir, metadata.mode() & 0o777, metadata.uid(), rustix::process::geteuid().as_raw())?;
        Ok(Self { dir, compiles: true })
    }

    /// From now on, components that are not cached are [`CompileError::Missing`].
    pub(super) fn disable_compiler(&mut self) {
        self.compiles = false;
    }

    /// The component compiled for this engine: from the cache, or compiled now and cached.
    pub(super) fn compiled(&self, engine: &Engine, component: &[u8]) -> Result<Component, CompileError> {
        let file = self.dir.join(file_name(engine, component));
        if file.exists() {
            #[expect(unsafe_code, reason = "loading compiled machine code is the purpose of this cache")]
            // SAFETY: `deserialize_file` trusts the file. `open` has checked that no other user can write to its
            // directory; the atomic write below put it there complete; its name has the digest of the component and the
            // hash of the compiler's version and settings.
            let cached = unsafe { Component::deserialize_file(engine, &file) };
            match cached {
                Ok(component) => {
                    touch(&file);
                    return Ok(component);
                }
                Err(error) => {
                    tracing::warn!(?file, %error, "unusable compiled component in the cache; compiling again")
                }
            }
        }
        if !self.compiles {
            return Err(CompileError::Missing);
        }
        let compiled = Component::new(engine, component).map_err(CompileError::Compile)?;
        let code = compiled.serialize().map_err(CompileError::Compile)?;
        write_atomic(&file, &code)
            .map_err(|source| CompileError::Cache(CacheError::Write { file: file.clone(), source }))?;
        self.evict_oldest();
        Ok(compiled)
    }

    /// Evicts the least recently used files beyond [`CACHED_MAX`]. Code that is mapped stays mapped.
    fn evict_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let used = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
        let mut files: Vec<_> = entries.filter_map(|entry| used(entry.ok()?)).collect();
        files.sort();
        for (_, file) in files.iter().rev().skip(CACHED_MAX) {
            if let Err(error) = fs::remove_file(file) {
                tracing::warn!(?file, %error, "cannot evict a compiled component from the cache");
            }
        }
    }
}

/// Marks a file as used now. A file that cannot be marked is only evicted earlier.
fn touch(file: &Path) {
    let touched = fs::File::options().append(true).open(file).and_then(|open| open.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(?file, %error, "cannot update the modification time of a compiled component");
    }
}

/// Checks that only `user` and root can write to the directory.
fn check(dir: &Path, mode: u32, owner: u32, user: u32) -> Result<(), CacheError> {
    let dir = dir.to_owned();
    if owner != user && owner != 0 {
        return Err(CacheError::Foreign { dir, owner, user });
    }
    if mode & 0o022 != 0 {
        return Err(CacheError::Writable { dir, mode });
    }
    Ok(())
}

fn file_name(engine: &Engine, component: &[u8]) -> String {
    let mut compatibility = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut compatibility);
    let digest = Sha256::digest(component);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}-{:016x}.cwasm", compatibility.finish())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    /// The second call loads the cached file; a corrupt file is compiled again.
    #[test]
    fn compiled_components_are_cached() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("components")).unwrap();
        let engine = Engine::default();
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        let file = cache.dir.join(file_name(&engine, EMPTY_COMPONENT));
        let written = fs::metadata(&file).unwrap().ino();

        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), written);

        fs::write(&file, b"broken").unwrap();
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert_ne!(fs::read(&file).unwrap(), b"broken");
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 1, "no temporary file is left");
    }

    /// The least recently used file is evicted once the cache is full.
    #[test]
    fn least_recently_used_files_are_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("components")).unwrap();
        let engine = Engine::default();
        let begin = SystemTime::now() - std::time::Duration::from_secs(1000);
        for number in 0..CACHED_MAX as u64 {
            let file = fs::File::create(cache.dir.join(number.to_string())).unwrap();
            file.set_modified(begin + std::time::Duration::from_secs(number)).unwrap();
        }
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        let left = fs::read_dir(&cache.dir).unwrap().count();
        assert_eq!(left, CACHED_MAX);
        assert!(!cache.dir.join("0").exists() && cache.dir.join("1").exists());
    }

    /// A directory of another user is refused, whatever its mode; a directory of root is accepted.
    #[test]
    fn a_foreign_directory_is_refused() {
        let dir = Path::new("components");
        assert!(matches!(check(dir, 0o700, 7, 8), Err(CacheError::Foreign { owner: 7, user: 8, .. })));
        assert!(check(dir, 0o755, 8, 8).is_ok());
        assert!(check(dir, 0o755, 0, 8).is_ok());
        assert!(matches!(check(dir, 0o770, 8, 8), Err(CacheError::Writable { mode: 0o770, .. })));
    }

    /// A directory that other users can write to is refused.
    #[test]
    fn a_writable_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Cache::open(dir.path().to_owned()).unwrap_err();
        assert!(matches!(refused, CacheError::Writable { mode: 0o777, .. }), "{refused}");
    }
}
