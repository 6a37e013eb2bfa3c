//! The body of a registration (0x0100) as JSON, in its three layouts. Pure.
//!
//! ```text
//!        province(2) city(2) manufacturer  model  terminal id  plate colour(1)  plate(rest)
//! 2011                                  5      8            7
//! 2013                                  5     20            7
//! 2019                                 11     30           30
//! ```

use polygate_guest::json::{self, Object};

use crate::gbk;
use crate::header::Version;
use crate::malformed::Malformed;
use crate::reader::Reader;

/// The JSON of a registration.
///
/// 2011 and 2013 share a header; a body too short for 2013 is one of 2011, whose plate would have to be 12 bytes long to
/// be taken for the other.
///
/// # Errors
///
/// [`Malformed::Short`] for a body that is cut off before the plate.
pub fn json(phone: &str, serial: u16, version: Version, body: &[u8]) -> Result<String, Malformed> {
    const FIXED_2013: usize = 2 + 2 + 5 + 20 + 7 + 1;
    let (layout, manufacturer_length, model_length, id_length) = match version {
        Version::V2019(_) => ("2019", 11, 30, 30),
        Version::V2013 if body.len() < FIXED_2013 => ("2011", 5, 8, 7),
        Version::V2013 => ("2013", 5, 20, 7),
    };
    let mut reader = Reader(body);
    let (province, city) = (reader.u16("province")?, reader.u16("city")?);
    let manufacturer = reader.take("manufacturer", manufacturer_length)?;
    let model = reader.take("model", model_length)?;
    let terminal_id = reader.take("terminal id", id_length)?;
    let plate_color = reader.u8("plate colour")?;
    Ok(json::object(|json| {
        json.text("phone", phone);
        json.text("id", "0x0100");
        json.number("serial", serial);
        json.text("layout", layout);
        json.number("province", province);
        json.number("city", city);
        text(json, "manufacturer", manufacturer);
        text(json, "model", model);
        text(json, "terminal_id", terminal_id);
        json.number("plate_color", plate_color);
        text(json, "plate", reader.0);
    }))
}

/// A STRING without its padding, which is in GBK; what is none stands in hexadecimal under `name` and `_hex`.
pub(crate) fn text(json: &mut Object<'_>, name: &str, bytes: &[u8]) {
    let padding = |byte: &u8| matches!(byte, 0 | b' ');
    let start = bytes.iter().position(|byte| !padding(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !padding(byte)).map_or(start, |last| last + 1);
    let bytes = bytes.get(start..end).unwrap_or_default();
    match gbk::decode(bytes).filter(|text| !text.chars().any(char::is_control)) {
        Some(text) => json.text(name, &text),
        None => json.hex(&format!("{name}_hex"), bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(manufacturer: usize, model: usize, id: usize) -> Vec<u8> {
        let padded = |text: &str, length| [text.as_bytes(), &vec![0; length - text.len()]].concat();
        let plate = b"\xbe\xa9A12345";
        [&[0, 44, 1, 44][..], &padded("ACME", manufacturer), &padded("T1", model), &padded("0007", id), &[2], plate]
            .concat()
    }

    /// The three layouts are told apart, and the plate's GBK is read.
    #[test]
    fn layouts() {
        for (layout, version, body) in [
            ("2011", Version::V2013, body(5, 8, 7)),
            ("2013", Version::V2013, body(5, 20, 7)),
            ("2019", Version::V2019(1), body(11, 30, 30)),
        ] {
            assert_eq!(
                json("13800138000", 1, version, &body).unwrap(),
                format!(
                    "{{\"phone\":\"13800138000\",\"id\":\"0x0100\",\"serial\":1,\"layout\":\"{layout}\",\"province\":44,\
                     \"city\":300,\"manufacturer\":\"ACME\",\"model\":\"T1\",\"terminal_id\":\"0007\",\"plate_color\":2,\
                     \"plate\":\"京A12345\"}}"
                )
            );
        }
    }

    /// Cut off before the plate it is refused; without a plate it is whole.
    #[test]
    fn truncated() {
        let body = body(11, 30, 30);
        assert!(json("1", 1, Version::V2019(1), &body[..75]).is_err());
        assert!(json("1", 1, Version::V2019(1), &body[..76]).unwrap().ends_with(r#""plate":""}"#));
    }
}
