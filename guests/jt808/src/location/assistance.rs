//! Alarms of driver assistance, by the standards of Jiangsu and its neighbours (T/JSATL 12-2017): items 0x64 to 0x67, 0x70.
//!
//! ```text
//! alarm(4) state(1)  ...what differs...  speed(1) altitude(2) latitude(4) longitude(4) time(6 BCD) vehicle(2)
//! tag: terminal(7) time(6 BCD) number(1) attachments(1) reserved(1)   [0x66: count(1), and for each tyre 9 bytes]
//! ```

use polygate_guest::json::Object;

use crate::malformed::Malformed;
use crate::reader::Reader;
use crate::registration::text;
use crate::time;

/// Item 0x64.
const DRIVING: [&str; 7] = [
    "forward_collision",
    "lane_departure",
    "headway_too_small",
    "pedestrian_collision",
    "frequent_lane_change",
    "road_sign",
    "obstacle",
];
/// Item 0x65.
const DRIVER: [&str; 5] = ["fatigue", "phone", "smoking", "distracted", "driver_abnormal"];
/// Item 0x67.
const BLIND_SPOT: [&str; 3] = ["approaching_behind", "approaching_left", "approaching_right"];
/// Item 0x70.
const MANOEUVRE: [&str; 7] = [
    "harsh_acceleration",
    "harsh_braking",
    "sharp_turn",
    "idling",
    "abnormal_stall",
    "neutral_coasting",
    "engine_overspeed",
];

/// One such alarm.
pub(super) struct Alarm<'a> {
    item: u8,
    number: u32,
    state: u8,
    kind: Option<u8>,
    level: Option<u8>,
    details: &'a [u8],
    speed_kmh: u8,
    altitude_m: i16,
    latitude: u32,
    longitude: u32,
    time: [u8; 6],
    vehicle: u16,
    terminal_id: &'a [u8],
    tag_time: [u8; 6],
    tag_number: u8,
    attachments: u8,
    tyres: Vec<[u8; 9]>,
}

impl<'a> Alarm<'a> {
    /// None for another item, and for one that does not have the length that the standard gives it.
    pub(super) fn read(item: u8, data: &'a [u8]) -> Option<Self> {
        Self::parse(item, data).ok().flatten()
    }

    fn parse(item: u8, data: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let (has_kind, has_level, details) = match item {
            0x64 | 0x65 => (true, true, 5),
            0x66 => (false, false, 0),
            0x67 => (true, false, 0),
            0x70 => (true, false, 6),
            _ => return Ok(None),
        };
        let mut reader = Reader(data);
        let mut alarm = Self {
            item,
            number: reader.u32("alarm")?,
            state: reader.u8("state")?,
            kind: if has_kind { Some(reader.u8("kind")?) } else { None },
            level: if has_level { Some(reader.u8("level")?) } else { None },
            details: reader.take("details", details)?,
            speed_kmh: reader.u8("speed")?,
            altitude_m: reader.u16("altitude")?.cast_signed(),
            latitude: reader.u32("latitude")?,
            longitude: reader.u32("longitude")?,
            time: reader.array("time")?,
            vehicle: reader.u16("vehicle")?,
            terminal_id: reader.take("terminal id", 7)?,
            tag_time: reader.array("time")?,
            tag_number: reader.u8("number")?,
            attachments: reader.u8("attachments")?,
            tyres: Vec::new(),
        };
        reader.u8("reserved")?;
        if item == 0x66 {
            for _ in 0..reader.u8("tyres")? {
                alarm.tyres.push(reader.array("tyre")?);
            }
        }
        reader.finish()?;
        Ok(Some(alarm))
    }

    pub(super) fn write(&self, json: &mut Object<'_>, timezone_min: i16) {
        json.text("item", &format!("{:#04x}", self.item));
        json.number("alarm_id", self.number);
        match self.state {
            0 => json.text("state", "none"),
            1 => json.text("state", "start"),
            2 => json.text("state", "end"),
            other => json.text("state", &format!("state_{other}")),
        }
        if let Some(kind) = self.kind {
            let names: &[&str] = match self.item {
                0x64 => &DRIVING,
                0x65 => &DRIVER,
                0x67 => &BLIND_SPOT,
                _ => &MANOEUVRE,
            };
            let named = usize::from(kind).checked_sub(1).and_then(|at| names.get(at));
            match (self.item, kind, named) {
                (_, _, Some(name)) => json.text("kind", name),
                (0x64, 0x10, _) => json.text("kind", "road_sign_recognised"),
                (0x64, 0x11, _) | (0x65, 0x10, _) => json.text("kind", "automatic_capture"),
                (0x65, 0x11, _) => json.text("kind", "driver_changed"),
                _ => json.text("kind", &format!("kind_{kind}")),
            }
        }
        if let Some(level) = self.level {
            json.number("level", level);
        }
        match (self.item, self.details) {
            (0x64, [speed, distance, side, sign, value]) => {
                json.number("front_speed_kmh", *speed);
                json.number("front_distance_ds", *distance);
                json.number("departure", *side);
                json.number("road_sign", *sign);
                json.number("road_sign_value", *value);
            }
            (0x65, [degree, ..]) => json.number("fatigue_degree", *degree),
            (0x70, [a, b, c, d, e, f]) => {
                json.number("threshold_time", u16::from_be_bytes([*a, *b]));
                json.number("threshold_1", u16::from_be_bytes([*c, *d]));
                json.number("threshold_2", u16::from_be_bytes([*e, *f]));
            }
            _ => {}
        }
        json.number("speed_kmh", self.speed_kmh);
        json.number("altitude_m", self.altitude_m);
        json.decimal("latitude", self.latitude, 6);
        json.decimal("longitude", self.longitude, 6);
        if let Ok(epoch_s) = time::from_bcd(self.time, timezone_min) {
            json.text("time", &time::rfc3339(epoch_s));
        }
        json.number("vehicle_status", self.vehicle);
        text(json, "terminal_id", self.terminal_id);
        if let Ok(epoch_s) = time::from_bcd(self.tag_time, timezone_min) {
            json.text("tag_time", &time::rfc3339(epoch_s));
        }
        json.number("tag_number", self.tag_number);
        json.number("attachments", self.attachments);
        if self.item == 0x66 {
            json.array("tyres", |array| {
                for [position, a, b, c, d, e, f, g, h] in &self.tyres {
                    array.object(|json| {
                        json.number("position", *position);
                        json.number("alarm", u16::from_be_bytes([*a, *b]));
                        json.number("pressure_kpa", u16::from_be_bytes([*c, *d]));
                        json.number("temperature_c", i16::from_be_bytes([*e, *f]));
                        json.number("battery_percent", u16::from_be_bytes([*g, *h]));
                    });
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use polygate_guest::json;

    use super::*;

    /// A blind spot, as a terminal sends it; a byte less is no such item.
    #[test]
    fn blind_spot() {
        let data = [
            &[0, 0, 0, 31, 0, 2, 1, 50, 0, 1, 0, 0, 0, 53, 0, 103, 1, 0x24, 0x11, 0x27, 0x15, 0x42, 0x10][..],
            b"\xff\xffid00003\x24\x11\x27\x15\x42\x17\x00\x05\x00",
        ]
        .concat();
        let alarm = Alarm::read(0x67, &data).unwrap();
        let shown = json::object(|json| alarm.write(json, 480));
        assert!(
            shown.starts_with(
                r#"{"item":"0x67","alarm_id":31,"state":"none","kind":"approaching_left","speed_kmh":1,"altitude_m":12800"#
            ),
            "{shown}"
        );
        assert!(
            shown.contains(
                r#""terminal_id":"id00003","tag_time":"2024-11-27T07:42:17Z","tag_number":0,"attachments":5"#
            )
        );
        assert!(Alarm::read(0x67, &data[1..]).is_none());
        assert!(Alarm::read(0x64, &data).is_none());
    }
}
