//! Generated token of the admin port: a file in the data directory that only the gateway's user can read.

use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use crate::atomic_file::write_atomic;

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "admin.token";

/// Length of a token, in bytes: long enough that it cannot be guessed, short enough for a header.
const TOKEN_BYTES: RangeInclusive<usize> = 16..=1024;

/// Whether a text can be a token: 16 to 1024 visible ASCII characters.
pub(crate) fn is_valid(token: &str) -> bool {
    TOKEN_BYTES.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The token of an earlier start, or a new one, which is stored with mode 600. A token that other users could have read
/// or written is replaced. One that cannot be stored is in memory only, so until the next start no client knows it.
///
/// # Errors
///
/// The operating system's random generator failed.
pub(super) fn of_data_dir(data_dir: &Path) -> Result<SecretString, getrandom::Error> {
    let file = data_dir.join(FILE);
    match read(&file) {
        Ok(token) => return Ok(token),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(?file, %error, "generating another admin token"),
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    let token: SecretString = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    match write_atomic(&file, format!("{}\n", token.expose_secret()).as_bytes()) {
        Ok(()) => tracing::info!(?file, "admin token generated"),
        Err(error) => tracing::warn!(
            ?file, %error, "cannot store the admin token; the admin port answers health checks only (configure admin.token)"
        ),
    }
    Ok(token)
}

fn read(file: &Path) -> io::Result<SecretString> {
    // Not through a link, and without waiting for the other end of a pipe.
    let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file)?;
    let found = opened.metadata()?;
    let (owner, user) = (found.uid(), rustix::process::geteuid().as_raw());
    if !found.is_file() || found.mode() & 0o077 != 0 || (owner != user && owner != 0) {
        let mode = found.mode() & 0o7777;
        let error = format!("expected a file of mode 600 and of user {user}; came mode {mode:o} of user {owner}");
        return Err(io::Error::other(error));
    }
    let mut text = String::new();
    opened.take(4 << 10).read_to_string(&mut text)?;
    let token = text.trim_end();
    if is_valid(token) {
        Ok(token.into())
    } else {
        Err(io::Error::other("expected 16 to 1024 visible ASCII characters"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The token outlives a restart; one that another user could have read, and a link, are replaced.
    #[test]
    fn generated_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let token = || of_data_dir(dir.path()).unwrap().expose_secret().to_owned();
        let first = token();
        assert_eq!(first.len(), 64);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(token(), first);

        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let second = token();
        assert_ne!(second, first);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);

        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        let third = token();
        assert_ne!(third, second);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap().trim_end(), second, "the target is untouched");

        fs::write(&file, "short\n").unwrap();
        assert_ne!(token(), third);
    }

    /// A token that cannot be stored is required all the same.
    #[test]
    fn not_stored() {
        let token = of_data_dir(Path::new("/proc/self/no-such-directory")).unwrap();
        assert_eq!(token.expose_secret().len(), 64);
    }
}
