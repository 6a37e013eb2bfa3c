//! Subject names in client certificates, for TLS and DTLS.

use std::fmt::Write as _;

use x509_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::prelude::{AttributeTypeAndValue, X509Name};

use crate::conn::Certificate;

/// The subject of a verified certificate cannot be parsed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the subject of the certificate cannot be read")]
pub(in crate::listener) struct UnreadableSubject;

/// Attribute types and their names: those of RFC 4514 section 3, and those that EMQX prints for handlers. Others are
/// printed as object identifiers.
const KNOWN: [(&str, &str); 17] = [
    ("2.5.4.3", COMMON_NAME),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "SERIALNUMBER"),
    ("2.5.4.12", "TITLE"),
    ("2.5.4.42", "GIVENNAME"),
    ("2.5.4.43", "INITIALS"),
    ("2.5.4.44", "GENERATIONQUALIFIER"),
    ("2.5.4.65", "PSEUDONYM"),
    ("1.2.840.113549.1.9.1", "EMAILADDRESS"),
];

const COMMON_NAME: &str = "CN";

/// Reads the subject of a certificate in DER.
///
/// The whole name is in the form of RFC 4514: the most specific part first, `+` within a part that has several values.
/// The common name alone is not escaped; of several it is the most specific one.
///
/// # Errors
///
/// [`UnreadableSubject`], when this is no certificate.
pub(in crate::listener) fn subject(certificate: &[u8]) -> Result<Certificate, UnreadableSubject> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).map_err(|_| UnreadableSubject)?;
    Ok(names(certificate.subject()))
}

fn names(subject: &X509Name<'_>) -> Certificate {
    let mut all = Certificate { cn: String::new(), dn: String::new() };
    for part in subject.iter_rdn() {
        let mut written = String::new();
        for attribute in part.iter() {
            if !written.is_empty() {
                written.push('+');
            }
            if let Some(common_name) = write_attribute(&mut written, attribute) {
                all.cn = common_name;
            }
        }
        // The certificate has the opposite order.
        if !all.dn.is_empty() {
            written.push(',');
        }
        all.dn.insert_str(0, &written);
    }
    all
}

/// Writes one attribute; returns its value if it is a common name.
fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let number = attribute.attr_type().to_id_string();
    let known = KNOWN.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    let value = known.and_then(|name| Some((name, text(attribute.attr_value())?)));
    let Some((name, value)) = value else {
        out.push_str(known.unwrap_or(&number));
        out.push('=');
        write_encoded(out, attribute.attr_value());
        return None;
    };
    out.push_str(name);
    out.push('=');
    write_escaped(out, &value);
    (name == COMMON_NAME).then_some(value)
}

/// The value of a string of any type; `None` for other types, and for invalid bytes of the type.
fn text(value: &Any<'_>) -> Option<String> {
    let bytes = value.as_bytes();
    match value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString
        | Tag::GeneralString => std::str::from_utf8(bytes).ok().map(str::to_owned),
        // Its own character set was never used; in practice it is Latin-1.
        Tag::T61String => Some(bytes.iter().map(|&byte| char::from(byte)).collect()),
        Tag::BmpString => {
            let (units, []) = bytes.as_chunks::<2>() else { return None };
            String::from_utf16(&units.iter().map(|unit| u16::from_be_bytes(*unit)).collect::<Vec<_>>()).ok()
        }
        Tag::UniversalString => {
            let (units, []) = bytes.as_chunks::<4>() else { return None };
            units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit))).collect()
        }
        _ => None,
    }
}

/// RFC 4514 section 2.4: special and invisible characters are escaped.
fn write_escaped(out: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, character) in value.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            '#' if index == 0 => out.push_str("\\#"),
            ' ' if index == 0 || index == last => out.push_str("\\ "),
            _ if character.is_control() => {
                for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                    // Writing to a string does not fail.
                    _ = write!(out, "\\{byte:02X}");
                }
            }
            _ => out.push(character),
        }
    }
}

/// RFC 4514 section 2.4: a value without a string form is its encoding, in hexadecimal digits.
fn write_encoded(out: &mut String, value: &Any<'_>) {
    out.push('#');
    for byte in value.to_der_vec().unwrap_or_default() {
        _ = write!(out, "{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::FromDer;

    const UTF8: u8 = 0x0c;
    const PRINTABLE: u8 = 0x13;
    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const C: &[u8] = &[0x55, 4, 6];

    /// A type, a tag and a value.
    type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

    /// Parses a name of these parts, each of attributes.
    fn read(parts: &[&[Attribute<'_>]]) -> Certificate {
        let wrap = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            assert!(length < 0x80, "the long form is not needed here");
            [&[tag, length], content].concat()
        };
        let attribute = |(kind, tag, value): &Attribute<'_>| wrap(0x30, &[wrap(6, kind), wrap(*tag, value)].concat());
        let part = |part: &&[Attribute<'_>]| wrap(0x31, &part.iter().flat_map(attribute).collect::<Vec<_>>());
        let der = wrap(0x30, &parts.iter().flat_map(part).collect::<Vec<_>>());
        names(&X509Name::from_der(&der).unwrap().1)
    }

    fn common_name(value: &str) -> String {
        let read = read(&[&[(CN, UTF8, value.as_bytes())]]);
        assert_eq!(read.cn, value, "alone it is not escaped");
        read.dn
    }

    /// The certificate has the country first; the form has it last.
    #[test]
    fn the_most_specific_part_is_first() {
        let read = read(&[&[(C, PRINTABLE, b"DE")], &[(O, UTF8, b"Example")], &[(CN, UTF8, b"client")]]);
        assert_eq!(read.dn, "CN=client,O=Example,C=DE");
        assert_eq!(read.cn, "client");
    }

    #[test]
    fn special_characters_are_escaped() {
        for (value, expected) in [
            ("client", "CN=client"),
            ("Ключ é 车", "CN=Ключ é 车"),
            ("Example, Inc.", r"CN=Example\, Inc."),
            ("#1", r"CN=\#1"),
            ("a#1", "CN=a#1"),
            (" a b ", r"CN=\ a b\ "),
            (" ", r"CN=\ "),
            ("a+b=c", r"CN=a\+b=c"),
            (r#"\ " ; < >"#, r#"CN=\\ \" \; \< \>"#),
            ("a\nb\0\u{85}", r"CN=a\0Ab\00\C2\85"),
        ] {
            assert_eq!(common_name(value), expected);
        }
    }

    /// No subject, no common name, an empty one, several of them.
    #[test]
    fn common_names_that_are_missing_or_many() {
        let none = read(&[]);
        assert_eq!((none.cn.as_str(), none.dn.as_str()), ("", ""));
        let other = read(&[&[(O, UTF8, b"Example")]]);
        assert_eq!((other.cn.as_str(), other.dn.as_str()), ("", "O=Example"));
        let empty = read(&[&[(O, UTF8, b"Example")], &[(CN, UTF8, b"")]]);
        assert_eq!((empty.cn.as_str(), empty.dn.as_str()), ("", "CN=,O=Example"));
        let several = read(&[&[(CN, UTF8, b"factory")], &[(CN, UTF8, b"device")]]);
        assert_eq!((several.cn.as_str(), several.dn.as_str()), ("device", "CN=device,CN=factory"));
    }

    /// Values of one part stay together, in the certificate's order.
    #[test]
    fn a_part_may_have_several_values() {
        let read = read(&[&[(O, UTF8, b"Example")], &[(CN, UTF8, b"a+b"), (&[0x55, 4, 5], PRINTABLE, b"007")]]);
        assert_eq!(read.dn, r"CN=a\+b+SERIALNUMBER=007,O=Example");
        assert_eq!(read.cn, "a+b");
    }

    /// Unknown types are object identifiers with an encoded value, as are values that are no strings.
    #[test]
    fn unknown_types_and_values_are_shown_encoded() {
        let unknown = read(&[&[(&[0x55, 4, 99], UTF8, b"Hi")]]);
        assert_eq!(unknown.dn, "2.5.4.99=#0C024869");
        let number = read(&[&[(CN, 2, &[1, 2])]]);
        assert_eq!((number.cn.as_str(), number.dn.as_str()), ("", "CN=#02020102"));
        let broken = read(&[&[(CN, UTF8, &[0xff])]]);
        assert_eq!((broken.cn.as_str(), broken.dn.as_str()), ("", "CN=#0C01FF"));
    }

    /// Every type of string that certificates have.
    #[test]
    fn strings_of_all_types() {
        for (tag, value) in [(UTF8, "é".as_bytes()), (0x14, &[0xe9]), (0x1e, &[0, 0xe9]), (0x1c, &[0, 0, 0, 0xe9])] {
            assert_eq!(read(&[&[(CN, tag, value)]]).dn, "CN=é", "{tag}");
        }
        assert_eq!(read(&[&[(CN, 0x1e, &[0xd8, 0, 0])]]).dn, "CN=#1E03D80000");
    }

    #[test]
    fn malformed_certificates_have_no_subject() {
        assert_eq!(subject(b"certificate"), Err(UnreadableSubject));
        assert_eq!(subject(&[]), Err(UnreadableSubject));
    }
}
