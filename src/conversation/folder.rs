//! Finds conversation files in folders and reads them.

use std::io;
use std::path::{Path, PathBuf};

use super::{Conversation, ReadError};

/// The extension of conversation files.
const EXTENSION: &str = "conversation";

/// No conversations could be found in a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are none in it.
    #[error("expected files that end in .conversation in {path}, found none", path = .0.display())]
    Empty(PathBuf),
}

/// The files among `paths`, and the `.conversation` files of each folder, sorted by name.
///
/// # Errors
///
/// [`FolderError`]. Whether a given file exists is not checked.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, FolderError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() { files.extend(of_folder(path)?) } else { files.push(path.clone()) }
    }
    Ok(files)
}

fn of_folder(path: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let failed = |source| FolderError::Io { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == EXTENSION) {
            found.push(file);
        }
    }
    if found.is_empty() {
        return Err(FolderError::Empty(path.to_owned()));
    }
    found.sort();
    Ok(found)
}

/// Reads all of these files.
///
/// # Errors
///
/// All files that cannot be read, each with the reason.
pub(crate) fn read_all(files: &[PathBuf]) -> Result<Vec<Conversation>, Vec<ReadError>> {
    let (mut conversations, mut errors) = (Vec::new(), Vec::new());
    for file in files {
        match Conversation::read(file) {
            Ok(conversation) => conversations.push(conversation),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(conversations) } else { Err(errors) }
}
