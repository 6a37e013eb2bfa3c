//! Writing: one pass, no tree.

use core::fmt::Write;

/// Writes one object; `fill` adds its members.
///
/// ```
/// let text = polygate_guest::json::object(|position| {
///     position.text("phone", "13800138000");
///     position.decimal("latitude", -22_588_456, 6);
///     position.texts("alarms", ["overspeed"]);
/// });
/// assert_eq!(text, r#"{"phone":"13800138000","latitude":-22.588456,"alarms":["overspeed"]}"#);
/// ```
#[must_use]
pub fn object(fill: impl FnOnce(&mut Object<'_>)) -> String {
    let mut text = String::new();
    Object::write(&mut text, fill);
    text
}

/// The members of an object. That a name comes once is the caller's promise.
pub struct Object<'a> {
    text: &'a mut String,
    empty: bool,
}

impl Object<'_> {
    fn write(text: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
        text.push('{');
        fill(&mut Object { text, empty: true });
        text.push('}');
    }

    fn name(&mut self, name: &str) -> &mut String {
        separate(self.text, &mut self.empty);
        quote(self.text, name);
        self.text.push(':');
        self.text
    }

    /// A string.
    pub fn text(&mut self, name: &str, value: &str) {
        quote(self.name(name), value);
    }

    /// Bytes as lower-case hexadecimal digits.
    pub fn hex(&mut self, name: &str, bytes: &[u8]) {
        hex(self.name(name), bytes);
    }

    /// An integer.
    pub fn number(&mut self, name: &str, value: impl Into<i64>) {
        number(self.name(name), value.into());
    }

    /// `value` divided by ten to the power of `places`, exactly, with all of its places.
    pub fn decimal(&mut self, name: &str, value: impl Into<i64>, places: u8) {
        decimal(self.name(name), value.into(), places);
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.name(name).push_str(if value { "true" } else { "false" });
    }

    /// An array of strings.
    pub fn texts<'t>(&mut self, name: &str, values: impl IntoIterator<Item = &'t str>) {
        self.array(name, |array| values.into_iter().for_each(|value| array.text(value)));
    }

    /// An object within.
    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) {
        Object::write(self.name(name), fill);
    }

    /// An array within.
    pub fn array(&mut self, name: &str, fill: impl FnOnce(&mut Array<'_>)) {
        let text = self.name(name);
        text.push('[');
        fill(&mut Array { text, empty: true });
        text.push(']');
    }
}

/// The elements of an array.
pub struct Array<'a> {
    text: &'a mut String,
    empty: bool,
}

impl Array<'_> {
    /// A string.
    pub fn text(&mut self, value: &str) {
        separate(self.text, &mut self.empty);
        quote(self.text, value);
    }

    /// An integer.
    pub fn number(&mut self, value: impl Into<i64>) {
        separate(self.text, &mut self.empty);
        number(self.text, value.into());
    }

    /// An object.
    pub fn object(&mut self, fill: impl FnOnce(&mut Object<'_>)) {
        separate(self.text, &mut self.empty);
        Object::write(self.text, fill);
    }
}

fn separate(text: &mut String, empty: &mut bool) {
    if !core::mem::take(empty) {
        text.push(',');
    }
}

fn number(text: &mut String, value: i64) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{value}");
}

fn decimal(text: &mut String, value: i64, places: u8) {
    if value < 0 {
        text.push('-');
    }
    let mut digits = String::new();
    let _ = write!(digits, "{:0width$}", value.unsigned_abs(), width = usize::from(places) + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::from(places));
    text.push_str(whole);
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
}

fn hex(text: &mut String, bytes: &[u8]) {
    text.reserve(2 * bytes.len() + 2);
    text.push('"');
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }));
        }
    }
    text.push('"');
}

fn quote(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            control @ '\0'..='\x1f' => {
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scaled integers come out digit for digit.
    #[test]
    fn decimals() {
        let shown = |value: i64, places| {
            let mut text = String::new();
            decimal(&mut text, value, places);
            text
        };
        assert_eq!(shown(22_588_456, 6), "22.588456");
        assert_eq!(shown(-5, 6), "-0.000005");
        assert_eq!(shown(0, 1), "0.0");
        assert_eq!(shown(-100, 1), "-10.0");
        assert_eq!(shown(7, 0), "7");
        assert_eq!(shown(i64::MIN, 3), "-9223372036854775.808");
    }

    /// Nested objects and arrays get their commas.
    #[test]
    fn nesting() {
        let text = object(|outer| {
            outer.object("empty", |_| {});
            outer.array("list", |list| {
                list.number(1_u8);
                list.object(|inner| inner.flag("on", true));
                list.text("x");
            });
            outer.hex("body", &[0x00, 0xff, 0x7e]);
        });
        assert_eq!(text, r#"{"empty":{},"list":[1,{"on":true},"x"],"body":"00ff7e"}"#);
    }

    proptest! {
        /// Whatever the text, a JSON reader that is not ours gets it back.
        #[test]
        fn any_text_survives(name: String, value: String, number: i64) {
            let text = object(|object| {
                object.text(&name, &value);
                object.number("\u{0}number", number);
            });
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read[&name].as_str(), Some(value.as_str()));
            prop_assert_eq!(read["\u{0}number"].as_i64(), Some(number));
        }
    }
}
