//! Version store of one handler in the data directory: components by digest, and the index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::LoadError;
use super::index::Index;
use crate::atomic_file::write_atomic;

const INDEX: &str = "index.json";

/// A damaged index is renamed to this, for inspection.
const DAMAGED: &str = "index.damaged";

/// File name extension of a component.
const COMPONENT: &str = "wasm";

/// One handler's directory.
#[derive(Clone, Debug)]
pub(super) struct Store {
    dir: PathBuf,
    /// Components that could not be stored, by digest, with the file that was read.
    unstored: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

impl Store {
    /// Opens the directory; creates it if needed. One that cannot be created is reported by the first write.
    pub(super) fn open(dir: PathBuf) -> Self {
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            tracing::warn!(?dir, %error, "cannot create the version store of a handler");
        }
        Self { dir, unstored: Arc::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The index; `None` if there is none, or if it is damaged, which is logged, and the file set aside.
    pub(super) fn read(&self, handler: &str) -> io::Result<Option<Index>> {
        let file = self.dir.join(INDEX);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let index = String::from_utf8(bytes).map_err(|error| error.to_string()).and_then(|text| Index::read(&text));
        match index {
            Ok(index) => Ok(Some(index)),
            Err(why) => {
                let aside = self.dir.join(DAMAGED);
                if let Err(error) = fs::rename(&file, &aside) {
                    tracing::error!(handler, ?file, %error, "the index of the handler's versions is damaged and cannot be set aside; using the configuration: {why}");
                    return Ok(None);
                }
                tracing::error!(
                    handler,
                    ?aside,
                    "the index of the handler's versions is damaged and set aside; using the configuration: {why}"
                );
                Ok(None)
            }
        }
    }

    /// Replaces the index.
    pub(super) fn write(&self, index: &Index) -> io::Result<()> {
        let text = index.write().map_err(io::Error::other)?;
        write_atomic(&self.dir.join(INDEX), text.as_bytes())
    }

    /// [`Store::write`] on a blocking thread.
    pub(super) async fn write_aside(&self, index: &Index) -> Result<(), LoadError> {
        let (writes, index) = (self.clone(), index.clone());
        let written = tokio::task::spawn_blocking(move || writes.write(&index)).await?;
        written.map_err(|source| self.failed(source))
    }

    /// The error for a failed file operation in this directory.
    pub(super) fn failed(&self, source: io::Error) -> LoadError {
        LoadError::Store { dir: self.dir().to_owned(), source }
    }

    /// Stores a component; returns its digest.
    pub(super) fn put(&self, component: &[u8]) -> io::Result<String> {
        let sha256 = digest(component);
        if !self.has(&sha256) {
            write_atomic(&self.dir.join(&sha256).with_extension(COMPONENT), component)?;
            self.unstored.lock().remove(&sha256);
        }
        Ok(sha256)
    }

    /// Whether the component is stored with its original content.
    pub(super) fn has(&self, sha256: &str) -> bool {
        fs::read(self.component(sha256)).is_ok_and(|bytes| digest(&bytes) == sha256)
    }

    /// As [`Store::put`]; if the component of this file cannot be stored, the file itself is used while its content is
    /// the same, which is logged.
    pub(super) fn put_or_use(&self, component: &[u8], file: &Path) -> String {
        let sha256 = digest(component);
        if let Err(error) = self.put(component) {
            let dir = &self.dir;
            tracing::warn!(?dir, ?file, %error, "cannot store a component; it is used from its file, and is not kept for a rollback");
            self.unstored.lock().insert(sha256.clone(), file.to_owned());
        }
        sha256
    }

    /// Path of a component.
    pub(super) fn component(&self, sha256: &str) -> PathBuf {
        let unstored = self.unstored.lock().get(sha256).cloned();
        unstored.unwrap_or_else(|| self.dir.join(sha256).with_extension(COMPONENT))
    }

    /// Removes all components but these. A failed removal is retried the next time.
    pub(super) fn prune(&self, kept: &BTreeSet<&str>) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_component = path.extension().is_some_and(|extension| extension == COMPONENT);
            let is_kept = path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| kept.contains(stem));
            if is_component
                && !is_kept
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(?path, %error, "cannot remove an unused component");
            }
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::index::{Artifact, Origin, Record};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("versions/h"));
        (dir, store)
    }

    /// A component whose bytes have changed on disk is not used, and is replaced.
    #[test]
    fn a_changed_component_is_not_there() {
        let (_dir, store) = store();
        let sha256 = store.put(b"component").unwrap();
        assert!(store.has(&sha256));
        fs::write(store.component(&sha256), b"other").unwrap();
        assert!(!store.has(&sha256));
        assert_eq!(store.put(b"component").unwrap(), sha256);
        assert!(store.has(&sha256));
    }

    /// Unused components are removed, other files are not.
    #[test]
    fn unused_components_are_removed() {
        let (_dir, store) = store();
        let [one, two] = [b"one", b"two"].map(|bytes| store.put(bytes).unwrap());
        fs::write(store.dir().join("note.txt"), "mine").unwrap();
        store.prune(&[&*two].into());
        assert!(!store.has(&one) && store.has(&two) && store.dir().join("note.txt").exists());
    }

    /// A damaged index is set aside, and the next one takes its place.
    #[test]
    fn a_damaged_index_is_set_aside() {
        let (_dir, store) = store();
        assert_eq!(store.read("h").unwrap(), None);
        let what = Artifact::Wasm { sha256: store.put(b"one").unwrap() };
        let first = Record { number: 1, origin: Origin::Configuration, by: "start".to_owned(), at_s: 0, what };
        let index = Index::new(first);
        store.write(&index).unwrap();
        assert_eq!(store.read("h").unwrap(), Some(index.clone()));

        fs::write(store.dir().join(INDEX), b"{\xff").unwrap();
        assert_eq!(store.read("h").unwrap(), None);
        assert_eq!(fs::read(store.dir().join(DAMAGED)).unwrap(), b"{\xff");
        store.write(&index).unwrap();
        assert_eq!(store.read("h").unwrap(), Some(index));
    }
}
