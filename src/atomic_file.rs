//! Atomic file replacement: write to a temporary file, fsync, rename.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file atomically: a reader finds the new file, the old one, or none, also after a power failure.
///
/// # Errors
///
/// The operating system's error; no temporary file is left then.
pub(crate) fn write_atomic(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let suffix = getrandom::u64().map_err(io::Error::other)?;
    let temporary = file.with_extension(format!("{suffix:016x}"));
    let written = File::create_new(&temporary)
        .and_then(|mut open| {
            open.write_all(bytes)?;
            // Without this the name may reach the disk before the bytes.
            open.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, file));
    if written.is_err()
        && let Err(error) = fs::remove_file(&temporary)
    {
        tracing::debug!(?temporary, %error, "cannot remove a temporary file");
    }
    written?;
    // The new name is durable once its directory is synced.
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failed write leaves no file behind.
    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // A directory with the file's name: the rename fails.
        let place = dir.path().join("place");
        fs::create_dir_all(place.join("taken")).unwrap();
        write_atomic(&place, b"bytes").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A later write replaces the file.
    #[test]
    fn a_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("index.json");
        for bytes in [b"one", b"two"] {
            write_atomic(&file, bytes).unwrap();
            assert_eq!(fs::read(&file).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
