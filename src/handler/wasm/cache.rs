//! Compiled-component cache: a directory of wasmtime's `.cwasm` files, so that a restart does not compile again.
//!
//! A compiled component is machine code that runs without validation. The directory is therefore created with mode 700,
//! and a directory that another user owns or can write to is refused; each file has a keyed digest, which is verified
//! before its code is used. Code that cannot be written, because the disk is full or read-only, is kept in memory. The least recently used files beyond
//! [`CACHED_MAX`] are removed.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::atomic_file::write_atomic;

/// Maximum number of cached components; a compiled component is several times as large as its source.
const CACHED_MAX: usize = 64;

/// File name extension of a compiled component.
const COMPILED: &str = "cwasm";

/// File of the [`Key`].
const KEY: &str = "key";

const DIGEST_BYTES: usize = 32;

/// Maximum number of compiled components kept in memory because they could not be written.
const IN_MEMORY_MAX: usize = 16;

/// Cache of compiled components.
#[derive(Clone)]
pub(super) struct Cache {
    /// None if there is no place to write to.
    disk: Option<Disk>,
    /// Those that could not be written, newest first.
    memory: Arc<Mutex<VecDeque<(String, Component)>>>,
    compiles: bool,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("disk", &self.disk).field("compiles", &self.compiles).finish_non_exhaustive()
    }
}

/// Directory of compiled components.
#[derive(Clone, Debug)]
struct Disk {
    dir: PathBuf,
    key: Key,
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
}

#[derive(Debug)]
pub(super) enum CompileError {
    Compile(wasmtime::Error),
    /// The component is not cached, and this cache does not compile.
    Missing,
}

impl Cache {
    /// Opens the directory; creates it if it is missing. If it cannot be created, as in a read-only file system,
    /// compiled components stay in memory.
    pub(super) fn open(dir: PathBuf) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Dir { dir: dir.clone(), source };
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Err(failed(error));
            }
            tracing::warn!(?dir, %error, "cannot keep compiled components; each start compiles them again");
            return Ok(Self::in_memory());
        }
        let metadata = fs::metadata(&dir).map_err(failed)?;
        check(&dir, metadata.mode() & 0o777, metadata.uid(), rustix::process::geteuid().as_raw())?;
        let disk = match Key::of_dir(&dir) {
            Ok(key) => Some(Disk { dir, key }),
            Err(error) => {
                tracing::warn!(?dir, %error, "cannot keep compiled components; each start compiles them again");
                None
            }
        };
        Ok(Self { disk, ..Self::in_memory() })
    }

    /// A cache without a directory.
    pub(super) fn in_memory() -> Self {
        Self { disk: None, memory: Arc::default(), compiles: true }
    }

    /// From now on, components that are not cached are [`CompileError::Missing`].
    pub(super) fn disable_compiler(&mut self) {
        self.compiles = false;
    }

    /// The component compiled for this engine: from the cache, or compiled now and cached.
    pub(super) fn compiled(&self, engine: &Engine, component: &[u8]) -> Result<Component, CompileError> {
        let name = file_name(engine, component);
        if let Some(cached) = self.cached(engine, &name) {
            return Ok(cached);
        }
        if !self.compiles {
            return Err(CompileError::Missing);
        }
        let compiled = Component::new(engine, component).map_err(CompileError::Compile)?;
        let code = match &self.disk {
            Some(_) => compiled.serialize().map_err(CompileError::Compile)?,
            None => Vec::new(),
        };
        self.keep(name, &code, &compiled);
        Ok(compiled)
    }

    /// Whether the component is cached.
    pub(super) fn has(&self, engine: &Engine, component: &[u8]) -> bool {
        self.cached(engine, &file_name(engine, component)).is_some()
    }

    /// Caches code that the compiler process has made of this component.
    pub(super) fn put(&self, engine: &Engine, component: &[u8], code: &[u8]) -> Result<(), CompileError> {
        #[expect(unsafe_code, reason = "loading compiled machine code is the purpose of this cache")]
        // SAFETY: `deserialize` trusts the bytes, which came over a pipe from the compiler process that this process
        // has started with this program's own file.
        let compiled = unsafe { Component::deserialize(engine, code) }.map_err(CompileError::Compile)?;
        self.keep(file_name(engine, component), code, &compiled);
        Ok(())
    }

    fn cached(&self, engine: &Engine, name: &str) -> Option<Component> {
        if let Some((_, component)) = self.memory.lock().iter().find(|(kept, _)| kept == name) {
            return Some(component.clone());
        }
        let disk = self.disk.as_ref()?;
        let file = disk.dir.join(name);
        let mut content = Vec::new();
        let read = fs::File::open(&file).and_then(|mut opened| opened.read_to_end(&mut content).map(|_| opened));
        let opened = match read {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(?file, %error, "unreadable compiled component in the cache; compiling again");
                return None;
            }
        };
        if !disk.key.has_signed(name, &content) {
            tracing::warn!(?file, "compiled component in the cache that this gateway has not written; compiling again");
            return None;
        }
        // The file that was verified, also if its name means another one by now.
        let verified = format!("/proc/self/fd/{}", opened.as_raw_fd());
        #[expect(unsafe_code, reason = "loading compiled machine code is the purpose of this cache")]
        // SAFETY: `deserialize_file` trusts the file. Its keyed digest shows that a gateway with this directory's key
        // has written it under this name, which has the digest of the component and the hash of the compiler's version
        // and settings. The file that was verified is the one that is mapped: it is replaced by renames only, and its
        // mode of 600 keeps other users from changing it in place. The digest at its end is outside of the ELF sections.
        match unsafe { Component::deserialize_file(engine, verified) } {
            Ok(component) => {
                touch(&file);
                Some(component)
            }
            Err(error) => {
                tracing::warn!(?file, %error, "unusable compiled component in the cache; compiling again");
                None
            }
        }
    }

    /// Keeps compiled code in the directory, or, if it cannot be written, in memory.
    fn keep(&self, name: String, code: &[u8], compiled: &Component) {
        if let Some(disk) = &self.disk {
            let file = disk.dir.join(&name);
            match write_atomic(&file, &disk.key.signed(&name, code)) {
                Ok(()) => return disk.evict_oldest(),
                Err(error) => {
                    tracing::warn!(?file, %error, "cannot keep a compiled component; the next start compiles it again")
                }
            }
        }
        let mut memory = self.memory.lock();
        memory.truncate(IN_MEMORY_MAX - 1);
        memory.push_front((name, compiled.clone()));
    }
}

impl Disk {
    /// Evicts the least recently used files beyond [`CACHED_MAX`]. Code that is mapped stays mapped.
    fn evict_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let used = |entry: fs::DirEntry| {
            let path = entry.path();
            let is_compiled = path.extension().is_some_and(|extension| extension == COMPILED);
            is_compiled.then_some((entry.metadata().ok()?.modified().ok()?, path))
        };
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
    format!("{hex}-{:016x}.{COMPILED}", compatibility.finish())
}

/// Key of the digests of compiled components: who can write into the directory, but not read this file, cannot make
/// code that is run.
#[derive(Clone)]
struct Key(Arc<[u8; 32]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The key of the directory; generated for the first one that asks.
    fn of_dir(dir: &Path) -> io::Result<Self> {
        let file = dir.join(KEY);
        for _ in 0..2 {
            match Self::read(&file) {
                Ok(key) => return Ok(key),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(?file, %error, "replacing the key of the compiled components");
                    fs::remove_file(&file)?;
                }
            }
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
            temporary.write_all(&key)?;
            temporary.as_file().sync_all()?;
            match temporary.persist_noclobber(&file) {
                Ok(_) => return Ok(Self(Arc::new(key))),
                // Another gateway was faster; its key is this one's too.
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.error),
            }
        }
        Self::read(&file)
    }

    fn read(file: &Path) -> io::Result<Self> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = fs::File::options().read(true).custom_flags(flags).open(file)?;
        let (found, user) = (opened.metadata()?, rustix::process::geteuid().as_raw());
        let is_private = found.is_file() && found.mode() & 0o077 == 0 && (found.uid() == user || found.uid() == 0);
        let mut key = Vec::new();
        opened.take(33).read_to_end(&mut key)?;
        match <[u8; 32]>::try_from(key) {
            Ok(key) if is_private => Ok(Self(Arc::new(key))),
            Ok(_) | Err(_) => Err(io::Error::other("expected 32 bytes in a file of mode 600 of the gateway's user")),
        }
    }

    /// HMAC over the name and the code: a file under another file's name is not accepted.
    fn digest(&self, name: &str, code: &[u8]) -> Hmac<Sha256> {
        // The name has a fixed length, so its end needs no mark.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block.iter_mut().zip(self.0.iter()).for_each(|(padded, byte)| *padded = *byte);
        Hmac::new(&block).chain_update(name).chain_update(code)
    }

    /// The content of a file: code, then digest.
    fn signed(&self, name: &str, code: &[u8]) -> Vec<u8> {
        let digest = self.digest(name, code).finalize().into_bytes();
        [code, &digest[..]].concat()
    }

    /// Whether the digest of a file's content is valid.
    fn has_signed(&self, name: &str, content: &[u8]) -> bool {
        content
            .split_last_chunk::<DIGEST_BYTES>()
            .is_some_and(|(code, digest)| self.digest(name, code).verify_slice(digest).is_ok())
    }
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
        let dir = dir.path().join("components");
        let file = dir.join(file_name(&engine, EMPTY_COMPONENT));
        let written = fs::metadata(&file).unwrap().ino();

        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), written);

        fs::write(&file, b"broken").unwrap();
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert_ne!(fs::read(&file).unwrap(), b"broken");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "the code and the key, and no temporary file");
    }

    /// Code is used only under its name and with the key of its directory: a file that someone else has put there,
    /// though it is valid machine code, is compiled again.
    #[test]
    fn foreign_code_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let name = file_name(&engine, EMPTY_COMPONENT);
        let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
        let cache = || Cache::open(ours.clone()).unwrap();
        cache().compiled(&engine, EMPTY_COMPONENT).unwrap();
        Cache::open(theirs.clone()).unwrap().compiled(&engine, EMPTY_COMPONENT).unwrap();
        assert!(cache().has(&engine, EMPTY_COMPONENT), "the key outlives a restart");

        let bare = Component::new(&engine, EMPTY_COMPONENT).unwrap().serialize().unwrap();
        let valid = fs::read(ours.join(&name)).unwrap();
        let mut changed = valid.clone();
        *changed.last_mut().unwrap() ^= 1;
        for content in [bare, fs::read(theirs.join(&name)).unwrap(), changed, valid[..40].to_vec(), Vec::new()] {
            fs::write(ours.join(&name), content).unwrap();
            assert!(!cache().has(&engine, EMPTY_COMPONENT));
        }
        fs::write(ours.join(&name), &valid).unwrap();
        assert!(cache().has(&engine, EMPTY_COMPONENT));
        let other = format!("{}-0000000000000000.{COMPILED}", "0".repeat(64));
        assert!(!Key::of_dir(&ours).unwrap().has_signed(&other, &valid), "under another name");
        fs::set_permissions(ours.join(KEY), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!cache().has(&engine, EMPTY_COMPONENT), "a key that others can read is replaced");
    }

    /// Code that cannot be written is used from memory; the next call does not compile again.
    #[test]
    fn code_that_cannot_be_written_stays_in_memory() {
        let engine = Engine::default();
        let mut cache = Cache::open(PathBuf::from("/proc/self/no-such-directory")).unwrap();
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        cache.disable_compiler();
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
    }

    /// The least recently used file is evicted once the cache is full.
    #[test]
    fn least_recently_used_files_are_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("components")).unwrap();
        let engine = Engine::default();
        let files = dir.path().join("components");
        let begin = SystemTime::now() - std::time::Duration::from_secs(1000);
        for number in 0..CACHED_MAX as u64 {
            let file = fs::File::create(files.join(format!("{number}.cwasm"))).unwrap();
            file.set_modified(begin + std::time::Duration::from_secs(number)).unwrap();
        }
        cache.compiled(&engine, EMPTY_COMPONENT).unwrap();
        let left = fs::read_dir(&files).unwrap().count();
        assert_eq!(left, CACHED_MAX + 1, "and the key");
        assert!(!files.join("0.cwasm").exists() && files.join("1.cwasm").exists() && files.join(KEY).exists());
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
