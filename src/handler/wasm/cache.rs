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

/// Compiled components that are kept; each is some times as large as its component.
const KEPT_MAX: usize = 64;

/// Compiled components, so that a restart does not compile again.
///
/// A compiled component is machine code that is run as it is found. The directory is therefore made for the
/// gateway's own user alone, and one that others own or may write to is refused.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    compiles: bool,
}

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be made or looked at.
    #[error("cannot use {dir:?} for compiled components")]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others could put machine code there.
    #[error("{dir:?} holds compiled components and may be written to by others (mode {mode:o}); expected mode 700")]
    Writable {
        /// The directory.
        dir: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else owns the directory, and could put machine code there at any time.
    #[error("{dir:?} holds compiled components and belongs to user {owner}; expected the gateway's own user {user}")]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs the gateway.
        user: u32,
    },
    /// A compiled component could not be kept.
    #[error("cannot keep a compiled component in {file:?}")]
    Write {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why there is no compiled component.
#[derive(Debug)]
pub(super) enum CompileError {
    /// The compiler refuses it.
    Compile(wasmtime::Error),
    /// It could not be kept.
    Cache(CacheError),
    /// It is not there, and this cache does not compile.
    Missing,
}

impl Cache {
    /// Makes the directory, or takes one that is there.
    pub(super) fn open(dir: PathBuf) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Dir { dir: dir.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let found = fs::metadata(&dir).map_err(failed)?;
        check(&dir, found.mode() & 0o777, found.uid(), rustix::process::geteuid().as_raw())?;
        Ok(Self { dir, compiles: true })
    }

    /// What is not there is missing from now on.
    pub(super) fn keep_from_compiling(&mut self) {
        self.compiles = false;
    }

    /// The component compiled for this engine: from the cache, else compiled now and kept.
    pub(super) fn compiled(&self, engine: &Engine, component: &[u8]) -> Result<Component, CompileError> {
        let file = self.dir.join(file_name(engine, component));
        if file.exists() {
            #[expect(unsafe_code, reason = "running kept machine code is what this cache is for")]
            // SAFETY: `deserialize_file` runs what it finds. The file is in a directory that `open` has found closed
            // to others, and got there by the `rename` below, whole; its name fixes the component, the compiler's
            // version and its settings.
            let kept = unsafe { Component::deserialize_file(engine, &file) };
            match kept {
                Ok(component) => {
                    touch(&file);
                    return Ok(component);
                }
                Err(error) => tracing::warn!(?file, %error, "a compiled component is unusable; compiling again"),
            }
        }
        if !self.compiles {
            return Err(CompileError::Missing);
        }
        let compiled = Component::new(engine, component).map_err(CompileError::Compile)?;
        let code = compiled.serialize().map_err(CompileError::Compile)?;
        write_atomic(&file, &code)
            .map_err(|source| CompileError::Cache(CacheError::Write { file: file.clone(), source }))?;
        self.forget_oldest();
        Ok(compiled)
    }

    /// Removes what was not used for longest, beyond what is kept. Code that is mapped stays mapped.
    fn forget_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let used = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
        let mut files: Vec<_> = entries.filter_map(|entry| used(entry.ok()?)).collect();
        files.sort();
        for (_, file) in files.iter().rev().skip(KEPT_MAX) {
            if let Err(error) = fs::remove_file(file) {
                tracing::warn!(?file, %error, "cannot remove a compiled component that was not used for long");
            }
        }
    }
}

/// Marks a file as used now. What cannot be marked is only forgotten earlier.
fn touch(file: &Path) {
    let touched = fs::File::options().append(true).open(file).and_then(|open| open.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(?file, %error, "cannot mark a compiled component as used");
    }
}

/// Whether nobody but `user` and the system's administrator can put files into the directory.
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

    /// The second start takes the compiled file; a broken one is compiled again.
    #[test]
    fn a_compiled_component_is_kept() {
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
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 1, "nothing is left beside it");
    }

    /// What was used last is kept, and no more than its number.
    #[test]
    fn what_was_not_used_for_longest_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("components")).unwrap();
        let engine = Engine::default();
        let begin = SystemTime::now() - std::time::Duration::from_secs(1000);
        for number in 0..KEPT_MAX as u64 {
            let file = fs::File::create(cache.dir.join(number.to_string())).unwrap();
            file.set_modified(begin + std::time::Duration::from_secs(number)).unwrap();
        }
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        let left = fs::read_dir(&cache.dir).unwrap().count();
        assert_eq!(left, KEPT_MAX);
        assert!(!cache.dir.join("0").exists() && cache.dir.join("1").exists());
    }

    /// A directory of another user is refused, whatever its mode; the administrator's is not.
    #[test]
    fn a_foreign_directory_is_refused() {
        let dir = Path::new("components");
        assert!(matches!(check(dir, 0o700, 7, 8), Err(CacheError::Foreign { owner: 7, user: 8, .. })));
        assert!(check(dir, 0o755, 8, 8).is_ok());
        assert!(check(dir, 0o755, 0, 8).is_ok());
        assert!(matches!(check(dir, 0o770, 8, 8), Err(CacheError::Writable { mode: 0o770, .. })));
    }

    /// A directory that others may write to is refused.
    #[test]
    fn an_open_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Cache::open(dir.path().to_owned()).unwrap_err();
        assert!(matches!(refused, CacheError::Writable { mode: 0o777, .. }), "{refused}");
    }
}
