//! What a configuration refers to: other files and the environment. Everything read is bounded.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::ExternalFiles;
use super::fault::{Fault, Unreadable};
use super::value::SecretSource;
use crate::listener::access::{BadLine, Networks};

/// Largest configuration file, in bytes: thousands of listeners.
pub(super) const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Largest file of certificates, in bytes: a whole system's authorities have a quarter of it.
pub(super) const PEM_BYTES_MAX: u64 = 1 << 20;

/// Largest file with a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Largest list of addresses, in bytes: 400,000 networks of IPv6.
const ADDRESSES_BYTES_MAX: u64 = 16 << 20;

/// Bad lines of a list that are told; a file of another kind has thousands.
const BAD_LINES_MAX: usize = 8;
/// Largest file of pre-shared keys, in bytes: some hundred thousand devices.
pub(super) const PSK_BYTES_MAX: u64 = 64 << 20;

/// What a PEM file must have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pem {
    Certificate,
    PrivateKey,
}

impl ExternalFiles<'_> {
    /// A path of the file as the program uses it.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.base_dir.join(written)
    }

    /// The contents of a PEM file.
    pub(super) fn pem(&self, written: &str, kind: Pem) -> Result<Vec<u8>, Fault> {
        // "-----BEGIN RSA PRIVATE KEY-----" and other kinds of key have words in front.
        let (mark, expected) = match kind {
            Pem::Certificate => ("-----BEGIN CERTIFICATE-----", "certificate in PEM"),
            Pem::PrivateKey => ("PRIVATE KEY-----", "private key in PEM"),
        };
        let checked = read(&self.path(written), PEM_BYTES_MAX).and_then(|bytes| {
            match bytes.windows(mark.len()).any(|window| window == mark.as_bytes()) {
                true => Ok(bytes),
                false => Err(Unreadable::Lacks { expected }),
            }
        });
        checked.map_err(|why| Fault::File { path: written.to_owned(), why })
    }

    /// The contents of a file of at most so many bytes.
    pub(super) fn file(&self, written: &str, bytes_max: u64) -> Result<Vec<u8>, Fault> {
        read(&self.path(written), bytes_max).map_err(|why| Fault::File { path: written.to_owned(), why })
    }

    /// Looks whether a file can be read and begins like WebAssembly; its loader does the rest.
    pub(super) fn check_wasm(&self, written: &str) -> Result<(), Fault> {
        let begin = open(&self.path(written)).and_then(|file| {
            let mut begin = Vec::new();
            file.take(4).read_to_end(&mut begin).map_err(Unreadable::Io)?;
            Ok(begin)
        });
        match begin {
            Ok(begin) if begin == *b"\0asm" => Ok(()),
            Ok(_) => Err(Unreadable::Lacks { expected: "WebAssembly in binary form" }),
            Err(why) => Err(why),
        }
        .map_err(|why| Fault::File { path: written.to_owned(), why })
    }

    /// Looks whether there is a file or a directory; its reader does the rest.
    pub(super) fn check_there(&self, written: &str) -> Result<(), Fault> {
        let found = std::fs::metadata(self.path(written)).map_err(Unreadable::Io);
        let known = found.and_then(|found| match found.is_file() || found.is_dir() {
            true => Ok(()),
            false => Err(Unreadable::NotAFile),
        });
        known.map_err(|why| Fault::File { path: written.to_owned(), why })
    }

    /// Looks whether a directory is one, or can become one.
    pub(super) fn check_dir(&self, written: &str) -> Result<(), Fault> {
        match std::fs::metadata(self.path(written)) {
            Ok(found) if !found.is_dir() => {
                Err(Fault::File { path: written.to_owned(), why: Unreadable::NotADirectory })
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Fault::File { path: written.to_owned(), why: Unreadable::Io(error) })
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The addresses and networks that a file lists.
    pub(super) fn networks(&self, written: &str) -> Result<Networks, Vec<Fault>> {
        let path = || written.to_owned();
        let text = read_text(&self.path(written), ADDRESSES_BYTES_MAX)
            .map_err(|why| vec![Fault::File { path: path(), why }])?;
        Networks::parse_list(&text, BAD_LINES_MAX).map_err(|bad| {
            let fault = |BadLine { line, found, why }| Fault::Line { path: path(), line, found, why };
            bad.into_iter().map(fault).collect()
        })
    }

    /// The secret itself, which is not empty.
    pub(super) fn secret(&self, source: SecretSource) -> Result<SecretString, Fault> {
        match source {
            SecretSource::ConfigDiff(secret) => Ok(secret),
            SecretSource::Env(name) => self.env_secret(name),
            SecretSource::File(path) => {
                let secret = read_text(&self.path(&path), SECRET_BYTES_MAX).and_then(|text| {
                    let text = text.strip_suffix('\n').unwrap_or(&text);
                    let text = text.strip_suffix('\r').unwrap_or(text);
                    if text.is_empty() { Err(Unreadable::Empty) } else { Ok(text.into()) }
                });
                secret.map_err(|why| Fault::File { path, why })
            }
        }
    }

    fn env_secret(&self, name: String) -> Result<SecretString, Fault> {
        match (self.env)(&name).map(|value| value.into_string()) {
            None => Err(Fault::Env { name, why: "is not set" }),
            Some(Err(_)) => Err(Fault::Env { name, why: "is not text in UTF-8" }),
            Some(Ok(value)) if value.is_empty() => Err(Fault::Env { name, why: "is empty" }),
            Some(Ok(value)) => Ok(value.into()),
        }
    }
}

/// The text of a file, if it has at most so many bytes.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> Result<String, Unreadable> {
    String::from_utf8(read(path, bytes_max)?).map_err(|_| Unreadable::NotText)
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    // What the file's metadata say may have changed by the time it is read; the reader itself is bounded.
    open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(Unreadable::Io)?;
    if bytes.len() as u64 > bytes_max { Err(Unreadable::TooLarge { bytes_max }) } else { Ok(bytes) }
}

/// Opens a regular file; one that is none is not opened, because opening a pipe waits for its other end.
fn open(path: &Path) -> Result<File, Unreadable> {
    let found = std::fs::metadata(path).map_err(Unreadable::Io)?;
    if found.is_dir() {
        return Err(Unreadable::Io(std::io::ErrorKind::IsADirectory.into()));
    }
    if !found.is_file() {
        return Err(Unreadable::NotAFile);
    }
    File::open(path).map_err(Unreadable::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn external<'a>(base_dir: &'a Path) -> ExternalFiles<'a> {
        ExternalFiles { base_dir, env: &|_| None }
    }

    #[test]
    fn one_line_break_at_the_end_of_a_secret_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        for (content, expected) in [("s", "s"), ("s\n", "s"), ("s\r\n", "s"), ("s\n\n", "s\n"), (" s ", " s ")] {
            std::fs::write(dir.path().join("secret"), content).unwrap();
            let secret = external(dir.path()).secret(SecretSource::File("secret".to_owned())).unwrap();
            assert_eq!(secret.expose_secret(), expected);
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("large"), vec![b'x'; 65_537]).unwrap();
        std::fs::write(dir.path().join("binary"), [0xff]).unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        let told =
            |name: &str| external(dir.path()).secret(SecretSource::File(name.to_owned())).unwrap_err().to_string();
        assert_eq!(told("none"), r#""none": no such file"#);
        assert_eq!(told("."), r#"".": is a directory"#);
        assert_eq!(told("large"), r#""large": is larger than 65536 bytes"#);
        assert_eq!(told("binary"), r#""binary": is not text in UTF-8"#);
        assert_eq!(told("empty"), r#""empty": is empty"#);
        assert_eq!(told("/dev/null"), r#""/dev/null": is not a file"#);
    }
}
