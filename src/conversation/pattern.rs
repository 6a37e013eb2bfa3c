//! Patterns for bytes and payloads, and their differences from the received ones.

use std::fmt;

use bytes::Bytes;
use serde_json::{Number, Value};

/// The JSON string that stands for any value in an expected payload.
const ANY: &str = "*";

/// Bytes with wildcards (`??` in the file).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Option<u8>>);

impl Pattern {
    /// One cell for each byte; `None` is any byte.
    pub fn new(cells: Vec<Option<u8>>) -> Self {
        Self(cells)
    }

    /// Exactly these bytes.
    pub fn exact(bytes: &[u8]) -> Self {
        Self(bytes.iter().copied().map(Some).collect())
    }

    /// One cell for each byte; `None` is any byte.
    pub fn cells(&self) -> &[Option<u8>] {
        &self.0
    }

    /// The number of matched bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it matches no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The index of the first mismatch from `start` on, over the shorter length of both.
    pub fn first_difference(&self, bytes: &[u8], start: usize) -> Option<usize> {
        let pairs = self.0.iter().zip(bytes).enumerate().skip(start);
        pairs.into_iter().find(|(_, (cell, byte))| cell.is_some_and(|expected| expected != **byte)).map(|(at, _)| at)
    }
}

/// The payload of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// These bytes, exactly.
    Bytes(Bytes),
    /// JSON, compared by structure: the order of members and white space do not matter, numbers are equal by value
    /// (`1` is `1.0`), and in an expected payload the string `"*"` stands for any value.
    Json(Value),
}

impl Payload {
    /// The recorded form of a payload: JSON if it is a JSON object or array, else its bytes.
    ///
    /// A number alone is JSON too, but as a payload `42` more likely means these two characters.
    pub fn recorded(bytes: &Bytes) -> Self {
        match serde_json::from_slice(bytes) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => Self::Json(value),
            Ok(_) | Err(_) => Self::Bytes(bytes.clone()),
        }
    }

    /// The bytes to send: JSON in its compact form.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Json(value) => Bytes::from(value.to_string()),
        }
    }

    /// The difference of `actual` from this expected payload; `None` if it matches.
    pub fn difference(&self, actual: &[u8]) -> Option<Difference> {
        match self {
            Self::Bytes(expected) if expected == actual => None,
            Self::Bytes(_) => Some(Difference::Bytes),
            Self::Json(expected) => match serde_json::from_slice(actual) {
                Ok(actual) => json_difference(expected, &actual, &mut String::new()),
                Err(error) => Some(Difference::NotJson(error.to_string())),
            },
        }
    }
}

/// The difference of a payload from the expected one.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// The bytes differ.
    Bytes,
    /// JSON was expected; the error of the parser.
    NotJson(String),
    /// JSON of another structure.
    Json {
        /// JSON pointer (RFC 6901) to the first difference; empty for the whole.
        at: String,
        /// The expected value as JSON; `None` if none was.
        expected: Option<String>,
        /// The received value as JSON; `None` if none was.
        received: Option<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("the payloads differ"),
            Self::NotJson(why) => write!(f, "expected a JSON payload, received something else: {why}"),
            Self::Json { at, expected, received } => {
                let place = if at.is_empty() { "the payload" } else { at };
                let nothing = "nothing";
                let (expected, received) =
                    (expected.as_deref().unwrap_or(nothing), received.as_deref().unwrap_or(nothing));
                write!(f, "{place}: expected {expected}, received {received}")
            }
        }
    }
}

/// The first difference in document order. The JSON parser bounds the depth of both.
fn json_difference(expected: &Value, actual: &Value, at: &mut String) -> Option<Difference> {
    let here = |at: &str, expected: Option<&Value>, received: Option<&Value>| {
        let shown = |value: &Value| value.to_string();
        Some(Difference::Json { at: at.to_owned(), expected: expected.map(shown), received: received.map(shown) })
    };
    let depth = at.len();
    match (expected, actual) {
        (Value::String(text), _) if text == ANY => None,
        (Value::Number(one), Value::Number(other)) if same_number(one, other) => None,
        (Value::Array(one), Value::Array(other)) => {
            for index in 0..one.len().max(other.len()) {
                at.push_str(&format!("/{index}"));
                let found = match (one.get(index), other.get(index)) {
                    (Some(one), Some(other)) => json_difference(one, other, at),
                    (one, other) => here(at, one, other),
                };
                if found.is_some() {
                    return found;
                }
                at.truncate(depth);
            }
            None
        }
        (Value::Object(one), Value::Object(other)) => {
            let surplus = other.keys().filter(|key| !one.contains_key(*key));
            for key in one.keys().chain(surplus) {
                at.push('/');
                at.push_str(&key.replace('~', "~0").replace('/', "~1"));
                let found = match (one.get(key), other.get(key)) {
                    (Some(one), Some(other)) => json_difference(one, other, at),
                    (one, other) => here(at, one, other),
                };
                if found.is_some() {
                    return found;
                }
                at.truncate(depth);
            }
            None
        }
        (one, other) if one == other => None,
        (one, other) => here(at, Some(one), Some(other)),
    }
}

/// JSON has one number type: `1` is `1.0`. Two integers are compared as integers, so large ids keep their last digits.
fn same_number(one: &Number, other: &Number) -> bool {
    one == other || (one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn difference(expected: Value, actual: &str) -> Option<String> {
        Payload::Json(expected).difference(actual.as_bytes()).map(|difference| difference.to_string())
    }

    #[test]
    fn json_is_compared_by_structure() {
        let expected = json!({"time": "*", "speed": 12, "alarm": ["sos", "*"], "at": {"lat": 31.5}});
        let same = r#" {"at":{"lat":31.5},"alarm":["sos",null],"speed":12.0,"time":{"any":"thing"}} "#;
        assert_eq!(difference(expected, same), None);
    }

    #[test]
    fn the_first_difference_is_named_by_its_pointer() {
        let cases = [
            (json!({"a": {"b": 1}}), r#"{"a":{"b":2}}"#, "/a/b: expected 1, received 2"),
            (json!({"a": 1}), r#"{}"#, "/a: expected 1, received nothing"),
            (json!({}), r#"{"a/b":true}"#, "/a~1b: expected nothing, received true"),
            (json!([1, 2]), "[1]", "/1: expected 2, received nothing"),
            (json!("x"), r#""y""#, r#"the payload: expected "x", received "y""#),
            (
                json!(9_007_199_254_740_993_u64),
                "9007199254740992",
                "the payload: expected 9007199254740993, received 9007199254740992",
            ),
        ];
        for (expected, actual, text) in cases {
            assert_eq!(difference(expected, actual).as_deref(), Some(text));
        }
        let text = difference(json!(1), "{").unwrap();
        assert!(text.starts_with("expected a JSON payload, received something else: "), "{text}");
    }

    #[test]
    fn any_byte_fits_an_open_cell() {
        let pattern = Pattern::new(vec![Some(0x7e), None, Some(0x7e)]);
        assert_eq!(pattern.first_difference(&[0x7e, 0xff, 0x7e], 0), None);
        assert_eq!(pattern.first_difference(&[0x7e, 0xff, 0x00], 0), Some(2));
        assert_eq!(pattern.first_difference(&[0x00], 0), Some(0));
        assert_eq!(pattern.first_difference(&[0x00], 1), None);
        assert_eq!(pattern.first_difference(&[], 0), None);
    }
}
