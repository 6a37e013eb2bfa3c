//! Every other message as JSON: its body in hexadecimal, and what is cheap to know beside it. Pure.

use polygate_guest::json::{self, Object};

use crate::header::{Header, Version};
use crate::malformed::Malformed;
use crate::reader::Reader;
use crate::registration::text;
use crate::time;

/// How the gateway answers a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The general answer, 0x8001.
    General,
    /// The general answer, saying that this is not supported.
    Unsupported,
    /// 0x8004 with the time.
    Time,
    /// 0x8800 with the number of the photograph or recording.
    Multimedia,
    /// None: it is an answer itself.
    Nothing,
}

/// How the gateway answers the message of that id. Ids that the standard does not know get the general answer.
#[must_use]
pub const fn answer(id: u16) -> Answer {
    match id {
        0x0001 | 0x0104 | 0x0107 | 0x0201 | 0x0302 | 0x0500 | 0x0608 | 0x0700 | 0x0802 | 0x0805 => Answer::Nothing,
        0x0004 => Answer::Time,
        // It wants sub-packages again, which are not kept.
        0x0005 => Answer::Unsupported,
        0x0801 => Answer::Multimedia,
        _ => Answer::General,
    }
}

/// The serial of the command that a message answers, where the standard puts it first.
#[must_use]
pub fn answers(id: u16, body: &[u8]) -> Option<u16> {
    match id {
        0x0001 | 0x0104 | 0x0201 | 0x0302 | 0x0500 | 0x0700 | 0x0802 | 0x0805 => Reader(body).u16("serial").ok(),
        _ => None,
    }
}

/// The JSON of a message with its body. `error` says why it was not decoded, if it should have been.
#[must_use]
pub fn json(phone: &str, header: &Header, body: &[u8], error: Option<Malformed>, timezone_min: i16) -> String {
    json::object(|json| {
        json.text("phone", phone);
        json.text("id", &format!("{:#06x}", header.id));
        if let Some(name) = name(header.id) {
            json.text("name", name);
        }
        json.number("serial", header.serial);
        if let Some(error) = error {
            json.text("error", &error.to_string());
        }
        if header.encryption == 0 && error.is_none() {
            if let Some(serial) = answers(header.id, body) {
                json.number("answers", serial);
            }
            // Decoding is a courtesy here: a body that does not fit is passed on without it.
            if let Some(decoded) = decoded(header, body, timezone_min) {
                json.object("decoded", |json| decoded.write(json));
            }
        } else if header.encryption != 0 {
            json.number("encryption", header.encryption);
        }
        json.hex("body", body);
    })
}

/// The standard's messages by name.
const fn name(id: u16) -> Option<&'static str> {
    Some(match id {
        0x0001 => "terminal_answer",
        0x0003 => "logout",
        0x0004 => "time_query",
        0x0005 => "resend_request",
        0x0100 => "registration",
        0x0102 => "authentication",
        0x0104 => "parameters",
        0x0107 => "attributes",
        0x0108 => "upgrade_result",
        0x0200 => "location",
        0x0201 => "location_answer",
        0x0301 => "event",
        0x0302 => "question_answer",
        0x0303 => "information_subscription",
        0x0500 => "vehicle_control_answer",
        0x0608 => "area_query_answer",
        0x0700 => "recorder_data",
        0x0701 => "waybill",
        0x0702 => "driver",
        0x0704 => "location_batch",
        0x0705 => "can_data",
        0x0800 => "multimedia_event",
        0x0801 => "multimedia",
        0x0802 => "multimedia_search_answer",
        0x0805 => "camera_shot_answer",
        0x0900 => "transparent",
        0x0901 => "compressed",
        0x0a00 => "public_key",
        _ => return None,
    })
}

/// What is known of a body.
enum Decoded<'a> {
    TerminalAnswer { id: u16, result: u8 },
    Parameters(Vec<(u32, &'a [u8])>),
    Attributes(Attributes<'a>),
    Driver(Driver<'a>),
    Transparent { kind: u8, data: &'a [u8] },
}

struct Attributes<'a> {
    kind: u16,
    manufacturer: &'a [u8],
    model: &'a [u8],
    terminal_id: &'a [u8],
    iccid: &'a [u8],
    hardware: &'a [u8],
    firmware: &'a [u8],
    gnss: u8,
    communication: u8,
}

struct Driver<'a> {
    inserted: bool,
    epoch_s: i64,
    card: Option<Card<'a>>,
}

struct Card<'a> {
    result: u8,
    name: &'a [u8],
    certificate: &'a [u8],
    authority: &'a [u8],
    valid_until: [u8; 4],
    id_number: Option<&'a [u8]>,
}

/// None for a message that is not decoded here, and for a body that does not have the standard's form.
fn decoded<'a>(header: &Header, body: &'a [u8], timezone_min: i16) -> Option<Decoded<'a>> {
    let version = header.address.version;
    match header.id {
        0x0001 => terminal_answer(body),
        0x0104 => parameters(body),
        0x0107 => attributes(version, body).map(Decoded::Attributes),
        0x0702 => driver(version, body, timezone_min).map(Decoded::Driver),
        0x0900 => transparent(body),
        _ => return None,
    }
    .ok()
}

fn terminal_answer(body: &[u8]) -> Result<Decoded<'_>, Malformed> {
    let mut reader = Reader(body);
    let (_serial, id, result) = (reader.u16("serial")?, reader.u16("id")?, reader.u8("result")?);
    reader.finish()?;
    Ok(Decoded::TerminalAnswer { id, result })
}

fn parameters(body: &[u8]) -> Result<Decoded<'_>, Malformed> {
    let mut reader = Reader(body);
    let (_serial, count) = (reader.u16("serial")?, reader.u8("count")?);
    let parameters = (0..count)
        .map(|_| Ok((reader.u32("parameter")?, reader.counted("parameter")?)))
        .collect::<Result<_, Malformed>>()?;
    reader.finish()?;
    Ok(Decoded::Parameters(parameters))
}

fn transparent(body: &[u8]) -> Result<Decoded<'_>, Malformed> {
    let mut reader = Reader(body);
    Ok(Decoded::Transparent { kind: reader.u8("kind")?, data: reader.0 })
}

fn attributes(version: Version, body: &[u8]) -> Result<Attributes<'_>, Malformed> {
    let (model_length, id_length) = match version {
        Version::V2013 => (20, 7),
        Version::V2019(_) => (30, 30),
    };
    let mut reader = Reader(body);
    let attributes = Attributes {
        kind: reader.u16("kind")?,
        manufacturer: reader.take("manufacturer", 5)?,
        model: reader.take("model", model_length)?,
        terminal_id: reader.take("terminal id", id_length)?,
        iccid: reader.take("ICCID", 10)?,
        hardware: reader.counted("hardware")?,
        firmware: reader.counted("firmware")?,
        gnss: reader.u8("GNSS")?,
        communication: reader.u8("communication")?,
    };
    reader.finish()?;
    Ok(attributes)
}

fn driver(version: Version, body: &[u8], timezone_min: i16) -> Result<Driver<'_>, Malformed> {
    let mut reader = Reader(body);
    let inserted = reader.u8("card")? == 1;
    let epoch_s = time::from_bcd(reader.array("time")?, timezone_min)?;
    let card = if inserted {
        Some(Card {
            result: reader.u8("result")?,
            name: reader.counted("name")?,
            certificate: reader.take("certificate", 20)?,
            authority: reader.counted("authority")?,
            valid_until: reader.array("validity")?,
            id_number: match version {
                Version::V2013 => None,
                Version::V2019(_) => Some(reader.take("id number", 20)?),
            },
        })
    } else {
        None
    };
    reader.finish()?;
    Ok(Driver { inserted, epoch_s, card })
}

impl Decoded<'_> {
    fn write(&self, json: &mut Object<'_>) {
        match self {
            Self::TerminalAnswer { id, result } => {
                json.text("command", &format!("{id:#06x}"));
                match result {
                    0 => json.text("result", "done"),
                    1 => json.text("result", "failed"),
                    2 => json.text("result", "malformed"),
                    3 => json.text("result", "unsupported"),
                    other => json.text("result", &format!("result_{other}")),
                }
            }
            Self::Parameters(parameters) => json.array("parameters", |array| {
                for (id, data) in parameters {
                    array.object(|json| {
                        json.text("id", &format!("{id:#010x}"));
                        json.hex("data", data);
                    });
                }
            }),
            Self::Attributes(attributes) => attributes.write(json),
            Self::Driver(driver) => driver.write(json),
            Self::Transparent { kind, data } => {
                json.number("kind", *kind);
                text(json, "data", data);
            }
        }
    }
}

impl Attributes<'_> {
    fn write(&self, json: &mut Object<'_>) {
        json.number("kind", self.kind);
        text(json, "manufacturer", self.manufacturer);
        text(json, "model", self.model);
        text(json, "terminal_id", self.terminal_id);
        json.hex("iccid", self.iccid);
        text(json, "hardware", self.hardware);
        text(json, "firmware", self.firmware);
        json.number("gnss", self.gnss);
        json.number("communication", self.communication);
    }
}

impl Driver<'_> {
    fn write(&self, json: &mut Object<'_>) {
        json.flag("card_inserted", self.inserted);
        json.text("time", &time::rfc3339(self.epoch_s));
        let Some(card) = &self.card else { return };
        json.number("card_result", card.result);
        text(json, "name", card.name);
        text(json, "certificate", card.certificate);
        text(json, "authority", card.authority);
        json.hex("valid_until", &card.valid_until);
        if let Some(id_number) = card.id_number {
            text(json, "id_number", id_number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(id: u16, body: &[u8]) -> String {
        let content = [&id.to_be_bytes()[..], &[0; 8], &[0, 7]].concat();
        let (header, _) = Header::parse(&content).unwrap();
        json("1", &header, body, None, 480)
    }

    /// An answer names the command that it answers.
    #[test]
    fn answers_name_their_command() {
        assert_eq!(
            shown(0x0001, &[0, 5, 0x83, 0, 3]),
            r#"{"phone":"1","id":"0x0001","name":"terminal_answer","serial":7,"answers":5,"decoded":{"command":"0x8300","result":"unsupported"},"body":"0005830003"}"#
        );
        assert_eq!(
            shown(0x0104, &[0, 5, 1, 0, 0, 0, 1, 4, 0, 0, 0, 30]),
            r#"{"phone":"1","id":"0x0104","name":"parameters","serial":7,"answers":5,"decoded":{"parameters":[{"id":"0x00000001","data":"0000001e"}]},"body":"00050100000001040000001e"}"#
        );
    }

    /// A body that does not fit its message is passed on all the same.
    #[test]
    fn undecodable() {
        assert_eq!(
            shown(0x0104, &[0, 5, 9]),
            r#"{"phone":"1","id":"0x0104","name":"parameters","serial":7,"answers":5,"body":"000509"}"#
        );
        assert_eq!(shown(0x0702, &[]), r#"{"phone":"1","id":"0x0702","name":"driver","serial":7,"body":""}"#);
        assert_eq!(shown(0x0f01, &[1]), r#"{"phone":"1","id":"0x0f01","serial":7,"body":"01"}"#);
    }

    /// A driver takes the card out.
    #[test]
    fn driver_leaves() {
        let json = shown(0x0702, &[2, 0x25, 0x11, 0x25, 0x11, 0x41, 0x14]);
        assert!(json.contains(r#""decoded":{"card_inserted":false,"time":"2025-11-25T03:41:14Z"}"#), "{json}");
    }
}
