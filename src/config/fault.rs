//! What can be wrong with a configuration.

use std::fmt;
use std::io;

use super::location::{Alternatives, Columns, Location, Quoted};
use super::suggest::suggest;
use crate::auth::{HashFault, OptionsError, RuleFault};
use crate::conn::SocketKind;
use crate::listener::access::{MalformedNetwork, MalformedRule};
use crate::listener::credentials::MalformedPem;
use crate::listener::psk::MalformedPsk;
use crate::listener::{MalformedBind, tls};
use crate::topic::MountpointError;

/// Why there is no configuration. Its text is the whole report; it never shows a secret.
#[derive(Debug)]
pub enum Faults {
    /// The file could not be read.
    Unreadable {
        /// The file, as it was named.
        file: String,
        /// Why.
        why: Unreadable,
    },
    /// It was read, and these were found, in the order of its lines; there is at least one.
    Found {
        /// The file, as it was named.
        file: String,
        /// Where, and what.
        faults: Vec<(Location, Fault)>,
    },
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, why } => write!(f, "{file} cannot be read: {why}"),
            Self::Found { file, faults } => {
                let count = faults.len();
                write!(f, "{file} has {count} {}:{}", if count == 1 { "fault" } else { "faults" }, Columns(faults))
            }
        }
    }
}

impl std::error::Error for Faults {}

/// Something that is wrong with a value, a key or a table.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file is no TOML here.
    #[error("{0}")]
    Syntax(String),
    /// A key that means nothing here.
    #[error("is not a key of {section}; {}", Hint { suggest: *.suggest, known })]
    UnknownKey {
        /// The table's title.
        section: &'static str,
        /// The key that was probably meant.
        suggest: Option<&'static str>,
        /// All keys of the table.
        known: Vec<&'static str>,
    },
    /// A key that means something only in a table of another kind.
    #[error("is a key of {section} only")]
    OtherKind {
        /// The other table's title.
        section: &'static str,
    },
    /// A key that means something to listeners of other transports only.
    #[error("is for {}; this listener speaks {transport}", Transports(transports))]
    OtherTransport {
        /// Those that have it.
        transports: &'static [SocketKind],
        /// What the listener speaks.
        transport: SocketKind,
    },
    /// A key that must be there is not.
    #[error("is missing; expected {expected}")]
    Missing {
        /// What it should be.
        expected: String,
    },
    /// A value of another type.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A text that is not of the form.
    #[error("{} is not {expected}", Quoted(found))]
    Malformed {
        /// The text.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A number, a span or a size out of its range.
    #[error("{found} is outside {range}")]
    OutOfRange {
        /// What was written.
        found: String,
        /// First and last allowed value.
        range: String,
    },
    /// A text of the wrong length.
    #[error("has {bytes} bytes, which is outside {range}")]
    Length {
        /// Its length.
        bytes: usize,
        /// Shortest and longest allowed.
        range: String,
    },
    /// A text that is none of the allowed words.
    #[error("{} is not known here; {}", Quoted(found), Hint { suggest: suggest(found, known.iter().copied()), known })]
    NotOneOf {
        /// The text.
        found: String,
        /// The words.
        known: Vec<&'static str>,
    },
    /// A name of a listener or handler that logs, metrics and urls could not show as it is.
    #[error("{} is not a name; expected 1 to 64 of the characters a-z, A-Z, 0-9, \"_\" and \"-\"", Quoted(found))]
    Name {
        /// The name.
        found: String,
    },
    /// A list that must have an entry has none.
    #[error("is empty; expected at least one {of}")]
    Empty {
        /// What it lists.
        of: &'static str,
    },
    /// The same value again.
    #[error("{} is there already, as {first}", Quoted(found))]
    Twice {
        /// The value.
        found: String,
        /// Its first place.
        first: String,
    },
    /// Two keys of which one excludes the other.
    #[error("excludes {other:?}; expected one of the two")]
    Both {
        /// The other key.
        other: &'static str,
    },
    /// Two keys of which one is needed.
    #[error("has neither {one:?} nor {other:?}; expected one of the two")]
    Neither {
        /// A key.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A key that is of no use without another.
    #[error("is missing; {given:?} needs it")]
    Half {
        /// The key that is there.
        given: &'static str,
    },
    /// A listener names a handler that is not there.
    #[error("no handler is named {}; {}", Quoted(name), Alternatives(known))]
    NoHandler {
        /// The name.
        name: String,
        /// The names that are there.
        known: Vec<String>,
    },
    /// Two sockets cannot be bound to one address.
    #[error("{bind} is taken by {other}")]
    Taken {
        /// The address.
        bind: String,
        /// The key of the other, with its line.
        other: String,
    },
    /// Not the form of a listener's address.
    #[error("{} {why}", Quoted(found))]
    Bind {
        /// What was written.
        found: String,
        /// The form.
        why: MalformedBind,
    },
    /// Not an address, a network, or a rule that has one.
    #[error("{} {why}", Quoted(found))]
    Network {
        /// What was written.
        found: String,
        /// What is wrong with it.
        why: MalformedRule,
    },
    /// A line of a list of addresses that is none.
    #[error("{} line {line}: {} {why}", Quoted(path), Quoted(found))]
    Line {
        /// The file, as it was named.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: String,
        /// What is wrong with it.
        why: MalformedNetwork,
    },
    /// A file that is named cannot be read.
    #[error("{}: {why}", Quoted(path))]
    File {
        /// The file, as it was named.
        path: String,
        /// Why.
        why: Unreadable,
    },
    /// A file of certificates or keys that does not have what it should.
    #[error("{}: {why}", Quoted(path))]
    Pem {
        /// The file, as it was named.
        path: String,
        /// Why.
        why: MalformedPem,
    },
    /// A file of pre-shared keys with a line that cannot be used, which is not shown.
    #[error("{}: {why}", Quoted(path))]
    Psk {
        /// The file, as it was named.
        path: String,
        /// Where and why.
        why: MalformedPsk,
    },
    /// A file of pre-shared keys without one.
    #[error("{}: has no key; expected lines of the form \"identity:key\"", Quoted(path))]
    NoPsk {
        /// The file, as it was named.
        path: String,
    },
    /// Cipher suites of which OpenSSL knows none.
    #[error("{found:?}: none of these cipher suites is known to OpenSSL")]
    NoCipher {
        /// What stands there.
        found: String,
    },
    /// Certificates and keys that do not make a listener together.
    #[error("cannot be used: {0}")]
    Acceptor(tls::AcceptorError),
    /// A listener that speaks TLS or DTLS without anything to show.
    #[error("is missing; a listener on {transport}:// needs cert_file and key_file, or psk_file")]
    NoCredentials {
        /// What it speaks.
        transport: crate::conn::SocketKind,
    },
    /// A version that the transport does not have.
    #[error("has \"1.3\", which is for tls; expected [\"1.2\"]")]
    VersionOfTls,
    /// An environment variable that is named cannot be used.
    #[error("the environment variable {} {why}", Quoted(name))]
    Env {
        /// Its name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// A secret that cannot be used; it is not shown.
    #[error("expected {expected}")]
    Secret {
        /// What it should be.
        expected: &'static str,
    },
    /// A url that carries a user name or password; it is not shown.
    #[error("a url with a user name or a password is not supported; expected {expected}")]
    UserInfo {
        /// What it should be.
        expected: &'static str,
    },
    /// Certificates for urls that need none.
    #[error("is for https, and no url begins with \"https://\"")]
    TlsUnused,
    /// The admin port would be open to everybody.
    #[error("is missing; {bind} is not a loopback address, so a token is required")]
    TokenRequired {
        /// Where the admin port would be bound.
        bind: std::net::SocketAddr,
    },
    /// Framing where there is no stream.
    #[error("is for streams; over {transport} each datagram is a frame already")]
    FramedDatagrams {
        /// The transport.
        transport: SocketKind,
    },
    /// Not a mountpoint.
    #[error(transparent)]
    Mountpoint(MountpointError),
    /// Not a password hash that can be used; it is not shown.
    #[error(transparent)]
    Hash(HashFault),
    /// Not a topic that a rule can have.
    #[error("{}", of_topic(.0))]
    Rule(RuleFault),
    /// Users or rules that cannot be used for another reason.
    #[error(transparent)]
    Access(OptionsError),
}

/// What a wrong key or word should perhaps have been.
struct Hint<'a> {
    suggest: Option<&'static str>,
    known: &'a [&'static str],
}

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.suggest {
            Some(suggest) => write!(f, "did you mean {suggest:?}?"),
            None => Alternatives(self.known).fmt(f),
        }
    }
}

/// Transports, as in `tcp and tls`.
struct Transports<'a>(&'a [SocketKind]);

impl fmt::Display for Transports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, kind) in self.0.iter().enumerate() {
            let before = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{kind}")?;
        }
        Ok(())
    }
}

/// What is wrong with one topic of a rule, without its number: its place says that.
fn of_topic(fault: &RuleFault) -> String {
    match fault {
        RuleFault::Template { fault, .. } => fault.to_string(),
        RuleFault::Malformed { fault, .. } => fault.to_string(),
        RuleFault::Share { text, .. } => {
            format!("{} is a shared subscription; expected the filter alone", Quoted(text))
        }
        RuleFault::Empty { .. } => fault.to_string(),
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The system refused.
    #[error("{}", words(.0))]
    Io(io::Error),
    /// A directory, a pipe or a device.
    #[error("is not a file")]
    NotAFile,
    /// A file where a directory is needed.
    #[error("is not a directory")]
    NotADirectory,
    /// Larger than such a file ever is.
    #[error("is larger than {bytes_max} bytes")]
    TooLarge {
        /// The largest allowed, in bytes.
        bytes_max: u64,
    },
    /// Not UTF-8.
    #[error("is not text in UTF-8")]
    NotText,
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Another kind of file.
    #[error("has no {expected}")]
    Lacks {
        /// What it should have.
        expected: &'static str,
    },
}

/// What people call the usual reasons; the system's numbers say nothing to them.
fn words(error: &io::Error) -> String {
    let known = [
        (io::ErrorKind::NotFound, "no such file"),
        (io::ErrorKind::PermissionDenied, "permission denied"),
        (io::ErrorKind::IsADirectory, "is a directory"),
        (io::ErrorKind::NotADirectory, "a part of the path is not a directory"),
    ];
    match known.into_iter().find(|(kind, _)| *kind == error.kind()) {
        Some((_, words)) => words.to_owned(),
        None => error.to_string(),
    }
}
