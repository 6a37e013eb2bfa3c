//! Reading: strict (RFC 8259), bounded in depth, and numbers are kept as they were written.

use core::fmt;

/// How deep arrays and objects may lie in each other; deeper text is refused, so that no text can use up the stack.
pub const DEPTH_MAX: u8 = 16;

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// A number, as it was written.
    Number(&'a str),
    /// A string, with its escapes undone.
    Text(String),
    /// An array.
    Array(Vec<Value<'a>>),
    /// An object, its members in the order of the text.
    Object(Vec<(String, Value<'a>)>),
}

impl Value<'_> {
    /// The member of that name; the last one, should there be several. None if this is no object.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The text of a string.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A number without sign, fraction and exponent, that fits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        if let Self::Number(number) = self { number.parse().ok() } else { None }
    }

    /// The elements of an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(elements) = self { Some(elements) } else { None }
    }
}

/// Where a text stops being JSON, and what should have been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The byte's offset, from 0.
    pub at: usize,
    /// What was expected there.
    pub expected: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "not JSON at byte {}: expected {}", self.at, self.expected)
    }
}

impl std::error::Error for Fault {}

/// Reads one JSON value; nothing but white space may follow it.
///
/// # Errors
///
/// The [`Fault`] that stopped the reading; also for text nested deeper than [`DEPTH_MAX`].
pub fn parse(text: &[u8]) -> Result<Value<'_>, Fault> {
    let text = core::str::from_utf8(text).map_err(|fault| Fault { at: fault.valid_up_to(), expected: "UTF-8" })?;
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(DEPTH_MAX)?;
    reader.skip_white();
    if reader.peek().is_some() { Err(reader.fault("the end")) } else { Ok(value) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn fault(&self, expected: &'static str) -> Fault {
        Fault { at: self.at, expected }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_while(&mut self, fits: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&fits) {
            self.at += 1;
        }
    }

    fn skip_white(&mut self) {
        self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    }

    /// Steps over `byte` if it is next.
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn value(&mut self, depth: u8) -> Result<Value<'a>, Fault> {
        self.skip_white();
        match self.peek() {
            Some(b'{') => self.object(self.deeper(depth)?),
            Some(b'[') => self.array(self.deeper(depth)?),
            Some(b'"') => self.string().map(Value::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Flag(true)),
            Some(b'f') => self.word("false", Value::Flag(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => Err(self.fault("a value")),
        }
    }

    fn deeper(&self, depth: u8) -> Result<u8, Fault> {
        depth.checked_sub(1).ok_or_else(|| self.fault("at most 16 levels"))
    }

    fn word(&mut self, word: &'static str, value: Value<'a>) -> Result<Value<'a>, Fault> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(self.fault(word));
        }
        self.at += word.len();
        Ok(value)
    }

    fn object(&mut self, depth: u8) -> Result<Value<'a>, Fault> {
        self.at += 1;
        let mut members = Vec::new();
        self.skip_white();
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_white();
            if self.peek() != Some(b'"') {
                return Err(self.fault("a name in quotes"));
            }
            let name = self.string()?;
            self.skip_white();
            if !self.eat(b':') {
                return Err(self.fault("':' after a name"));
            }
            members.push((name, self.value(depth)?));
            self.skip_white();
            if self.eat(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.eat(b',') {
                return Err(self.fault("',' or '}'"));
            }
        }
    }

    fn array(&mut self, depth: u8) -> Result<Value<'a>, Fault> {
        self.at += 1;
        let mut elements = Vec::new();
        self.skip_white();
        if self.eat(b']') {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value(depth)?);
            self.skip_white();
            if self.eat(b']') {
                return Ok(Value::Array(elements));
            }
            if !self.eat(b',') {
                return Err(self.fault("',' or ']'"));
            }
        }
    }

    fn number(&mut self) -> Result<Value<'a>, Fault> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _signed = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        Ok(Value::Number(self.since(start)))
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.skip_while(|byte| byte.is_ascii_digit());
        if self.at == start { Err(self.fault("a digit")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<String, Fault> {
        self.at += 1;
        let mut string = String::new();
        loop {
            let start = self.at;
            self.skip_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f));
            string.push_str(self.since(start));
            if self.eat(b'"') {
                return Ok(string);
            }
            if !self.eat(b'\\') {
                return Err(self.fault("'\"' at the end of a string"));
            }
            string.push(self.escaped()?);
        }
    }

    fn escaped(&mut self) -> Result<char, Fault> {
        let escape = self.peek();
        self.at += usize::from(escape.is_some());
        Ok(match escape {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.fault("an escape")),
        })
    }

    /// A character by its number, which is two numbers for one outside the first 65,536.
    fn unicode(&mut self) -> Result<char, Fault> {
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !(self.eat(b'\\') && self.eat(b'u')) {
                    return Err(self.fault("the second half of a surrogate pair"));
                }
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.fault("the second half of a surrogate pair"));
                }
                0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            other => other,
        };
        char::from_u32(code).ok_or_else(|| self.fault("the first half of a surrogate pair"))
    }

    fn hex4(&mut self) -> Result<u32, Fault> {
        let digits = self.text.get(self.at..self.at + 4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let code = code.ok_or_else(|| self.fault("four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The members a command is made of.
    #[test]
    fn reads_a_command() {
        let value = parse(
            br#" {"type":"text", "flags":12, "text":"caf\u00e9 \ud83d\ude9a\n", "ids":[1,"0x13"], "type":"last"} "#,
        )
        .unwrap();
        assert_eq!(value.get("type").and_then(Value::as_text), Some("last"));
        assert_eq!(value.get("flags").and_then(Value::as_u64), Some(12));
        assert_eq!(value.get("text").and_then(Value::as_text), Some("café 🚚\n"));
        assert_eq!(value.get("ids").and_then(Value::as_array).map(<[Value<'_>]>::len), Some(2));
        assert_eq!(value.get("none"), None);
    }

    /// A fault names its place and what should have been there.
    #[test]
    fn faults_say_where() {
        let fault = |text: &[u8]| parse(text).unwrap_err().to_string();
        assert_eq!(fault(b""), "not JSON at byte 0: expected a value");
        assert_eq!(fault(b"{\"a\" 1}"), "not JSON at byte 5: expected ':' after a name");
        assert_eq!(fault(b"{} x"), "not JSON at byte 3: expected the end");
        assert_eq!(fault(b"\"\\ud800\""), "not JSON at byte 7: expected the second half of a surrogate pair");
        assert_eq!(fault(b"\"\xff\""), "not JSON at byte 1: expected UTF-8");
        assert_eq!(fault(b"[1,]"), "not JSON at byte 3: expected a value");
        assert_eq!(fault(b"01"), "not JSON at byte 1: expected the end");
        assert_eq!(fault(&[b'['; 100_000]), "not JSON at byte 16: expected at most 16 levels");
    }

    fn like_serde(value: &Value<'_>, reference: &serde_json::Value) -> bool {
        match (value, reference) {
            (Value::Null, serde_json::Value::Null) => true,
            (Value::Flag(ours), serde_json::Value::Bool(theirs)) => ours == theirs,
            (Value::Number(ours), serde_json::Value::Number(theirs)) => {
                // serde_json rounds some numbers to the neighbour of the nearest, such as 261e-32.
                let (ours, theirs) = (ours.parse::<f64>().unwrap(), theirs.as_f64().unwrap());
                (ours - theirs).abs() <= ours.abs() * f64::EPSILON
            }
            (Value::Text(ours), serde_json::Value::String(theirs)) => ours == theirs,
            (Value::Array(ours), serde_json::Value::Array(theirs)) => {
                ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| like_serde(ours, theirs))
            }
            (Value::Object(_), serde_json::Value::Object(theirs)) => {
                theirs.iter().all(|(name, theirs)| value.get(name).is_some_and(|ours| like_serde(ours, theirs)))
            }
            _ => false,
        }
    }

    proptest! {
        /// Near-JSON is accepted exactly when another reader accepts it, and means the same.
        #[test]
        fn agrees_with_serde(text in r#"[ ]?[\[{]?("[a\\"nu0é]{0,6}"|-?[0-9]{1,3}(\.[0-9])?(e-?[0-9])?|true|null)?[:,]?("[b\\n]{0,3}"|[0-9]|\[\]|\{\})?[\]}]?"#) {
            match (parse(text.as_bytes()), serde_json::from_str::<serde_json::Value>(&text)) {
                (Ok(ours), Ok(theirs)) => prop_assert!(like_serde(&ours, &theirs), "{ours:?} {theirs:?}"),
                (Err(_), Err(_)) => {}
                (ours, theirs) => prop_assert!(false, "{text}: {ours:?} {theirs:?}"),
            }
        }

        /// Any bytes at all end in a value or a fault.
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
