//! Errors in the text of a conversation, with their positions.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use super::print::offset_text;

/// Maximum number of reported faults of one file; the others are counted.
const FAULTS_MAX: usize = 100;

/// A conversation could not be read from its file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("cannot read {name}")]
    Io {
        /// The path.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The file is longer than [`super::FILE_BYTES_MAX`].
    #[error("{name}: expected a conversation of at most {} bytes, found a longer file", super::FILE_BYTES_MAX)]
    TooLong {
        /// The path.
        name: String,
    },
    /// The file is not UTF-8.
    #[error(
        "{name}: expected text in UTF-8, found the byte {byte:02x} on line {line} (a byte that is no text is written in hex)"
    )]
    NotText {
        /// The path.
        name: String,
        /// The line, from 1.
        line: u32,
        /// The first byte that is not UTF-8.
        byte: u8,
    },
    /// The text is malformed.
    #[error(transparent)]
    Faults(#[from] Faults),
}

/// All faults of one conversation, in the order of its lines, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    name: String,
    faults: Vec<Fault>,
    more: usize,
}

impl Faults {
    /// The faults, at most 100, in the order of their lines.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len() + self.more;
        write!(f, "{} has {count} fault{}:", self.name, if count == 1 { "" } else { "s" })?;
        let places: Vec<String> = self.faults.iter().map(Fault::place).collect();
        let width = places.iter().map(String::len).max().unwrap_or(0);
        for (place, fault) in places.iter().zip(&self.faults) {
            write!(f, "\n  {place:width$}   {}", fault.problem)?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Collects faults in the order of their lines: keeps the first hundred and counts the rest.
#[derive(Default)]
pub(super) struct Found {
    faults: Vec<Fault>,
    more: usize,
}

impl Found {
    pub(super) fn push(&mut self, fault: Fault) {
        if self.faults.len() < FAULTS_MAX { self.faults.push(fault) } else { self.more += 1 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// `Err` when there are any.
    pub(super) fn finish(&mut self, name: &str) -> Result<(), Faults> {
        let Self { faults, more } = std::mem::take(self);
        if faults.is_empty() { Ok(()) } else { Err(Faults { name: name.to_owned(), faults, more }) }
    }
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line in the file, from 1.
    pub line: u32,
    /// The column, in characters, from 1.
    pub column: u32,
    /// The error.
    pub problem: Problem,
}

impl Fault {
    fn place(&self) -> String {
        format!("line {} column {}", self.line, self.column)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.problem)
    }
}

/// The error of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Something else was expected here.
    Unexpected {
        /// A description of the expected text.
        expected: Cow<'static, str>,
        /// A description or quotation of the text.
        found: String,
        /// The suggestion of a word.
        meant: Option<&'static str>,
    },
    /// Malformed JSON after `json`; the error of the JSON parser.
    NotJson(String),
    /// A time stamp is earlier than a previous one.
    TimeGoesBack {
        /// The previous time.
        before: Duration,
        /// The time of this line.
        at: Duration,
    },
    /// A step follows the end of the connection.
    AfterClose {
        /// The line that ended it.
        closed: u32,
    },
    /// `transport` after the first step.
    TransportAfterStep,
    /// A second `transport`.
    TransportAgain {
        /// The line of the first.
        first: u32,
    },
    /// A continuation with nothing to continue.
    ContinuesNothing,
    /// The file has no step.
    NoStep,
    /// The file has more than [`super::LINES_MAX`] lines.
    TooManyLines,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unexpected { expected, found, meant } => {
                write!(f, "expected {expected}, found {found}")?;
                meant.map_or(Ok(()), |word| write!(f, " (did you mean {word:?}?)"))
            }
            Self::NotJson(why) => write!(f, "expected a JSON value, found a fault in it: {why}"),
            Self::TimeGoesBack { before, at } => {
                let (before, at) = (offset_text(*before), offset_text(*at));
                write!(f, "expected a time not before @{before}, the time of an earlier line, found @{at}")
            }
            Self::AfterClose { closed } => write!(f, "expected nothing after the close of line {closed}, found another step"),
            Self::TransportAfterStep => f.write_str("expected \"transport\" before the first step, found it after"),
            Self::TransportAgain { first } => write!(f, "expected \"transport\" once, found it again after line {first}"),
            Self::ContinuesNothing => f.write_str(
                "expected a step before a line that begins with white space, which continues it; found none directly above",
            ),
            Self::NoStep => f.write_str("expected at least one step, for example \"> 7e\", found none"),
            Self::TooManyLines => write!(f, "expected at most {} lines, found more", super::LINES_MAX),
        }
    }
}
