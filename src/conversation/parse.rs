//! Parser of conversations: reports all faults, one a line.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::cursor::{Cursor, Wildcards};
use super::fault::{Fault, Faults, Found, Problem, ReadError};
use super::{
    Action, ClosedBy, Conversation, FILE_BYTES_MAX, Item, LINES_MAX, Line, Message, OFFSET_MAX, Pattern, Payload, Step,
};
use crate::conn::{QoS, SocketKind, Timer};

const TRANSPORTS: [SocketKind; 4] = [SocketKind::Tcp, SocketKind::Tls, SocketKind::Udp, SocketKind::Dtls];
/// The words that begin a line, except `>` and `<`.
const WORDS: [&str; 5] = ["publish", "deliver", "timer", "close", "transport"];
const STEP_EXPECTED: &str = r#"">", "<", "publish", "deliver", "timer" or "close""#;
const LINE_EXPECTED: &str = r##"">", "<", "publish", "deliver", "timer", "close", "transport", "@" or "#""##;
const TIME_EXPECTED: &str = r#"a time such as "@1.250s", at most six decimals and at most 31536000s"#;

impl Conversation {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is longer than [`FILE_BYTES_MAX`], is not UTF-8, or has faults.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        // One byte more than the maximum reveals a longer file, whatever its metadata says.
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        if let Err(source) = read {
            return Err(ReadError::Io { name, source });
        }
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ReadError::TooLong { name });
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::parse(name, &text)?),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let bytes = error.as_bytes();
                let line = bytes.iter().take(at).filter(|byte| **byte == b'\n').count();
                let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1);
                Err(ReadError::NotText { name, line, byte: bytes.get(at).copied().unwrap_or_default() })
            }
        }
    }

    /// Parses a text; `name` is used in messages.
    ///
    /// # Errors
    ///
    /// All faults of the text, at most one a line.
    pub fn parse(name: impl Into<String>, text: &str) -> Result<Self, Faults> {
        let name = name.into();
        let mut reader = Reader::default();
        if let Some(line) = (text.matches('\n').count() > LINES_MAX).then_some(LINES_MAX + 1) {
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            reader.faults.push(Fault { line, column: 1, problem: Problem::TooManyLines });
            reader.faults.finish(&name)?;
        }
        for (line, logical) in logical_lines(text) {
            reader.read(line, &logical);
        }
        if reader.faults.is_empty() && reader.first_step.is_none() {
            reader.faults.push(Fault { line: 1, column: 1, problem: Problem::NoStep });
        }
        reader.faults.finish(&name)?;
        Ok(Self { name, items: reader.items })
    }
}

/// A line of the file, with its continuations.
enum Logical<'t> {
    Blank,
    /// The text after the `#`.
    Comment(&'t str),
    /// A continuation without a line before it.
    Stray(&'t str),
    /// A step or a `transport`, with its continuations.
    Entry(Vec<&'t str>),
}

/// Splits a text into lines with their first line numbers, and joins continuations.
fn logical_lines(text: &str) -> Vec<(u32, Logical<'_>)> {
    // Some editors write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut lines: Vec<(u32, Logical<'_>)> = Vec::new();
    for (index, physical) in text.split('\n').enumerate() {
        let physical = physical.strip_suffix('\r').unwrap_or(physical);
        let logical = if physical.trim().is_empty() {
            Logical::Blank
        } else if let Some(comment) = physical.strip_prefix('#') {
            Logical::Comment(comment)
        } else if physical.starts_with([' ', '\t']) {
            match lines.last_mut() {
                Some((_, Logical::Entry(segments))) => {
                    segments.push(physical);
                    continue;
                }
                _ => Logical::Stray(physical),
            }
        } else {
            Logical::Entry(vec![physical])
        };
        lines.push((u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1), logical));
    }
    lines
}

/// The parsed part, for checks of the next lines.
#[derive(Default)]
struct Reader {
    items: Vec<Item>,
    faults: Found,
    /// The latest time stamp.
    latest: Option<Duration>,
    /// Lines of the `transport`, of the first step and of the `close`.
    transport: Option<u32>,
    first_step: Option<u32>,
    closed: Option<u32>,
}

impl Reader {
    fn read(&mut self, line: u32, logical: &Logical<'_>) {
        let read = match logical {
            Logical::Blank => Ok(Line::Blank),
            Logical::Comment(text) => Ok(Line::Comment(text.trim_end().to_owned())),
            Logical::Stray(text) => {
                let segments = [*text];
                let mut cursor = Cursor::new(line, &segments);
                cursor.skip_space();
                Err(cursor.fault(Problem::ContinuesNothing))
            }
            Logical::Entry(segments) => self.entry(line, &mut Cursor::new(line, segments)),
        };
        match read {
            Ok(content) => self.items.push(Item { line, content }),
            Err(fault) => self.faults.push(fault),
        }
    }

    fn entry(&mut self, line: u32, cursor: &mut Cursor<'_>) -> Result<Line, Fault> {
        let here = |problem| Fault { line, column: 1, problem };
        let at = time(cursor)?;
        let unknown = cursor.unexpected(if at.is_some() { STEP_EXPECTED } else { LINE_EXPECTED });
        let action = if cursor.take('>') {
            Action::FromPeer(from_peer(cursor)?)
        } else if cursor.take('<') {
            Action::ToPeer(to_peer(cursor)?)
        } else {
            match cursor.word() {
                "publish" => Action::Publish(message(cursor)?),
                "deliver" => Action::Deliver(message(cursor)?),
                "timer" => Action::Timer(choice(cursor, "the timer", &[("keepalive", Timer::Keepalive)])?),
                "close" => {
                    Action::Close(choice(cursor, "who closes", &ClosedBy::ALL.map(|closer| (closer.word(), closer)))?)
                }
                "transport" if at.is_none() => {
                    let kind = choice(cursor, "the transport", &TRANSPORTS.map(|kind| (kind.name(), kind)))?;
                    return match (self.transport.replace(line), self.first_step) {
                        (Some(first), _) => Err(here(Problem::TransportAgain { first })),
                        (None, Some(_)) => Err(here(Problem::TransportAfterStep)),
                        (None, None) => Ok(Line::Transport(kind)),
                    };
                }
                word => return Err(meant(unknown, word, WORDS)),
            }
        };
        if let Some(closed) = self.closed {
            return Err(here(Problem::AfterClose { closed }));
        }
        if let (Some(before), Some(at)) = (self.latest, at)
            && at < before
        {
            return Err(here(Problem::TimeGoesBack { before, at }));
        }
        self.latest = at.or(self.latest);
        self.first_step.get_or_insert(line);
        if matches!(action, Action::Close(_)) {
            self.closed = Some(line);
        }
        Ok(Line::Step(Step { at, action }))
    }
}

/// Takes `@1.250s` and the white space after it, if it is there.
fn time(cursor: &mut Cursor<'_>) -> Result<Option<Duration>, Fault> {
    let fault = cursor.unexpected(TIME_EXPECTED);
    if !cursor.take('@') {
        return Ok(None);
    }
    let at = offset(cursor.word()).ok_or(fault)?;
    cursor.skip_space();
    Ok(Some(at))
}

/// Reads `1.250s`.
fn offset(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (seconds, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str, max: usize| (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds, 8) || !digits(decimals, 6) {
        return None;
    }
    let micros = format!("{decimals:0<6}").parse().ok()?;
    let at = Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros);
    (at <= OFFSET_MAX).then_some(at)
}

fn from_peer(cursor: &mut Cursor<'_>) -> Result<Bytes, Fault> {
    let bytes: Vec<u8> = some_bytes(cursor, Wildcards::Exact)?.into_iter().flatten().collect();
    Ok(Bytes::from(bytes))
}

fn to_peer(cursor: &mut Cursor<'_>) -> Result<Pattern, Fault> {
    some_bytes(cursor, Wildcards::Open).map(Pattern::new)
}

/// At least one byte.
fn some_bytes(cursor: &mut Cursor<'_>, cells: Wildcards) -> Result<Vec<Option<u8>>, Fault> {
    let bytes = cursor.bytes(cells)?;
    if bytes.is_empty() { Err(cursor.unexpected("at least one byte")) } else { Ok(bytes) }
}

/// Takes topic, quality of service and payload.
fn message(cursor: &mut Cursor<'_>) -> Result<Message, Fault> {
    cursor.skip_space();
    let no_topic = cursor.unexpected("the topic in quotes");
    let topic_is_bytes = cursor.unexpected("a topic in UTF-8");
    if cursor.peek() != Some('"') {
        return Err(no_topic);
    }
    let topic = String::from_utf8(cursor.text()?).map_err(|_| topic_is_bytes)?;

    cursor.skip_space();
    let mut qos = QoS::AtMostOnce;
    let payload_expected = cursor.unexpected(r#"a payload: hex digits, quoted text ("" for none) or json"#);
    match cursor.peek() {
        Some('q') => {
            let fault = cursor.unexpected(r#""qos=0", "qos=1" or "qos=2""#);
            qos = match cursor.word() {
                "qos=0" => QoS::AtMostOnce,
                "qos=1" => QoS::AtLeastOnce,
                "qos=2" => QoS::ExactlyOnce,
                _ => return Err(fault),
            };
        }
        None => return Err(payload_expected),
        Some(_) => {}
    }
    Ok(Message { topic, qos, payload: payload(cursor)? })
}

fn payload(cursor: &mut Cursor<'_>) -> Result<Payload, Fault> {
    cursor.skip_space();
    let expected = cursor.unexpected(r#"a payload: hex digits, quoted text ("" for none) or json"#);
    match cursor.peek() {
        None => Err(expected),
        // Not a hex digit, so it can only be the word.
        Some('j') => {
            let word = cursor.word_of_letters();
            if word != "json" {
                return Err(meant(expected, word, ["json"]));
            }
            cursor.skip_space();
            let start = cursor.position();
            let text = cursor.rest();
            serde_json::from_str(&text).map(Payload::Json).map_err(|error| {
                let why = without_place(&error.to_string());
                cursor.fault_within(&start, error.line(), error.column(), Problem::NotJson(why))
            })
        }
        Some('{' | '[') => Err(cursor.unexpected("\"json\" before a JSON value")),
        Some(_) => {
            let bytes: Vec<u8> = cursor.bytes(Wildcards::Exact)?.into_iter().flatten().collect();
            Ok(Payload::Bytes(Bytes::from(bytes)))
        }
    }
}

/// serde_json appends the position in its own text; the fault has the position in the file.
fn without_place(words: &str) -> String {
    words.rsplit_once(" at line ").map_or(words, |(words, _)| words).to_owned()
}

/// Takes one of a few words, then the end of the line.
fn choice<T: Copy, const N: usize>(
    cursor: &mut Cursor<'_>,
    line: &str,
    choices: &[(&'static str, T); N],
) -> Result<T, Fault> {
    cursor.skip_space();
    let words = choices.map(|(word, _)| word);
    let quoted = words.map(|word| format!("{word:?}")).join(", ");
    let fault = cursor.unexpected(format!("{line}: {quoted}"));
    let word = cursor.word();
    let chosen = choices.iter().find(|(choice, _)| *choice == word).map(|(_, value)| *value);
    let value = chosen.ok_or_else(|| meant(fault, word, words))?;
    cursor.end(&format!("{word:?}"))?;
    Ok(value)
}

/// Adds a suggestion: the nearest word within an edit distance of two, ignoring case.
fn meant<const N: usize>(mut fault: Fault, word: &str, words: [&'static str; N]) -> Fault {
    // No word is that long, and the edit distance takes time and memory with the length.
    const WORD_BYTES_MAX: usize = 16;
    if word.len() > WORD_BYTES_MAX {
        return fault;
    }
    let lower = word.to_ascii_lowercase();
    let near = words.into_iter().map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate));
    // Words of up to four letters may differ in one, longer words in two.
    let is_near = |(distance, candidate): &(usize, &str)| *distance <= if candidate.len() > 4 { 2 } else { 1 };
    let nearest = near.filter(|(_, candidate)| *candidate != word).filter(is_near).min();
    if let Problem::Unexpected { meant, .. } = &mut fault.problem {
        *meant = nearest.map(|(_, candidate)| candidate);
    }
    fault
}

#[cfg(test)]
mod tests;
