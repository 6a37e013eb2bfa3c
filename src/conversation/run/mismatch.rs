//! Mismatch between a conversation and a run, with the line, the expected and the received value.

use std::fmt;

use bytes::Bytes;

use super::Published;
use crate::conversation::print::{self, Form};
use crate::conversation::{Action, ClosedBy, Difference, Line, Message, Pattern, Payload, Step};

/// Maximum number of bytes in a message; longer ones are cut around the difference.
const SHOWN_BYTES_MAX: usize = 64;

/// The number of them before the first difference.
const SHOWN_BEFORE: usize = 16;

/// A run differs from its conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// A byte to the device differs.
    Bytes {
        /// The `<` line.
        line: u32,
        /// All bytes of the line.
        expected: Pattern,
        /// The received bytes from the same position on; may be shorter or longer.
        received: Bytes,
        /// Index of the first byte that differs.
        at: usize,
    },
    /// Some of the bytes to the device did not arrive in time.
    TooFewBytes {
        /// The `<` line.
        line: u32,
        /// All bytes of the line.
        expected: Pattern,
        /// The received bytes, which match so far.
        received: Bytes,
    },
    /// The connection ended before all bytes had arrived.
    ClosedWithin {
        /// The `<` line.
        line: u32,
        /// All bytes of the line.
        expected: Pattern,
        /// The received bytes, which match so far.
        received: Bytes,
    },
    /// Bytes arrived that no line expects.
    UnexpectedBytes {
        /// The last matched line; 0 before the first.
        after: u32,
        /// The received bytes.
        received: Bytes,
    },
    /// Another message was published.
    Message {
        /// The `publish` line.
        line: u32,
        /// The message of the line.
        expected: Box<Message>,
        /// The published message.
        received: Box<Published>,
        /// The difference of the payload; `None` if topic or quality of service differ.
        difference: Option<Difference>,
    },
    /// No message was published in time.
    NoMessage {
        /// The `publish` line.
        line: u32,
        /// The message of the line.
        expected: Box<Message>,
    },
    /// A message was published that no line expects.
    UnexpectedMessage {
        /// The last matched line; 0 before the first.
        after: u32,
        /// The published message.
        received: Box<Published>,
    },
    /// The connection did not end in time.
    NotClosed {
        /// The `close` line.
        line: u32,
        /// The expected closing side.
        expected: ClosedBy,
    },
    /// Another side ended the connection.
    ClosedBy {
        /// The `close` line.
        line: u32,
        /// The expected closing side.
        expected: ClosedBy,
        /// The actual closing side.
        by: ClosedBy,
    },
    /// The connection ended before the last step.
    ClosedBefore {
        /// The first line that could not be performed.
        line: u32,
        /// Its first word.
        word: &'static str,
        /// The closing side.
        by: ClosedBy,
    },
    /// The driver reported silence instead of performing a stimulus.
    NotDone {
        /// The line.
        line: u32,
        /// Its first word.
        word: &'static str,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { line, expected, received, at } => {
                write!(f, "line {line}: the bytes to the device differ at byte {} of {}", at + 1, expected.len())?;
                let from = at.saturating_sub(SHOWN_BEFORE);
                compared(f, expected, received, from)
            }
            Self::TooFewBytes { line, expected, received } => {
                write!(
                    f,
                    "line {line}: expected {} bytes to the device, received {} in time",
                    expected.len(),
                    received.len()
                )?;
                compared(f, expected, received, received.len().saturating_sub(SHOWN_BEFORE))
            }
            Self::ClosedWithin { line, expected, received } => {
                let (all, some) = (expected.len(), received.len());
                write!(
                    f,
                    "line {line}: expected {all} bytes to the device, received {some} and then the end of the connection"
                )?;
                compared(f, expected, received, received.len().saturating_sub(SHOWN_BEFORE))
            }
            Self::UnexpectedBytes { after, received } => {
                write!(f, "after line {after}: expected no more bytes to the device, received {}", received.len())?;
                let received = Pattern::exact(received);
                write!(f, "\n  received  {}", window(&received, 0, Form::of(&received)))
            }
            Self::Message { line, expected, received, difference } => {
                match difference {
                    Some(difference) => write!(f, "line {line}: another message was published: {difference}")?,
                    None => write!(f, "line {line}: another message was published: topic or qos differ")?,
                }
                write!(f, "\n  expected  {}\n  received  {}", shown(expected), shown(&as_message(received)))
            }
            Self::NoMessage { line, expected } => {
                write!(
                    f,
                    "line {line}: expected a message to be published, none was in time\n  expected  {}",
                    shown(expected)
                )
            }
            Self::UnexpectedMessage { after, received } => {
                write!(f, "after line {after}: expected no more messages")?;
                write!(f, "\n  received  {}", shown(&as_message(received)))
            }
            Self::NotClosed { line, expected: ClosedBy::Gateway } => {
                write!(f, "line {line}: expected the gateway to close the connection, it did not in time")
            }
            Self::NotClosed { line, expected } => {
                write!(f, "line {line}: expected the connection to be closed ({}), it was not in time", expected.word())
            }
            Self::ClosedBy { line, expected, by } => {
                write!(f, "line {line}: expected \"close {}\", received \"close {}\"", expected.word(), by.word())
            }
            Self::ClosedBefore { line, word, by } => {
                write!(
                    f,
                    "line {line}: expected the connection to be open for {word:?}, found it closed ({})",
                    by.word()
                )
            }
            Self::NotDone { line, word } => write!(f, "line {line}: {word:?} was to be done and was not"),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Both in the same form, for a visual comparison: in hex unless both are text.
fn compared(f: &mut fmt::Formatter<'_>, expected: &Pattern, received: &Bytes, from: usize) -> fmt::Result {
    let received = Pattern::exact(received);
    let form = if received.is_empty() { Form::of(expected) } else { Form::of(expected).min(Form::of(&received)) };
    write!(f, "\n  expected  {}\n  received  {}", window(expected, from, form), window(&received, from, form))
}

/// Some bytes from an index on, with an ellipsis if there are more.
fn window(pattern: &Pattern, from: usize, form: Form) -> String {
    let cells = pattern.cells();
    let from = from.min(cells.len());
    let end = from.saturating_add(SHOWN_BYTES_MAX).min(cells.len());
    if cells.is_empty() {
        return "nothing".to_owned();
    }
    let (before, after) = (if from > 0 { "… " } else { "" }, if end < cells.len() { " …" } else { "" });
    format!("{before}{}{after}", print::bytes_text(&Pattern::new(cells[from..end].to_vec()), form))
}

/// A message as its line in a file, truncated.
fn shown(message: &Message) -> String {
    const CHARS_MAX: usize = 400;
    let line = Line::Step(Step::new(Action::Publish(message.clone()))).to_string();
    let line = line.split('\n').map(str::trim_start).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARS_MAX) {
        None => line,
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}

fn as_message(published: &Published) -> Message {
    let (topic, qos) = (published.topic.clone(), published.qos);
    Message { topic, qos, payload: Payload::recorded(&published.payload) }
}
