//! Atomic file replacement: a reader finds the old file or the new one, never a part, also after a power cut.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Writes a temporary file in the same directory, syncs it, renames it over `file`, and syncs the directory.
///
/// # Errors
///
/// The operating system's; then `file` is unchanged and the temporary file is removed.
pub(crate) fn write_atomic(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    temporary.write_all(bytes)?;
    // Without this the name may reach the disk before the bytes.
    temporary.as_file().sync_all()?;
    temporary.persist(file).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

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
