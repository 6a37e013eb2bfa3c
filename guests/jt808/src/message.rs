//! Every other message as JSON: its body in hexadecimal, and what is cheap to know beside it. Pure.

use polygate_guest::json::{self, Object};

use crate::assembly::Dropped;
use crate::header::{Header, Version};
use crate::location;
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
    /// 0x8109 with the time.
    Clock,
    /// 0x8800 with the number of the photograph or recording.
    Multimedia,
    /// None: it is an answer itself.
    Nothing,
}

/// How the gateway answers the message of that id. Ids that the standard does not know get the general answer.
#[must_use]
pub const fn answer(id: u16) -> Answer {
    match id {
        0x0001 | 0x0104 | 0x0107 | 0x0201 | 0x0302 | 0x0500 | 0x0608 | 0x0700 | 0x0802 | 0x0805 | 0x1003 | 0x1205
        | 0x1206 => Answer::Nothing,
        0x0004 => Answer::Time,
        // It wants sub-packages again, which are not kept.
        0x0005 => Answer::Unsupported,
        0x0109 => Answer::Clock,
        0x0801 => Answer::Multimedia,
        _ => Answer::General,
    }
}

/// The serial of the command that a message answers, where it stands first.
#[must_use]
pub fn answers(id: u16, body: &[u8]) -> Option<u16> {
    match id {
        0x0001 | 0x0104 | 0x0201 | 0x0302 | 0x0500 | 0x0700 | 0x0802 | 0x0805 | 0x1003 | 0x1205 | 0x1206 => {
            Reader(body).u16("serial").ok()
        }
        _ => None,
    }
}

/// Why a message is passed on without being decoded, if it should have been: a body without the standard's form, and an id
/// that nothing here knows.
#[must_use]
pub fn undecoded(header: &Header, body: &[u8], timezone_min: i16) -> Option<Malformed> {
    if header.encryption != 0 {
        return None;
    }
    let mut decoded = Ok(());
    let _ = json::object(|json| decoded = decode(json, header, body, timezone_min));
    match decoded {
        // Passed on as it is, by its nature: these are for whoever knows the vehicle.
        Err(Malformed::Unknown) if name(header.id).is_some() => None,
        other => other.err(),
    }
}

/// The JSON of a message with its body. `answers` is the serial of the command that it answers, and `error` says why it was not decoded, if it should have been.
#[must_use]
pub fn json(
    phone: &str,
    header: &Header,
    body: &[u8],
    answers: Option<u16>,
    error: Option<Malformed>,
    timezone_min: i16,
) -> String {
    json::object(|json| {
        open(json, phone, header);
        if let Some(error) = error {
            json.text("error", &error.to_string());
        }
        if header.encryption == 0 {
            if let Some(serial) = answers {
                json.number("answers", serial);
            }
            let mut decoded = error.map_or(Ok(()), Err);
            if decoded.is_ok() {
                let _ = json::object(|json| decoded = decode(json, header, body, timezone_min));
            }
            if decoded.is_ok() {
                json.object("decoded", |json| decoded = decode(json, header, body, timezone_min));
            }
        } else {
            json.number("encryption", header.encryption);
        }
        json.hex("body", body);
    })
}

/// The JSON of an authentication since 2019, which names the terminal's IMEI and software; the code is a secret. None when
/// there is nothing but the code.
#[must_use]
pub fn authentication_json(phone: &str, header: &Header, body: &[u8]) -> Option<String> {
    let mut reader = Reader(body);
    match header.address.version {
        Version::V2013 => return None,
        Version::V2019(_) => reader.counted("code").ok()?,
    };
    let (imei, software) = (reader.take("IMEI", 15).ok()?, reader.0);
    Some(json::object(|json| {
        open(json, phone, header);
        json.object("decoded", |json| {
            text(json, "imei", imei);
            text(json, "software", software);
        });
    }))
}

/// The JSON of what came of a message that lacks sub-packages: each of them has been acknowledged, so it must not be lost.
#[must_use]
pub fn unfinished_json(phone: &str, dropped: &Dropped) -> String {
    json::object(|json| {
        open_as(json, phone, dropped.id, dropped.serial);
        json.text("error", &dropped.to_string());
        json.number("sub_packages", dropped.total);
        json.array("found", |array| dropped.found.iter().for_each(|index| array.number(*index)));
        json.hex("body", &dropped.body);
    })
}

fn open(json: &mut Object<'_>, phone: &str, header: &Header) {
    open_as(json, phone, header.id, header.serial);
}

fn open_as(json: &mut Object<'_>, phone: &str, id: u16, serial: u16) {
    json.text("phone", phone);
    json.text("id", &format!("{id:#06x}"));
    if let Some(name) = name(id) {
        json.text("name", name);
    }
    json.number("serial", serial);
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
        0x0109 => "clock_query",
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
        0x1003 => "audio_video_attributes",
        0x1005 => "passengers",
        0x1205 => "recordings",
        0x1206 => "upload_result",
        0x1210 => "alarm_attachments",
        0x1211 => "file_information",
        0x1212 => "file_uploaded",
        _ => return None,
    })
}

/// Writes what a body says.
///
/// # Errors
///
/// For a body that does not have the standard's form, and for a message that is not decoded here. What was written until
/// then is of no use.
fn decode(json: &mut Object<'_>, header: &Header, body: &[u8], timezone_min: i16) -> Result<(), Malformed> {
    let mut reader = Reader(body);
    match header.id {
        0x0001 => terminal_answer(json, &mut reader)?,
        0x0005 => resend_request(json, &mut reader)?,
        0x0104 => parameters(json, &mut reader)?,
        0x0107 => return attributes(json, header.address.version, body),
        0x0108 => {
            json.number("kind", reader.u8("kind")?);
            json.number("result", reader.u8("result")?);
        }
        0x0301 => json.number("event", reader.u8("event")?),
        0x0302 => {
            reader.u16("serial")?;
            json.number("answer", reader.u8("answer")?);
        }
        0x0303 => {
            json.number("kind", reader.u8("kind")?);
            json.flag("subscribed", reader.u8("subscribed")? == 1);
        }
        0x0701 => {
            let length = reader.u32("length")?;
            let waybill = reader.take("waybill", usize::try_from(length).unwrap_or(usize::MAX))?;
            text(json, "text", waybill);
        }
        0x0702 => return driver(json, body, timezone_min),
        0x0705 => can_data(json, &mut reader)?,
        0x0800 => multimedia(json, &mut reader)?,
        0x0801 => {
            multimedia(json, &mut reader)?;
            location::write_place(json, reader.take("position", location::FIXED)?, timezone_min)?;
            json.number("offset", (body.len() - reader.0.len()) as i64);
            json.number("bytes", reader.0.len() as i64);
            return Ok(());
        }
        0x0802 => found_multimedia(json, &mut reader, timezone_min)?,
        0x0805 => camera_shots(json, &mut reader)?,
        0x0900 => {
            json.number("kind", reader.u8("kind")?);
            text(json, "data", reader.0);
            return Ok(());
        }
        0x0901 => {
            json.number("bytes", reader.u32("length")?);
            return Ok(());
        }
        0x0a00 => {
            json.number("e", reader.u32("e")?);
            json.hex("n", reader.take("n", 128)?);
        }
        0x1003 => audio_video_attributes(json, &mut reader)?,
        0x1005 => {
            for name in ["start", "end"] {
                json.text(name, &time::rfc3339(time::from_bcd(reader.array(name)?, timezone_min)?));
            }
            json.number("entered", reader.u16("entered")?);
            json.number("left", reader.u16("left")?);
        }
        0x1205 => recordings(json, &mut reader, timezone_min)?,
        0x1206 => {
            reader.u16("serial")?;
            match reader.u8("result")? {
                0 => json.text("result", "done"),
                1 => json.text("result", "failed"),
                other => json.text("result", &format!("result_{other}")),
            }
        }
        _ => return Err(Malformed::Unknown),
    }
    reader.finish()
}

/// Calls `read` for each of `count` elements, and stops at the first fault.
fn each<'a>(
    json: &mut Object<'_>,
    name: &str,
    count: u32,
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Object<'_>, &mut Reader<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut outcome = Ok(());
    json.array(name, |array| {
        for _ in 0..count {
            if outcome.is_err() {
                break;
            }
            array.object(|json| outcome = read(json, reader));
        }
    });
    outcome
}

fn terminal_answer(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let (_serial, id, result) = (reader.u16("serial")?, reader.u16("id")?, reader.u8("result")?);
    json.text("command", &format!("{id:#06x}"));
    match result {
        0 => json.text("result", "done"),
        1 => json.text("result", "failed"),
        2 => json.text("result", "malformed"),
        3 => json.text("result", "unsupported"),
        other => json.text("result", &format!("result_{other}")),
    }
    Ok(())
}

fn resend_request(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    json.number("first_serial", reader.u16("serial")?);
    // The count has one byte until 2013, and two since 2019.
    let count = if reader.0.len().is_multiple_of(2) { reader.u16("count")? } else { reader.u8("count")?.into() };
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(reader.u16("sub-package")?);
    }
    json.array("sub_packages", |array| numbers.iter().for_each(|number| array.number(*number)));
    Ok(())
}

fn parameters(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let (_serial, count) = (reader.u16("serial")?, reader.u8("count")?);
    each(json, "parameters", count.into(), reader, |json, reader| {
        json.text("id", &format!("{:#010x}", reader.u32("parameter")?));
        json.hex("data", reader.counted("parameter")?);
        Ok(())
    })
}

/// The layouts differ in the lengths of three fields; the one counts with which the body ends where it should.
fn attributes(json: &mut Object<'_>, version: Version, body: &[u8]) -> Result<(), Malformed> {
    struct Attributes<'a> {
        kind: u16,
        texts: [(&'static str, &'a [u8]); 3],
        iccid: &'a [u8],
        versions: [(&'static str, &'a [u8]); 2],
        gnss: u8,
        communication: u8,
    }
    let read = |(manufacturer, model, id)| {
        let mut reader = Reader(body);
        let attributes = Attributes {
            kind: reader.u16("kind")?,
            texts: [
                ("manufacturer", reader.take("manufacturer", manufacturer)?),
                ("model", reader.take("model", model)?),
                ("terminal_id", reader.take("terminal id", id)?),
            ],
            iccid: reader.take("ICCID", 10)?,
            versions: [("hardware", reader.counted("hardware")?), ("firmware", reader.counted("firmware")?)],
            gnss: reader.u8("GNSS")?,
            communication: reader.u8("communication")?,
        };
        reader.finish()?;
        Ok(attributes)
    };
    let layouts = match version {
        Version::V2013 => [(5, 20, 7), (5, 30, 30), (11, 30, 30), (5, 8, 7)],
        // Some terminals write the manufacturer as in a registration.
        Version::V2019(_) => [(5, 30, 30), (11, 30, 30), (5, 20, 7), (5, 8, 7)],
    };
    let [first, others @ ..] = layouts;
    let attributes =
        read(first).or_else(|fault| others.into_iter().find_map(|layout| read(layout).ok()).ok_or(fault))?;
    json.number("kind", attributes.kind);
    attributes.texts.iter().for_each(|(name, bytes)| text(json, name, bytes));
    json.hex("iccid", attributes.iccid);
    attributes.versions.iter().for_each(|(name, bytes)| text(json, name, bytes));
    json.number("gnss", attributes.gnss);
    json.number("communication", attributes.communication);
    Ok(())
}

/// 0x0702. 2011: a name, an id number, a certificate, an authority. Since 2013: whether the card is in and since when, and if
/// it is, and could be read, what is on it; since 2019 with an id number.
fn driver(json: &mut Object<'_>, body: &[u8], timezone_min: i16) -> Result<(), Malformed> {
    let mut reader = Reader(body);
    let inserted = reader.u8("card")?;
    if !matches!(inserted, 1 | 2) {
        let mut reader = Reader(body);
        let name = reader.counted("name")?;
        let (id, certificate) = (reader.take("id number", 20)?, reader.take("certificate", 40)?);
        let authority = reader.counted("authority")?;
        reader.finish()?;
        for (member, bytes) in
            [("name", name), ("id_number", id), ("certificate", certificate), ("authority", authority)]
        {
            text(json, member, bytes);
        }
        return Ok(());
    }
    json.flag("card_inserted", inserted == 1);
    json.text("time", &time::rfc3339(time::from_bcd(reader.array("time")?, timezone_min)?));
    if reader.0.is_empty() {
        return Ok(());
    }
    json.number("card_result", reader.u8("result")?);
    if reader.0.is_empty() {
        return Ok(());
    }
    text(json, "name", reader.counted("name")?);
    text(json, "certificate", reader.take("certificate", 20)?);
    text(json, "authority", reader.counted("authority")?);
    json.hex("valid_until", reader.take("validity", 4)?);
    if !reader.0.is_empty() {
        text(json, "id_number", reader.take("id number", 20)?);
    }
    reader.finish()
}

fn can_data(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let count = reader.u16("count")?;
    let [hour, minute, second, high, low] = reader.array("time")?;
    json.text("time_of_day", &format!("{hour:02x}:{minute:02x}:{second:02x}.{high:02x}{low:02x}"));
    each(json, "frames", count.into(), reader, |json, reader| {
        let id = reader.u32("CAN id")?;
        json.number("channel", id >> 31);
        json.flag("extended", id >> 30 & 1 == 1);
        json.flag("averaged", id >> 29 & 1 == 1);
        json.number("can_id", id & 0x1fff_ffff);
        json.hex("data", reader.take("CAN data", 8)?);
        Ok(())
    })
}

fn multimedia(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    json.number("multimedia_id", reader.u32("multimedia id")?);
    media_kind(json, reader.u8("kind")?);
    match reader.u8("format")? {
        0 => json.text("format", "jpeg"),
        1 => json.text("format", "tif"),
        2 => json.text("format", "mp3"),
        3 => json.text("format", "wav"),
        4 => json.text("format", "wmv"),
        other => json.text("format", &format!("format_{other}")),
    }
    json.number("event", reader.u8("event")?);
    json.number("channel", reader.u8("channel")?);
    Ok(())
}

fn media_kind(json: &mut Object<'_>, kind: u8) {
    match kind {
        0 => json.text("kind", "image"),
        1 => json.text("kind", "audio"),
        2 => json.text("kind", "video"),
        other => json.text("kind", &format!("kind_{other}")),
    }
}

fn found_multimedia(json: &mut Object<'_>, reader: &mut Reader<'_>, timezone_min: i16) -> Result<(), Malformed> {
    let (_serial, count) = (reader.u16("serial")?, reader.u16("count")?);
    each(json, "found", count.into(), reader, |json, reader| {
        json.number("multimedia_id", reader.u32("multimedia id")?);
        media_kind(json, reader.u8("kind")?);
        json.number("channel", reader.u8("channel")?);
        json.number("event", reader.u8("event")?);
        location::write_place(json, reader.take("position", location::FIXED)?, timezone_min)
    })
}

fn camera_shots(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let (_serial, result) = (reader.u16("serial")?, reader.u8("result")?);
    match result {
        0 => json.text("result", "done"),
        1 => json.text("result", "failed"),
        2 => json.text("result", "unsupported"),
        other => json.text("result", &format!("result_{other}")),
    }
    let mut ids = Vec::new();
    if result == 0 || !reader.0.is_empty() {
        for _ in 0..reader.u16("count")? {
            ids.push(reader.u32("multimedia id")?);
        }
    }
    json.array("multimedia_ids", |array| ids.iter().for_each(|id| array.number(*id)));
    Ok(())
}

/// JT/T 1078 table 11. It has no serial; a terminal that puts one before it is known by the length.
fn audio_video_attributes(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if reader.0.len() == 12 {
        reader.u16("serial")?;
    }
    json.number("audio_encoding", reader.u8("audio encoding")?);
    json.number("audio_channels", reader.u8("audio channels")?);
    json.number("audio_sampling_rate", reader.u8("sampling rate")?);
    json.number("audio_sample_bits", reader.u8("sample bits")?);
    json.number("audio_frame_length", reader.u16("frame length")?);
    json.flag("audio_output", reader.u8("audio output")? == 1);
    json.number("video_encoding", reader.u8("video encoding")?);
    json.number("audio_channels_max", reader.u8("audio channels")?);
    json.number("video_channels_max", reader.u8("video channels")?);
    Ok(())
}

fn recordings(json: &mut Object<'_>, reader: &mut Reader<'_>, timezone_min: i16) -> Result<(), Malformed> {
    let (_serial, count) = (reader.u16("serial")?, reader.u32("count")?);
    each(json, "recordings", count, reader, |json, reader| {
        json.number("channel", reader.u8("channel")?);
        for name in ["start", "end"] {
            let bcd = reader.array(name)?;
            match time::from_bcd(bcd, timezone_min) {
                Ok(epoch_s) => json.text(name, &time::rfc3339(epoch_s)),
                Err(_) => json.hex(&format!("{name}_clock"), &bcd),
            }
        }
        json.hex("alarm_flags", reader.take("alarm flags", 8)?);
        json.number("kind", reader.u8("kind")?);
        json.number("stream", reader.u8("stream")?);
        json.number("storage", reader.u8("storage")?);
        json.number("bytes", reader.u32("bytes")?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(id: u16, body: &[u8]) -> String {
        let content = [&id.to_be_bytes()[..], &[0; 8], &[0, 7]].concat();
        let (header, _) = Header::parse(&content).unwrap();
        let error = undecoded(&header, body, 480);
        json("1", &header, body, answers(id, body), error, 480)
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
            r#"{"phone":"1","id":"0x0104","name":"parameters","serial":7,"error":"expected 4 bytes of parameter, found 0","answers":5,"body":"000509"}"#
        );
        assert_eq!(
            shown(0x0702, &[]),
            r#"{"phone":"1","id":"0x0702","name":"driver","serial":7,"error":"expected 1 bytes of card, found 0","body":""}"#
        );
        assert_eq!(
            shown(0x0f01, &[1]),
            r#"{"phone":"1","id":"0x0f01","serial":7,"error":"expected a message of the standard, found another one","body":"01"}"#
        );
        assert_eq!(
            shown(0x0608, &[0, 5, 1]),
            r#"{"phone":"1","id":"0x0608","name":"area_query_answer","serial":7,"body":"000501"}"#
        );
    }

    /// A driver takes the card out.
    #[test]
    fn driver_leaves() {
        let json = shown(0x0702, &[2, 0x25, 0x11, 0x25, 0x11, 0x41, 0x14]);
        assert!(json.contains(r#""decoded":{"card_inserted":false,"time":"2025-11-25T03:41:14Z"}"#), "{json}");
    }
}
