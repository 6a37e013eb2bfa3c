//! Data directory: created with mode 700; refused if other users could replace what is in it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The data directory is not safe or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("cannot use {dir:?} as the data directory")]
    Unusable { dir: PathBuf, source: io::Error },
    /// Other users can replace machine code that the gateway runs.
    #[error("expected that other users cannot write to {at:?}, the data directory or one above it; came mode {mode:o}")]
    Writable { at: PathBuf, mode: u32 },
    #[error(
        "expected {at:?}, the data directory or one above it, to belong to root or to user {user}; came owner {owner}"
    )]
    Foreign { at: PathBuf, owner: u32, user: u32 },
}

/// Creates the directory if it is missing, and checks owner and mode of it and of all directories above it.
pub(super) fn open(dir: &Path) -> Result<(), DataDirError> {
    let failed = |source| DataDirError::Unusable { dir: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let user = rustix::process::geteuid().as_raw();
    // Without links: what counts is where the files are.
    let real = fs::canonicalize(dir).map_err(failed)?;
    for (height, at) in real.ancestors().enumerate() {
        let found = fs::metadata(at).map_err(failed)?;
        check(at, found.mode() & 0o7777, found.uid(), user, height > 0)?;
    }
    Ok(())
}

fn check(at: &Path, mode: u32, owner: u32, user: u32, is_above: bool) -> Result<(), DataDirError> {
    if owner != user && owner != 0 {
        return Err(DataDirError::Foreign { at: at.to_owned(), owner, user });
    }
    // In a sticky directory such as /tmp, others can add files, but not rename this one.
    let is_sticky = is_above && mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !is_sticky {
        return Err(DataDirError::Writable { at: at.to_owned(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes() {
        let at = Path::new("data");
        for (mode, owner, is_above) in
            [(0o700, 8, false), (0o755, 8, false), (0o755, 0, true), (0o1777, 0, true), (0o755, 8, true)]
        {
            assert!(check(at, mode, owner, 8, is_above).is_ok(), "{mode:o} {owner}");
        }
        for (mode, is_above) in [(0o777, false), (0o770, false), (0o1777, false), (0o777, true), (0o775, true)] {
            assert!(matches!(check(at, mode, 8, 8, is_above), Err(DataDirError::Writable { .. })), "{mode:o}");
        }
        assert!(matches!(check(at, 0o700, 7, 8, false), Err(DataDirError::Foreign { owner: 7, user: 8, .. })));
        assert!(matches!(check(at, 0o1755, 7, 8, true), Err(DataDirError::Foreign { .. })));
    }
}
