//! The additional items of a position. JT/T 808-2019 tables 26 to 32.
//!
//! What the standard defines is decoded once, if it has the standard's length. Everything else goes into `items` by its
//! id, in order: vendors use the same ids for things of their own. So do the items of JT/T 1078 (0x14 to 0x18) and of driver
//! assistance (0x64 to 0x67, 0x70), which are decoded beside that.

use polygate_guest::json::Object;

use super::{assistance, flags};
use crate::reader::Reader;

/// Item 0x25, from bit 0.
const SIGNALS: [&str; 15] = [
    "low_beam",
    "high_beam",
    "right_turn",
    "left_turn",
    "brake",
    "reverse",
    "fog_lamp",
    "clearance_lamp",
    "horn",
    "air_conditioner",
    "neutral",
    "retarder",
    "abs",
    "heater",
    "clutch",
];
/// Item 0x2A, from bit 0.
const IO: [&str; 2] = ["deep_sleep", "sleep"];

/// Item 0x14, from bit 0.
const VIDEO_ALARMS: [&str; 7] = [
    "signal_loss",
    "signal_blocked",
    "storage_fault",
    "other_fault",
    "passenger_overload",
    "abnormal_driving",
    "alarm_storage_full",
];
/// Item 0x18, from bit 0.
const ABNORMAL_DRIVING: [&str; 3] = ["fatigue", "phone", "smoking"];

/// Writes all items in `bytes`: members for those that are decoded, `items` for others, `rest` for what is no item.
pub(super) fn write(json: &mut Object<'_>, bytes: &[u8], timezone_min: i16) {
    let mut decoded: u64 = 0;
    let mut assisting = Vec::new();
    let mut others = Vec::new();
    let mut reader = Reader(bytes);
    let rest = loop {
        let rest = reader.0;
        let (Ok(id), Ok(data)) = (reader.u8("item"), reader.counted("item")) else { break rest };
        // A second one would be a second member of the same name.
        let bit = 1_u64.checked_shl(id.into()).unwrap_or_default();
        let known = bit & !decoded != 0 && decode(json, id, data).is_some();
        if known {
            decoded |= bit;
        }
        if !known || matches!(id, 0x14..=0x18) {
            others.push((id, data));
        }
        assisting.extend(assistance::Alarm::read(id, data));
    };
    if !assisting.is_empty() {
        json.array("driver_assistance", |array| {
            assisting.iter().for_each(|alarm| array.object(|json| alarm.write(json, timezone_min)));
        });
    }
    if !others.is_empty() {
        json.array("items", |items| {
            for (id, data) in others {
                items.object(|item| {
                    item.text("id", &format!("{id:#04x}"));
                    item.hex("data", data);
                });
            }
        });
    }
    if !rest.is_empty() {
        json.hex("rest", rest);
    }
}

/// Writes an item that the standard defines; none, and nothing written, for one that it does not.
fn decode(json: &mut Object<'_>, id: u8, data: &[u8]) -> Option<()> {
    match id {
        0x01 => json.decimal("mileage_km", dword(data)?, 1),
        0x02 => json.decimal("fuel_l", word(data)?, 1),
        0x03 => json.decimal("recorder_speed_kmh", word(data)?, 1),
        0x04 => json.number("alarm_event", word(data)?),
        0x05 => tyres(json, data.try_into().ok()?),
        0x06 => {
            // Sign and magnitude, not two's complement.
            let degrees = word(data)?;
            let magnitude = i32::from(degrees & 0x7fff);
            json.number("compartment_temperature_c", if degrees > 0x7fff { -magnitude } else { magnitude });
        }
        0x11 => overspeed(json, data)?,
        0x12 => area(json, data.try_into().ok()?)?,
        0x13 => section(json, data.try_into().ok()?)?,
        0x14 => flags::write(json, "video_alarms", dword(data)?, &VIDEO_ALARMS),
        0x15 => numbers(json, "video_lost_channels", dword(data)?),
        0x16 => numbers(json, "video_blocked_channels", dword(data)?),
        0x17 => numbers(json, "storage_fault_units", word(data)?.into()),
        0x18 => {
            let [high, low, degree] = data.try_into().ok()?;
            flags::write(json, "abnormal_driving", u16::from_be_bytes([high, low]).into(), &ABNORMAL_DRIVING);
            json.number("fatigue_degree", degree);
        }
        0x25 => flags::write(json, "signals", dword(data)?, &SIGNALS),
        0x2a => flags::write(json, "io", word(data)?.into(), &IO),
        0x2b => {
            let both = dword(data)?;
            json.array("analog", |analog| {
                analog.number(both & 0xffff);
                analog.number(both >> 16);
            });
        }
        0x30 => json.number("signal_strength", byte(data)?),
        0x31 => json.number("satellites", byte(data)?),
        _ => return None,
    }
    Some(())
}

/// The numbers of the bits that are set, from 1.
fn numbers(json: &mut Object<'_>, name: &str, bits: u32) {
    json.array(name, |array| (0..32_u8).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| array.number(bit + 1)));
}

/// 0x05: one byte for each tyre, those of the front axle first, from left to right; 0xFF where there is none.
fn tyres(json: &mut Object<'_>, data: [u8; 30]) {
    let count = data.iter().rposition(|pressure| *pressure != 0xff).map_or(0, |last| last + 1);
    json.array("tyre_pressures", |array| data.iter().take(count).for_each(|pressure| array.number(*pressure)));
}

/// 0x11: where the speed limit holds.
fn overspeed(json: &mut Object<'_>, data: &[u8]) -> Option<()> {
    let (kind, place) = data.split_first()?;
    let (place, number) = match (kind, place) {
        (0, []) => ("anywhere", None),
        (1, place) => ("circle", Some(dword(place)?)),
        (2, place) => ("rectangle", Some(dword(place)?)),
        (3, place) => ("polygon", Some(dword(place)?)),
        (4, place) => ("section", Some(dword(place)?)),
        _ => return None,
    };
    json.object("overspeed", |json| {
        json.text("place", place);
        if let Some(number) = number {
            json.number("place_id", number);
        }
    });
    Some(())
}

/// 0x12: which area or route was entered or left.
fn area(json: &mut Object<'_>, data: [u8; 6]) -> Option<()> {
    let [kind, number @ .., direction] = data;
    let place = match kind {
        1 => "circle",
        2 => "rectangle",
        3 => "polygon",
        4 => "route",
        _ => return None,
    };
    let direction = match direction {
        0 => "in",
        1 => "out",
        _ => return None,
    };
    json.object("area", |json| {
        json.text("place", place);
        json.number("place_id", u32::from_be_bytes(number));
        json.text("direction", direction);
    });
    Some(())
}

/// 0x13: on which section of a route the vehicle was too fast or too slow.
fn section(json: &mut Object<'_>, data: [u8; 7]) -> Option<()> {
    let [a, b, c, d, high, low, result] = data;
    let result = match result {
        0 => "too_short",
        1 => "too_long",
        _ => return None,
    };
    json.object("section", |json| {
        json.number("section_id", u32::from_be_bytes([a, b, c, d]));
        json.number("seconds", u16::from_be_bytes([high, low]));
        json.text("result", result);
    });
    Some(())
}

fn byte(data: &[u8]) -> Option<u8> {
    data.try_into().ok().map(u8::from_be_bytes)
}

fn word(data: &[u8]) -> Option<u16> {
    data.try_into().ok().map(u16::from_be_bytes)
}

fn dword(data: &[u8]) -> Option<u32> {
    data.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use polygate_guest::json;

    use super::*;

    fn shown(bytes: &[u8]) -> String {
        json::object(|object| write(object, bytes, 480))
    }

    /// Every item of the standard.
    #[test]
    fn decoded() {
        for (bytes, json) in [
            (&[0x01, 4, 0, 0, 0x16, 0x71][..], r#"{"mileage_km":574.5}"#),
            (&[0x02, 2, 0x01, 0xf5], r#"{"fuel_l":50.1}"#),
            (&[0x03, 2, 0, 0], r#"{"recorder_speed_kmh":0.0}"#),
            (&[0x04, 2, 0, 3], r#"{"alarm_event":3}"#),
            (&[0x06, 2, 0x80, 0x05], r#"{"compartment_temperature_c":-5}"#),
            (&[0x06, 2, 0, 0x05], r#"{"compartment_temperature_c":5}"#),
            (&[0x11, 1, 0], r#"{"overspeed":{"place":"anywhere"}}"#),
            (&[0x11, 5, 4, 0, 0, 1, 0], r#"{"overspeed":{"place":"section","place_id":256}}"#),
            (&[0x12, 6, 2, 0, 0, 0, 7, 1], r#"{"area":{"place":"rectangle","place_id":7,"direction":"out"}}"#),
            (&[0x13, 7, 0, 0, 0, 9, 1, 0, 1], r#"{"section":{"section_id":9,"seconds":256,"result":"too_long"}}"#),
            (&[0x25, 4, 0, 0, 0x40, 0x11], r#"{"signals":["low_beam","brake","clutch"]}"#),
            (&[0x2a, 2, 0, 6], r#"{"io":["sleep","bit_2"]}"#),
            (&[0x2b, 4, 0, 1, 0, 2], r#"{"analog":[2,1]}"#),
            (&[0x30, 1, 31, 0x31, 1, 14], r#"{"signal_strength":31,"satellites":14}"#),
        ] {
            assert_eq!(shown(bytes), json);
        }
        // Those of JT/T 1078 are passed on too.
        for (bytes, json) in [
            (
                &[0x14, 4, 0x80, 0, 0, 5][..],
                r#"{"video_alarms":["signal_loss","storage_fault","bit_31"],"items":[{"id":"0x14","data":"80000005"}]}"#,
            ),
            (&[0x15, 4, 0, 0, 0, 8], r#"{"video_lost_channels":[4],"items":[{"id":"0x15","data":"00000008"}]}"#),
            (&[0x16, 4, 0, 0, 0, 0], r#"{"video_blocked_channels":[],"items":[{"id":"0x16","data":"00000000"}]}"#),
            (&[0x17, 2, 0x10, 3], r#"{"storage_fault_units":[1,2,13],"items":[{"id":"0x17","data":"1003"}]}"#),
            (
                &[0x18, 3, 0, 7, 9],
                r#"{"abnormal_driving":["fatigue","phone","smoking"],"fatigue_degree":9,"items":[{"id":"0x18","data":"000709"}]}"#,
            ),
        ] {
            assert_eq!(shown(bytes), json);
        }
        let tyres = [&[0x05, 30, 80, 0xff, 82][..], &[0xff; 27]].concat();
        assert_eq!(shown(&tyres), r#"{"tyre_pressures":[80,255,82]}"#);
    }

    /// Another length, another value, a second one, another id: passed on. What is cut off, too.
    #[test]
    fn passed_on() {
        for (bytes, json) in [
            (&[0x06, 1, 0x3e][..], r#"{"items":[{"id":"0x06","data":"3e"}]}"#),
            (&[0x11, 1, 9], r#"{"items":[{"id":"0x11","data":"09"}]}"#),
            (&[0x12, 6, 9, 0, 0, 0, 7, 1], r#"{"items":[{"id":"0x12","data":"090000000701"}]}"#),
            (&[0x31, 1, 3, 0x31, 1, 4], r#"{"satellites":3,"items":[{"id":"0x31","data":"04"}]}"#),
            (&[0xe1, 2, 0, 0x72, 0xff, 0], r#"{"items":[{"id":"0xe1","data":"0072"},{"id":"0xff","data":""}]}"#),
            (&[0x31, 1, 3, 0xe1, 9, 1, 2], r#"{"satellites":3,"rest":"e1090102"}"#),
            (&[0x31], r#"{"rest":"31"}"#),
            (&[], "{}"),
        ] {
            assert_eq!(shown(bytes), json);
        }
    }
}
