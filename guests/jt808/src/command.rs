//! Commands in JSON, as they come from `jt808/<phone>/command`, to messages for the terminal. Pure.

use core::fmt;

use polygate_guest::json::{self, Value};

use crate::downlink::MESSAGE_MAX;
use crate::gbk;
use crate::header::Version;

/// The longest text of 0x8300, in bytes.
pub const TEXT_MAX: usize = 1024;
/// The longest `ref`, in bytes.
pub const REF_MAX: usize = 256;
/// Most parameters in one query: its count is one byte.
pub const IDS_MAX: usize = 255;

/// Show it (bit 2) and read it out (bit 3).
const FLAGS_DEFAULT: u8 = 0b1100;
/// A notification; 2 would be a service. Only 2019 has it.
const TEXT_KIND_DEFAULT: u8 = 1;

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its id.
    pub id: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is no JSON.
    Json(json::Fault),
    /// A member is missing or is not what it should be.
    Member {
        /// The member's name.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(fault) => fault.fmt(out),
            Self::Member { name, expected } => write!(out, "member {name:?}: expected {expected}"),
        }
    }
}

impl std::error::Error for Fault {}

/// The commander's own name for a command, which comes back with whatever is said about it.
///
/// # Errors
///
/// For a `ref` that is no string, or is over [`REF_MAX`].
pub fn reference<'a>(command: &'a Value<'_>) -> Result<Option<&'a str>, Fault> {
    let Some(value) = command.get("ref") else { return Ok(None) };
    let text = value.as_text().filter(|text| text.len() <= REF_MAX);
    text.map(Some).ok_or(Fault::Member { name: "ref", expected: "a string of at most 256 bytes" })
}

/// The message that a command asks for, for a terminal of that version.
///
/// # Errors
///
/// The first [`Fault`] found.
pub fn parse(command: &Value<'_>, version: Version) -> Result<Command, Fault> {
    match command.get("type").and_then(Value::as_text) {
        Some("text") => text(command, version),
        Some("query_parameters") => query_parameters(command),
        Some("query_position") => Ok(Command { id: 0x8201, body: Vec::new() }),
        Some("raw") => raw(command),
        _ => Err(Fault::Member {
            name: "type",
            expected: "\"text\", \"query_parameters\", \"query_position\" or \"raw\"",
        }),
    }
}

/// 0x8300: flags(1), in 2019 kind(1), text.
fn text(command: &Value<'_>, version: Version) -> Result<Command, Fault> {
    let mut body = vec![byte(command, "flags", FLAGS_DEFAULT)?];
    let kind = byte(command, "text_type", TEXT_KIND_DEFAULT)?;
    match version {
        Version::V2013 => {}
        Version::V2019(_) => body.push(kind),
    }
    let text = match (command.get("text"), command.get("text_hex")) {
        (Some(text), None) => text.as_text().and_then(gbk::encode),
        (None, Some(digits)) => digits.as_text().and_then(unhex),
        _ => None,
    };
    let text = text.filter(|text| text.len() <= TEXT_MAX).ok_or(Fault::Member {
        name: "text",
        expected: "at most 1024 bytes of GBK, as text in \"text\" or in hexadecimal in \"text_hex\"",
    })?;
    body.extend(text);
    Ok(Command { id: 0x8300, body })
}

/// 0x8104 for all parameters, 0x8106 for some: count(1), ids(4 each).
fn query_parameters(command: &Value<'_>) -> Result<Command, Fault> {
    let Some(ids) = command.get("ids") else { return Ok(Command { id: 0x8104, body: Vec::new() }) };
    let fault = Fault::Member { name: "ids", expected: "an array of 1 to 255 numbers of 32 bits" };
    let ids = ids.as_array().filter(|ids| (1..=IDS_MAX).contains(&ids.len())).ok_or(fault)?;
    let mut body = vec![ids.len() as u8];
    for id in ids {
        let id = number(id).and_then(|id| u32::try_from(id).ok()).ok_or(fault)?;
        body.extend(id.to_be_bytes());
    }
    Ok(Command { id: 0x8106, body })
}

fn raw(command: &Value<'_>) -> Result<Command, Fault> {
    let id = command.get("id").and_then(number).and_then(|id| u16::try_from(id).ok());
    let id = id.ok_or(Fault::Member { name: "id", expected: "a number of 16 bits, like 33536 or \"0x8300\"" })?;
    let digits = command.get("body").map_or(Some(""), Value::as_text);
    let body = digits.and_then(unhex).filter(|body| body.len() <= MESSAGE_MAX);
    let body = body.ok_or(Fault::Member { name: "body", expected: "at most 65536 bytes in hexadecimal" })?;
    Ok(Command { id, body })
}

/// A number, or a string of `0x` and hexadecimal digits.
fn number(value: &Value<'_>) -> Option<u64> {
    match value.as_text() {
        None => value.as_u64(),
        Some(text) => {
            let digits =
                text.strip_prefix("0x").filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
            u64::from_str_radix(digits, 16).ok()
        }
    }
}

fn byte(command: &Value<'_>, name: &'static str, default: u8) -> Result<u8, Fault> {
    let Some(value) = command.get(name) else { return Ok(default) };
    number(value)
        .and_then(|value| u8::try_from(value).ok())
        .ok_or(Fault::Member { name, expected: "a number of 8 bits" })
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some((nibble(*high)? << 4 | nibble(*low)?) as u8)).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(version: Version, text: &str) -> Result<(u16, Vec<u8>), String> {
        let value = json::parse(text.as_bytes()).unwrap();
        parse(&value, version).map(|Command { id, body }| (id, body)).map_err(|fault| fault.to_string())
    }

    /// Every kind of command, byte for byte.
    #[test]
    fn commands() {
        let v2013 = |text| command(Version::V2013, text).unwrap();
        assert_eq!(v2013(r#"{"type":"text","text":"Hi"}"#), (0x8300, vec![12, b'H', b'i']));
        assert_eq!(v2013(r#"{"type":"text","text_hex":"bea9","flags":1}"#), (0x8300, vec![1, 0xbe, 0xa9]));
        assert_eq!(v2013(r#"{"type":"text","text":"京"}"#), (0x8300, vec![12, 0xbe, 0xa9]));
        assert_eq!(v2013(r#"{"type":"query_parameters"}"#), (0x8104, vec![]));
        assert_eq!(
            v2013(r#"{"type":"query_parameters","ids":[1,"0x00000013"]}"#),
            (0x8106, vec![2, 0, 0, 0, 1, 0, 0, 0, 0x13])
        );
        assert_eq!(v2013(r#"{"type":"query_position"}"#), (0x8201, vec![]));
        assert_eq!(v2013(r#"{"type":"raw","id":"0x8105","body":"04"}"#), (0x8105, vec![4]));
        assert_eq!(v2013(r#"{"type":"raw","id":33029}"#), (0x8105, vec![]));
        let v2019 = command(Version::V2019(1), r#"{"type":"text","text":"Hi","text_type":2}"#);
        assert_eq!(v2019, Ok((0x8300, vec![12, 2, b'H', b'i'])));
    }

    /// A refusal names the member and what it should be.
    #[test]
    fn refusals() {
        let refusal = |text: &str| command(Version::V2013, text).unwrap_err();
        assert_eq!(
            refusal("{}"),
            "member \"type\": expected \"text\", \"query_parameters\", \"query_position\" or \"raw\""
        );
        assert_eq!(refusal("[]"), refusal("{}"));
        let text = "member \"text\": expected at most 1024 bytes of GBK, as text in \"text\" or in hexadecimal in \"text_hex\"";
        assert_eq!(refusal(r#"{"type":"text"}"#), text);
        assert_eq!(refusal(r#"{"type":"text","text":"😀"}"#), text);
        assert_eq!(refusal(r#"{"type":"text","text":"a","text_hex":"61"}"#), text);
        assert_eq!(refusal(&format!(r#"{{"type":"text","text":"{}"}}"#, "x".repeat(1025))), text);
        assert_eq!(
            refusal(r#"{"type":"text","text":"a","flags":256}"#),
            "member \"flags\": expected a number of 8 bits"
        );
        let ids = "member \"ids\": expected an array of 1 to 255 numbers of 32 bits";
        assert_eq!(refusal(r#"{"type":"query_parameters","ids":[]}"#), ids);
        assert_eq!(refusal(r#"{"type":"query_parameters","ids":["13"]}"#), ids);
        assert_eq!(
            refusal(r#"{"type":"raw","id":"0x18105"}"#),
            "member \"id\": expected a number of 16 bits, like 33536 or \"0x8300\""
        );
        let body = "member \"body\": expected at most 65536 bytes in hexadecimal";
        assert_eq!(refusal(r#"{"type":"raw","id":33029,"body":"0"}"#), body);
        assert_eq!(refusal(r#"{"type":"raw","id":33029,"body":"0g"}"#), body);
        assert_eq!(refusal(r#"{"type":"raw","id":33029,"body":7}"#), body);
    }

    /// The commander's reference is taken as it is, and has a limit.
    #[test]
    fn references() {
        let value = |text| json::parse(text).unwrap();
        assert_eq!(reference(&value(br#"{"ref":"job 7"}"#)), Ok(Some("job 7")));
        assert_eq!(reference(&value(b"{}")), Ok(None));
        assert!(reference(&value(br#"{"ref":7}"#)).is_err());
    }
}
