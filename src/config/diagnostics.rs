//! Diagnostics: the faults and warnings that the checks of one configuration file record.

use std::cell::RefCell;
use std::fmt;

use super::location::{Columns, Location, Position};
use super::references::Unreadable;

/// Why there is no configuration. Its text is the whole report; it never shows a secret.
#[derive(Debug)]
pub enum Faults {
    /// The file, by the name it was given, could not be read.
    Unreadable { file: String, why: Unreadable },
    /// At least one fault, in the order of the lines.
    Found { file: String, faults: Vec<(Location, Fault)> },
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

/// The message of one fault: what was expected and what was found. It never shows a secret.
#[derive(Debug)]
pub struct Fault(String);

impl Fault {
    pub(super) fn new(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that the operator should know about a valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub location: Location,
    pub advice: Advice,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.location.line {
            write!(f, "line {line}, ")?;
        }
        write!(f, "{}: {}", self.location.position, self.advice)
    }
}

/// The kinds of warning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Advice {
    #[error("there is no listener, so no device can connect")]
    NoListener,
    #[error("no listener uses this handler")]
    HandlerUnused,
    #[error(
        "not a loopback address: any peer that reaches it can publish and subscribe; \
         configure auth.users, or set auth.allow_anonymous = true"
    )]
    BrokerOpen,
    #[error(
        "absent, and no rule ends the list, so every user may publish and subscribe to whatever no rule mentions; \
         set default = \"deny\", or \"allow\" if that is meant"
    )]
    RulesOpen,
    #[error(
        "not a loopback address: the token and everything else cross the network in clear; \
         use a loopback address and a tunnel, or a proxy with TLS"
    )]
    AdminInClear,
    #[error(
        "any peer that reaches the listener can claim any address; {{ trusted = [..] }} limits that to the balancers"
    )]
    ProxyOpen,
    #[error(
        "absent, and the bind is not a loopback address: a peer keeps its connection for ever by sending any byte; \
         set login_timeout = \"60s\" if the handler authenticates devices, and silence_timeout otherwise"
    )]
    LoginUnbounded,
    #[error(
        "absent, and the bind is not a loopback address: spoofed datagrams open flows without limit; \
         set connection_rate or connection_rate_per_address"
    )]
    UdpUnlimited,
    #[error("the certificate has expired, and most devices will reject it")]
    CertificateExpired,
    #[error("every user of the machine can read the file with the keys; chmod o-r makes it private")]
    KeysReadable,
    #[error("a revocation list is out of date: later revocations are unknown here")]
    RevocationsOutdated,
    #[error("{0} of the keys have less than 16 bytes; a recorded handshake is enough to find them by brute force")]
    WeakKeys(usize),
}

/// Proof that a fault was recorded. A function that returns it instead of a value makes the configuration fail; its
/// caller has nothing to record.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorReported(());

/// Collects faults and warnings, in any order.
pub(super) struct Diagnostics<'t> {
    text: &'t str,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
    faults: RefCell<Vec<(Location, Fault)>>,
    warnings: RefCell<Vec<Warning>>,
}

impl<'t> Diagnostics<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines, faults: RefCell::default(), warnings: RefCell::default() }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&begin| begin <= at)
    }

    /// The line and column of a byte, for a file without valid keys.
    pub(super) fn column(&self, at: usize) -> Location {
        let line = self.line(at);
        let begin = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(begin..at).map_or(0, |before| before.chars().count());
        Location { line: Some(line), position: Position::Column(before + 1) }
    }

    pub(super) fn fault(&self, location: Location, message: impl fmt::Display) -> ErrorReported {
        self.faults.borrow_mut().push((location, Fault::new(message)));
        ErrorReported(())
    }

    pub(super) fn warn(&self, location: Location, advice: Advice) {
        self.warnings.borrow_mut().push(Warning { location, advice });
    }

    /// The value and the warnings, if no fault was recorded.
    pub(super) fn conclude<T>(self, file: &str, value: Result<T, ErrorReported>) -> Result<(T, Vec<Warning>), Faults> {
        let (mut faults, mut warnings) = (self.faults.into_inner(), self.warnings.into_inner());
        match value {
            Ok(value) if faults.is_empty() => {
                warnings.sort_by_key(|warning| warning.location.line);
                Ok((value, warnings))
            }
            Ok(_) | Err(ErrorReported(())) => {
                faults.sort_by_key(|(location, _)| location.line);
                Err(Faults::Found { file: file.to_owned(), faults })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_lines_and_columns() {
        let diagnostics = Diagnostics::new("ab\ncé=\n");
        for (at, line, column) in [(0, 1, 1), (2, 1, 3), (3, 2, 1), (6, 2, 3), (8, 3, 1), (99, 3, 1)] {
            let expected = Location { line: Some(line), position: Position::Column(column) };
            assert_eq!(diagnostics.column(at), expected, "{at}");
        }
    }
}
