//! What happened instead of what the conversation says, told with the line, the expected and the received.

use std::fmt;

use bytes::Bytes;

use super::Published;
use crate::conversation::print::{self, Form};
use crate::conversation::{Action, ClosedBy, Difference, Line, Message, Pattern, Payload, Step};

/// Bytes of a stream that a message shows; a longer one is cut around what matters.
const SHOWN_BYTES_MAX: usize = 64;

/// Of those, how many stand before the first that differs.
const SHOWN_BEFORE: usize = 16;

/// What happened is not what the conversation says.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// A byte to the device is another one.
    Bytes {
        /// The `<` line.
        line: u32,
        /// All that the line expects.
        expected: Pattern,
        /// What came, from the same byte on; may be shorter or longer.
        received: Bytes,
        /// Index of the first byte that differs.
        at: usize,
    },
    /// Some of the bytes to the device did not come in time.
    TooFewBytes {
        /// The `<` line.
        line: u32,
        /// All that the line expects.
        expected: Pattern,
        /// What came; fits as far as it goes.
        received: Bytes,
    },
    /// The connection ended before all bytes had come.
    ClosedWithin {
        /// The `<` line.
        line: u32,
        /// All that the line expects.
        expected: Pattern,
        /// What came; fits as far as it goes.
        received: Bytes,
    },
    /// Bytes came that no line expects.
    UnexpectedBytes {
        /// The last line that was met; 0 before the first.
        after: u32,
        /// What came.
        received: Bytes,
    },
    /// Another message was published.
    Message {
        /// The `publish` line.
        line: u32,
        /// What the line expects.
        expected: Box<Message>,
        /// What came.
        received: Box<Published>,
        /// How the payload differs; `None` when topic or quality of service do.
        difference: Option<Difference>,
    },
    /// No message was published in time.
    NoMessage {
        /// The `publish` line.
        line: u32,
        /// What the line expects.
        expected: Box<Message>,
    },
    /// A message was published that no line expects.
    UnexpectedMessage {
        /// The last line that was met; 0 before the first.
        after: u32,
        /// What came.
        received: Box<Published>,
    },
    /// The connection did not end in time.
    NotClosed {
        /// The `close` line.
        line: u32,
        /// Who should have closed it.
        expected: ClosedBy,
    },
    /// The connection was ended by somebody else.
    ClosedBy {
        /// The `close` line.
        line: u32,
        /// Who should have closed it.
        expected: ClosedBy,
        /// Who did.
        by: ClosedBy,
    },
    /// The connection ended, but the conversation goes on.
    ClosedBefore {
        /// The line that could not be done any more.
        line: u32,
        /// The word with which it begins.
        word: &'static str,
        /// Who closed it.
        by: ClosedBy,
    },
    /// The driver was to do something and reports silence.
    NotDone {
        /// The line.
        line: u32,
        /// The word with which it begins.
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

/// Both in the same form, so the eye can compare them: in hex unless both can be read.
fn compared(f: &mut fmt::Formatter<'_>, expected: &Pattern, received: &Bytes, from: usize) -> fmt::Result {
    let received = Pattern::exact(received);
    let form = if received.is_empty() { Form::of(expected) } else { Form::of(expected).min(Form::of(&received)) };
    write!(f, "\n  expected  {}\n  received  {}", window(expected, from, form), window(&received, from, form))
}

/// Some bytes from an index on, with dots where there are more.
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

/// A message as its line in a file, cut when it is long.
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
