//! A position report as JSON: message 0x0200, and its body inside 0x0704, 0x0201 and 0x0500. Pure.
//!
//! ```text
//! alarms(4) status(4) latitude(4) longitude(4) altitude(2) speed(2) course(2) time(6 BCD)  [id(1) length(1) data]...
//! ```

mod assistance;
mod flags;
mod items;

use polygate_guest::json::{self, Object};

use crate::malformed::Malformed;
use crate::reader::Reader;
use crate::time;

/// The bytes of the fixed part.
pub(crate) const FIXED: usize = 28;

/// Where a position comes from; it stands in the JSON beside the position.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The terminal.
    pub phone: &'a str,
    /// The message's id.
    pub id: u16,
    /// The message's serial.
    pub serial: u16,
    /// The serial of the command that this answers.
    pub answers: Option<u16>,
    /// The place in a batch.
    pub batch: Option<Batch>,
}

/// One position's place in a 0x0704.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// 0: reported late in the ordinary way; 1: kept while there was no network.
    pub kind: u8,
    /// Which one this is, from 1.
    pub index: u16,
    /// How many the batch says it has.
    pub count: u16,
}

/// The fixed part of a position.
struct Position {
    alarms: u32,
    status: u32,
    latitude: i32,
    longitude: i32,
    altitude_m: i16,
    speed: u16,
    course: u16,
    /// None while the terminal has not learnt the time.
    epoch_s: Option<i64>,
    /// A time that does not exist, as it came.
    clock: Option<[u8; 6]>,
    /// Degrees that are not on this earth.
    elsewhere: Option<Malformed>,
}

impl Position {
    fn read(reader: &mut Reader<'_>, timezone_min: i16) -> Result<Self, Malformed> {
        let (alarms, status) = (reader.u32("alarms")?, reader.u32("status")?);
        let (latitude, longitude) = (reader.u32("latitude")?, reader.u32("longitude")?);
        let degrees = |millionths: u32, limit: u32, negative: u32| {
            let value = i32::try_from(millionths).ok().filter(|_| millionths <= limit * 1_000_000)?;
            Some(if status & negative == 0 { value } else { -value })
        };
        let (north, east) = (degrees(latitude, 90, flags::SOUTH), degrees(longitude, 180, flags::WEST));
        let elsewhere = match (north, east) {
            (None, _) => Some(Malformed::Latitude(latitude)),
            (_, None) => Some(Malformed::Longitude(longitude)),
            _ => None,
        };
        // The standard says nothing of a sign; but no vehicle drives at 32,768 m, and some below the sea.
        let altitude_m = reader.u16("altitude")?.cast_signed();
        let (speed, course, clock) = (reader.u16("speed")?, reader.u16("course")?, reader.array("time")?);
        let epoch_s = time::from_bcd(clock, timezone_min).ok();
        Ok(Self {
            alarms,
            status,
            latitude: north.unwrap_or_default(),
            longitude: east.unwrap_or_default(),
            altitude_m,
            speed,
            course,
            epoch_s,
            // All zeros are what a terminal sends that has not learnt the time yet.
            clock: Some(clock).filter(|clock| epoch_s.is_none() && *clock != [0; 6]),
            elsewhere,
        })
    }
}

/// A position, or an alarm without one.
#[derive(Debug, PartialEq, Eq)]
pub struct Located {
    /// The JSON.
    pub json: String,
    /// What of it could not be decoded.
    pub malformed: Option<Malformed>,
}

/// The JSON of one position. The clock of the terminal is `timezone_min` minutes ahead of UTC.
///
/// A time that does not exist, and degrees that are not on this earth, are left out: what else it says, an alarm above all,
/// is acknowledged with it, and so must not be lost.
///
/// # Errors
///
/// For a fixed part that is cut off, and for degrees that are not on this earth when there is no alarm. Additional items are
/// never an error: what cannot be decoded is passed on as it is.
pub fn json(origin: Origin<'_>, body: &[u8], timezone_min: i16) -> Result<Located, Malformed> {
    let mut reader = Reader(body);
    let position = Position::read(&mut reader, timezone_min)?;
    if let Some(elsewhere) = position.elsewhere.filter(|_| position.alarms == 0) {
        return Err(elsewhere);
    }
    let json = json::object(|json| {
        origin.write(json);
        position.write(json);
        items::write(json, reader.0, timezone_min);
    });
    Ok(Located { json, malformed: position.elsewhere.or(position.clock.map(Malformed::Time)) })
}

/// Time and place alone, for a member of something else.
pub(crate) fn write_place(json: &mut Object<'_>, body: &[u8], timezone_min: i16) -> Result<(), Malformed> {
    let mut reader = Reader(body);
    let position = Position::read(&mut reader, timezone_min)?;
    reader.finish()?;
    position.write(json);
    Ok(())
}

impl Origin<'_> {
    fn write(&self, json: &mut Object<'_>) {
        json.text("phone", self.phone);
        json.text("id", &format!("{:#06x}", self.id));
        json.number("serial", self.serial);
        if let Some(serial) = self.answers {
            json.number("answers", serial);
        }
        if let Some(Batch { kind, index, count }) = self.batch {
            json.object("batch", |json| {
                match kind {
                    0 => json.text("kind", "normal"),
                    1 => json.text("kind", "blind_area"),
                    other => json.text("kind", &format!("kind_{other}")),
                }
                json.number("index", index);
                json.number("count", count);
            });
        }
    }
}

impl Position {
    fn write(&self, json: &mut Object<'_>) {
        if let Some(epoch_s) = self.epoch_s {
            json.text("time", &time::rfc3339(epoch_s));
        }
        if let Some(clock) = &self.clock {
            json.hex("clock", clock);
        }
        json.flag("positioned", self.status & flags::POSITIONED != 0 && self.elsewhere.is_none());
        if let Some(elsewhere) = self.elsewhere {
            json.text("error", &elsewhere.to_string());
        } else {
            json.decimal("latitude", self.latitude, 6);
            json.decimal("longitude", self.longitude, 6);
        }
        json.number("altitude_m", self.altitude_m);
        json.decimal("speed_kmh", self.speed, 1);
        json.number("course_deg", self.course);
        flags::write(json, "alarms", self.alarms, &flags::ALARMS);
        flags::write(json, "status", self.status & !flags::LOAD, &flags::STATUS);
        json.text("load", flags::load(self.status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin<'_> = Origin { phone: "1", id: 0x0200, serial: 9, answers: None, batch: None };

    fn body(alarms: u32, status: u32, latitude: u32, longitude: u32) -> Vec<u8> {
        let fixed = [alarms, status, latitude, longitude].map(u32::to_be_bytes).concat();
        [&fixed[..], &[0xff, 0xf6, 0x02, 0x59, 0x00, 0x5a, 0x25, 0x11, 0x25, 0x11, 0x41, 0x14]].concat()
    }

    /// Every field of the fixed part, on the southern and western half of the earth.
    #[test]
    fn fixed_part() {
        let body = body(1 << 1 | 1 << 16, 0b1111 | 0b11 << 8 | 1 << 22, 33_856_780, 70_648_270);
        assert_eq!(
            json(ORIGIN, &body, 480).unwrap().json,
            "{\"phone\":\"1\",\"id\":\"0x0200\",\"serial\":9,\"time\":\"2025-11-25T03:41:14Z\",\"positioned\":true,\
             \"latitude\":-33.856780,\"longitude\":-70.648270,\"altitude_m\":-10,\"speed_kmh\":60.1,\"course_deg\":90,\
             \"alarms\":[\"overspeed\",\"tyre_pressure_warning\"],\"status\":[\"acc_on\",\"positioned\",\"south\",\"west\",\
             \"moving\"],\"load\":\"full\"}"
        );
    }

    /// An alarm is told without a time, and without a place.
    #[test]
    fn alarms_without_place() {
        let no_clock = [&body(1, 1, 0, 0)[..22], &[0; 6]].concat();
        let Located { json: shown, malformed } = json(ORIGIN, &no_clock, 480).unwrap();
        assert_eq!(malformed, None);
        assert!(!shown.contains("\"time\"") && shown.contains("\"alarms\":[\"emergency\"]"), "{shown}");

        let wrong_clock = [&body(1, 1, 0, 0)[..22], &[0x2a, 0, 0, 0, 0, 1]].concat();
        let Located { json: shown, malformed } = json(ORIGIN, &wrong_clock, 480).unwrap();
        assert_eq!(malformed, Some(Malformed::Time([0x2a, 0, 0, 0, 0, 1])));
        assert!(shown.contains("\"clock\":\"2a0000000001\"") && shown.contains("emergency"), "{shown}");

        let Located { json: shown, malformed } = json(ORIGIN, &body(1, 2, 90_000_001, 0), 480).unwrap();
        assert_eq!(malformed, Some(Malformed::Latitude(90_000_001)));
        assert!(shown.contains("\"positioned\":false,\"error\":") && !shown.contains("latitude\":"), "{shown}");
    }

    /// The poles and the date line are still on the earth; a millionth further is not.
    #[test]
    fn ends_of_the_earth() {
        assert!(json(ORIGIN, &body(0, 0, 90_000_000, 180_000_000), 480).is_ok());
        assert_eq!(json(ORIGIN, &body(0, 0, 90_000_001, 0), 480), Err(Malformed::Latitude(90_000_001)));
        assert_eq!(json(ORIGIN, &body(0, 0, 0, 180_000_001), 480), Err(Malformed::Longitude(180_000_001)));
        assert_eq!(json(ORIGIN, &body(0, 0, u32::MAX, 0), 480), Err(Malformed::Latitude(u32::MAX)));
    }

    /// A body that is cut anywhere in its fixed part is refused.
    #[test]
    fn truncated() {
        let body = body(0, 0, 0, 0);
        for length in 0..body.len() {
            assert!(matches!(json(ORIGIN, &body[..length], 480), Err(Malformed::Short { .. })));
        }
    }

    /// A position of a batch says so, and one that answers a command names it.
    #[test]
    fn origins() {
        let batch = Some(Batch { kind: 1, index: 2, count: 3 });
        let Located { json, .. } = json(Origin { batch, answers: Some(7), ..ORIGIN }, &body(0, 0, 0, 0), 480).unwrap();
        assert!(
            json.contains(r#""serial":9,"answers":7,"batch":{"kind":"blind_area","index":2,"count":3},"#),
            "{json}"
        );
    }
}
