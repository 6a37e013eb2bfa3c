//! References of a configuration to other files and to the environment. Every read is bounded.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::diagnostics::Fault;
use super::location::Quoted;
use super::value::SecretSource;
use crate::listener::access::{BadLine, Networks};

/// Largest configuration file, in bytes: thousands of listeners.
pub(super) const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Largest file of certificates, in bytes: a whole system's authorities have a quarter of it.
pub(super) const PEM_BYTES_MAX: u64 = 1 << 20;

/// Largest file of pre-shared keys, in bytes: some hundred thousand devices.
pub(super) const PSK_BYTES_MAX: u64 = 64 << 20;

/// Largest file with a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Largest list of addresses, in bytes: 400,000 networks of IPv6.
const ADDRESSES_BYTES_MAX: u64 = 16 << 20;

/// Bad lines of a list that are reported; a file of another kind has thousands.
const BAD_LINES_MAX: usize = 8;

/// The files and the environment that a configuration file refers to.
#[derive(Clone, Copy)]
pub struct ExternalFiles<'a> {
    /// The directory to which paths in the file are relative.
    pub base_dir: &'a Path,
    /// The value of an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("{}", io_message(.0))]
    Io(io::Error),
    /// A pipe or a device, for example.
    #[error("is not a file")]
    NotAFile,
    #[error("is not a directory")]
    NotADirectory,
    #[error("is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("is not text in UTF-8")]
    NotText,
    #[error("is empty")]
    Empty,
    #[error("has no {0}")]
    Lacks(&'static str),
}

/// The usual errors without the system's numbers.
fn io_message(error: &io::Error) -> String {
    let known = [
        (io::ErrorKind::NotFound, "no such file"),
        (io::ErrorKind::PermissionDenied, "permission denied"),
        (io::ErrorKind::IsADirectory, "is a directory"),
        (io::ErrorKind::NotADirectory, "a part of the path is not a directory"),
    ];
    let found = known.into_iter().find(|(kind, _)| *kind == error.kind());
    found.map_or_else(|| error.to_string(), |(_, message)| message.to_owned())
}

/// The fault of a file, by the path that the configuration gives it.
pub(super) fn file_fault(path: &str, why: impl fmt::Display) -> Fault {
    Fault::new(format_args!("{}: {why}", Quoted(path)))
}

impl ExternalFiles<'_> {
    /// A path of the file as the program uses it.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.base_dir.join(written)
    }

    /// A PEM file with a certificate.
    pub(super) fn certificate(&self, written: &str) -> Result<Vec<u8>, Fault> {
        self.pem(written, "-----BEGIN CERTIFICATE-----", "certificate in PEM")
    }

    /// As [`certificate`](Self::certificate), for a key that may be absent.
    pub(super) fn optional_certificate(&self, written: Option<String>) -> Result<Option<Vec<u8>>, Fault> {
        written.map(|written| self.certificate(&written)).transpose()
    }

    /// A PEM file with a private key.
    pub(super) fn private_key(&self, written: &str) -> Result<Vec<u8>, Fault> {
        // "-----BEGIN RSA PRIVATE KEY-----" and other kinds of key have words in front.
        self.pem(written, "PRIVATE KEY-----", "private key in PEM")
    }

    fn pem(&self, written: &str, marker: &str, expected: &'static str) -> Result<Vec<u8>, Fault> {
        let bytes = self.file(written, PEM_BYTES_MAX)?;
        match bytes.windows(marker.len()).any(|window| window == marker.as_bytes()) {
            true => Ok(bytes),
            false => Err(file_fault(written, Unreadable::Lacks(expected))),
        }
    }

    /// The contents of a file of at most so many bytes.
    pub(super) fn file(&self, written: &str, bytes_max: u64) -> Result<Vec<u8>, Fault> {
        read(&self.path(written), bytes_max).map_err(|why| file_fault(written, why))
    }

    /// The path of a WebAssembly binary. Only its first bytes are checked; its loader checks the rest.
    pub(super) fn wasm(&self, written: &str) -> Result<PathBuf, Fault> {
        let path = self.path(written);
        let mut begin = Vec::new();
        let read =
            open(&path).and_then(|file| file.take(4).read_to_end(&mut begin).map_err(Unreadable::Io)).and_then(|_| {
                if begin == *b"\0asm" { Ok(()) } else { Err(Unreadable::Lacks("WebAssembly in binary form")) }
            });
        read.map(|()| path).map_err(|why| file_fault(written, why))
    }

    /// The path of an existing file or directory.
    pub(super) fn file_or_directory(&self, written: &str) -> Result<PathBuf, Fault> {
        let path = self.path(written);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() || found.is_dir() => Ok(path),
            Ok(_) => Err(file_fault(written, Unreadable::NotAFile)),
            Err(error) => Err(file_fault(written, Unreadable::Io(error))),
        }
    }

    /// The path of a directory, which may be absent.
    pub(super) fn directory(&self, written: &str) -> Result<PathBuf, Fault> {
        let path = self.path(written);
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_dir() => Err(file_fault(written, Unreadable::NotADirectory)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_fault(written, Unreadable::Io(error))),
            Ok(_) | Err(_) => Ok(path),
        }
    }

    /// The addresses and networks in a file, or one fault for each bad line.
    pub(super) fn networks(&self, written: &str) -> Result<Networks, Vec<Fault>> {
        let text = read_text(&self.path(written), ADDRESSES_BYTES_MAX).map_err(|why| vec![file_fault(written, why)])?;
        let fault = |BadLine { line, found, why }| {
            Fault::new(format_args!("{} line {line}: {} {why}", Quoted(written), Quoted(&found)))
        };
        Networks::parse_list(&text, BAD_LINES_MAX).map_err(|bad| bad.into_iter().map(fault).collect())
    }

    /// The secret itself, which is not empty.
    pub(super) fn secret(&self, source: SecretSource) -> Result<SecretString, Fault> {
        match source {
            SecretSource::Inline(secret) => Ok(secret),
            SecretSource::Env(name) => {
                let unusable = |why: &str| Fault::new(format_args!("the environment variable {} {why}", Quoted(&name)));
                match (self.env)(&name).map(OsString::into_string) {
                    None => Err(unusable("is not set")),
                    Some(Err(_)) => Err(unusable("is not text in UTF-8")),
                    Some(Ok(value)) if value.is_empty() => Err(unusable("is empty")),
                    Some(Ok(value)) => Ok(value.into()),
                }
            }
            SecretSource::File(path) => {
                let secret = read_text(&self.path(&path), SECRET_BYTES_MAX).and_then(|text| {
                    let text = text.strip_suffix('\n').unwrap_or(&text);
                    let text = text.strip_suffix('\r').unwrap_or(text);
                    if text.is_empty() { Err(Unreadable::Empty) } else { Ok(text.into()) }
                });
                secret.map_err(|why| file_fault(&path, why))
            }
        }
    }
}

/// The text of a file of at most so many bytes.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> Result<String, Unreadable> {
    String::from_utf8(read(path, bytes_max)?).map_err(|_| Unreadable::NotText)
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    // The size in the metadata may be out of date by now; the reader itself is bounded.
    open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(Unreadable::Io)?;
    if bytes.len() as u64 > bytes_max { Err(Unreadable::TooLarge { bytes_max }) } else { Ok(bytes) }
}

/// Opens a regular file. Anything else is not opened: opening a pipe waits for its other end.
fn open(path: &Path) -> Result<File, Unreadable> {
    let found = std::fs::metadata(path).map_err(Unreadable::Io)?;
    if found.is_dir() {
        return Err(Unreadable::Io(io::ErrorKind::IsADirectory.into()));
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
    fn unreadable_files_have_plain_messages() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("large"), vec![b'x'; 65_537]).unwrap();
        std::fs::write(dir.path().join("binary"), [0xff]).unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        let message =
            |name: &str| external(dir.path()).secret(SecretSource::File(name.to_owned())).unwrap_err().to_string();
        assert_eq!(message("none"), r#""none": no such file"#);
        assert_eq!(message("."), r#"".": is a directory"#);
        assert_eq!(message("large"), r#""large": is larger than 65536 bytes"#);
        assert_eq!(message("binary"), r#""binary": is not text in UTF-8"#);
        assert_eq!(message("empty"), r#""empty": is empty"#);
        assert_eq!(message("/dev/null"), r#""/dev/null": is not a file"#);
    }
}
