use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiled components, so that a restart does not compile again.
///
/// A compiled component is machine code that is run as it is found. The directory is therefore made for the
/// gateway's own user alone, and one that others may write to is refused.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
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
}

impl Cache {
    /// Makes the directory, or takes one that is there.
    pub(super) fn open(dir: PathBuf) -> Result<Self, CacheError> {
        use std::os::unix::fs::PermissionsExt;

        let failed = |source| CacheError::Dir { dir: dir.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let mode = fs::metadata(&dir).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(CacheError::Writable { dir, mode });
        }
        Ok(Self { dir })
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
                Ok(component) => return Ok(component),
                Err(error) => tracing::warn!(?file, %error, "a compiled component is unusable; compiling again"),
            }
        }
        let compiled = Component::new(engine, component).map_err(CompileError::Compile)?;
        let code = compiled.serialize().map_err(CompileError::Compile)?;
        write_whole(&file, &code)
            .map_err(|source| CompileError::Cache(CacheError::Write { file: file.clone(), source }))?;
        Ok(compiled)
    }
}

fn file_name(engine: &Engine, component: &[u8]) -> String {
    let mut compatibility = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut compatibility);
    let digest = Sha256::digest(component);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}-{:016x}.cwasm", compatibility.finish())
}

/// Writes beside, then renames: a reader finds the whole file or none.
fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let suffix = getrandom::u64().map_err(io::Error::other)?;
    let beside = file.with_extension(format!("{suffix:016x}"));
    fs::write(&beside, bytes)?;
    fs::rename(&beside, file)
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
        let written = fs::metadata(&file).unwrap().modified().unwrap();

        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);

        fs::write(&file, b"broken").unwrap();
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert_ne!(fs::read(&file).unwrap(), b"broken");
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 1, "nothing is left beside it");
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
