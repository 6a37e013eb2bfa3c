//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes beside, then renames: a reader finds the whole file, the one before it, or none, also after the power has failed.
///
/// # Errors
///
/// The operating system's; nothing is left then.
pub(crate) fn write_atomic(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let suffix = getrandom::u64().map_err(io::Error::other)?;
    let beside = file.with_extension(format!("{suffix:016x}"));
    let written = File::create_new(&beside)
        .and_then(|mut open| {
            open.write_all(bytes)?;
            // Without this the name may reach the disk before the bytes.
            open.sync_all()
        })
        .and_then(|()| fs::rename(&beside, file));
    if written.is_err()
        && let Err(error) = fs::remove_file(&beside)
    {
        tracing::debug!(?beside, %error, "an unfinished file is left");
    }
    written?;
    // The name itself is on the disk when its directory is.
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What could not be written whole leaves nothing behind.
    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // A directory at the place of the file: the last step cannot succeed.
        let place = dir.path().join("place");
        fs::create_dir_all(place.join("taken")).unwrap();
        write_atomic(&place, b"bytes").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A file is replaced by the next.
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
