//! The data of frames as JSON. Pure. Values of 0xFE and 0xFF (in all bytes of a field) stand for "abnormal" and "invalid", and
//! are left out.

use core::fmt;

use polygate_guest::calendar;
use polygate_guest::json::{self, Object};

/// The clocks of vehicles show China's time, in minutes ahead of UTC.
pub const CHINA_MIN: i64 = 8 * 60;

/// Why data are not what the standard says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A field reaches over the end.
    Short(&'static str),
    /// Six bytes that are no time.
    Time,
    /// An item that is not known here, whose length therefore is not either.
    Item(u8),
    /// Bytes after the last field.
    Leftover(usize),
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(field) => write!(out, "expected {field}, found the end"),
            Self::Time => write!(out, "expected a time, found one that does not exist"),
            Self::Item(kind) => write!(out, "expected an item that is known here, found {kind:#04x}"),
            Self::Leftover(count) => write!(out, "expected the end, found {count} more bytes"),
        }
    }
}

impl std::error::Error for Malformed {}

/// A cursor over data, big-endian.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Malformed::Short(field))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self, field: &'static str, length: usize) -> Result<Number, Malformed> {
        let value = self.take(field, length)?.iter().fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
        Ok(Number { value, largest: (1_i64 << (8 * length)) - 1 })
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.take(field, 1).map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    fn word(&mut self, field: &'static str) -> Result<u16, Malformed> {
        self.number(field, 2).map(|number| number.value as u16)
    }

    fn finish(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Leftover(self.0.len())) }
    }
}

/// A field of the standard: unsigned, with an offset, and two values that stand for none.
struct Number {
    value: i64,
    largest: i64,
}

impl Number {
    fn known(&self) -> Option<i64> {
        (self.value < self.largest - 1).then_some(self.value)
    }

    fn write(&self, json: &mut Object<'_>, name: &str, offset: i64, places: u8) {
        if let Some(value) = self.known() {
            json.decimal(name, value - offset, places);
        }
    }
}

/// A time of the standard: year of this century, month, day, hour, minute and second, a byte each.
fn epoch_s(bytes: &[u8]) -> Result<i64, Malformed> {
    let [year, month, day, hour, minute, second] = bytes else { return Err(Malformed::Short("a time")) };
    let [year, month, day] = [*year, *month, *day].map(i64::from);
    let time_of_day = [*hour, *minute, *second].map(i64::from);
    let [hour, minute, second] = time_of_day;
    let epoch_s = calendar::epoch_s((2000 + year, month, day), (hour, minute, second)).ok_or(Malformed::Time)?;
    Ok(epoch_s - CHINA_MIN * 60)
}

/// Six bytes for a time.
#[must_use]
pub fn clock(epoch_s: i64) -> [u8; 6] {
    let ((year, month, day), (hour, minute, second)) = calendar::civil(epoch_s + CHINA_MIN * 60);
    [year.rem_euclid(100), month, day, hour, minute, second].map(|number| number as u8)
}

/// A text without its padding.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_matches(|character: char| matches!(character, '\0' | ' ')).to_owned()
}

fn write_time(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    json.text("time", &calendar::rfc3339(epoch_s(reader.take("a time", 6)?)?));
    Ok(())
}

/// Runs `read` twice: the first time to see whether all of it can be read.
fn whole(read: impl Fn(&mut Object<'_>) -> Result<(), Malformed>) -> Result<String, Malformed> {
    let mut outcome = Ok(());
    let text = json::object(|json| outcome = read(json));
    outcome.map(|()| text)
}

/// What a platform logs in with.
pub struct Platform {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// The user name and password of a platform's login (0x05).
///
/// # Errors
///
/// For data that are cut off.
pub fn platform(data: &[u8]) -> Result<Platform, Malformed> {
    let mut reader = Reader(data);
    reader.take("a time", 6)?;
    reader.word("a serial")?;
    Ok(Platform { user: text(reader.take("a user name", 12)?), password: text(reader.take("a password", 20)?) })
}

/// The JSON of a login (0x01), logout (0x04, 0x06) or platform's login (0x05), without a password.
///
/// # Errors
///
/// For data that do not have the standard's form.
pub fn session(vin: &str, command: u8, data: &[u8]) -> Result<String, Malformed> {
    whole(|json| {
        let mut reader = Reader(data);
        json.text("vin", vin);
        json.text("command", &format!("{command:#04x}"));
        write_time(json, &mut reader)?;
        json.number("serial", reader.word("a serial")?);
        if command == 5 {
            json.text("user", &text(reader.take("a user name", 12)?));
            return Ok(());
        }
        if command == 1 {
            json.text("iccid", &text(reader.take("an ICCID", 20)?));
            let (count, length) = (reader.byte("a number of systems")?, reader.byte("a length of codes")?);
            let mut codes = Vec::new();
            for _ in 0..count {
                codes.push(text(reader.take("a code", length.into())?));
            }
            json.texts("systems", codes.iter().map(String::as_str));
        }
        reader.finish()
    })
}

/// Where a vehicle is, out of its report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    positioned: bool,
    /// Millionths of a degree.
    latitude: i64,
    longitude: i64,
}

/// What a report (0x02, 0x03) has become.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// All of it.
    pub data: String,
    /// The position alone, if there is one.
    pub position: Option<String>,
    /// Why the rest of it is hexadecimal.
    pub malformed: Option<Malformed>,
}

/// The JSON of a report.
///
/// # Errors
///
/// For data without a time. What cannot be read after it stands in `rest`.
pub fn report(vin: &str, resent: bool, data: &[u8]) -> Result<Report, Malformed> {
    let mut reader = Reader(data);
    let time = calendar::rfc3339(epoch_s(reader.take("a time", 6)?)?);
    let (mut place, mut speed, mut malformed) = (None, None, None);
    let text = json::object(|json| {
        json.text("vin", vin);
        json.text("time", &time);
        json.flag("resent", resent);
        let mut seen = 0_u128;
        let mut custom = Vec::new();
        while let Some((&kind, after)) = reader.0.split_first() {
            let mut item = Reader(after);
            let again = kind < 0x30 && seen >> kind & 1 == 1;
            let scratch = whole(|json| item_of(json, kind, &mut Reader(after)).map(drop));
            match scratch {
                Ok(_) if kind >= 0x80 => {
                    if let Ok(found) = custom_item(&mut item) {
                        custom.push((kind, found));
                    }
                }
                Ok(_) if !again => {
                    let _ = item_of(json, kind, &mut item).map(|found| place = found.or(place.take()));
                    if let (1, [_, _, _, high, low, ..]) = (kind, after) {
                        speed = Some(u16::from_be_bytes([*high, *low])).filter(|speed| *speed < 0xfffe);
                    }
                    seen |= 1 << kind;
                }
                Ok(_) => malformed = Some(Malformed::Item(kind)),
                Err(fault) => malformed = Some(fault),
            }
            if malformed.is_some() {
                break;
            }
            reader = item;
        }
        if !custom.is_empty() {
            json.array("items", |array| {
                for (kind, data) in &custom {
                    array.object(|json| {
                        json.text("id", &format!("{kind:#04x}"));
                        json.hex("data", data);
                    });
                }
            });
        }
        if let Some(malformed) = malformed {
            json.text("error", &malformed.to_string());
            json.hex("rest", reader.0);
        }
    });
    let position = place.map(|place: Place| {
        json::object(|json| {
            json.text("vin", vin);
            json.text("time", &time);
            place.write(json);
            if let Some(speed) = speed {
                json.decimal("speed_kmh", speed, 1);
            }
            json.flag("resent", resent);
        })
    });
    Ok(Report { data: text, position, malformed })
}

impl Place {
    fn write(&self, json: &mut Object<'_>) {
        json.flag("positioned", self.positioned);
        json.decimal("latitude", self.latitude, 6);
        json.decimal("longitude", self.longitude, 6);
    }
}

fn custom_item<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let length = reader.word("a length")?;
    reader.take("an item", length.into())
}

/// Writes one item, and gives the place if it is one.
fn item_of(json: &mut Object<'_>, kind: u8, reader: &mut Reader<'_>) -> Result<Option<Place>, Malformed> {
    let mut place = None;
    match kind {
        1 => inner(json, "vehicle", reader, vehicle)?,
        2 => list(json, "motors", reader, motor)?,
        3 => inner(json, "fuel_cell", reader, fuel_cell)?,
        4 => inner(json, "engine", reader, engine)?,
        5 => {
            let found = position(reader)?;
            json.object("position", |json| found.write(json));
            place = Some(found);
        }
        6 => inner(json, "extremes", reader, extremes)?,
        7 => inner(json, "alarms", reader, alarms)?,
        8 => list(json, "voltages", reader, voltages)?,
        9 => list(json, "temperatures", reader, temperatures)?,
        0x80..=0xfe => drop(custom_item(reader)?),
        _ => return Err(Malformed::Item(kind)),
    }
    Ok(place)
}

fn inner<'a>(
    json: &mut Object<'_>,
    name: &str,
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Object<'_>, &mut Reader<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut outcome = Ok(());
    json.object(name, |json| outcome = read(json, reader));
    outcome
}

/// A count of one byte, and so many objects.
fn list<'a>(
    json: &mut Object<'_>,
    name: &str,
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Object<'_>, &mut Reader<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let count = counted(reader)?;
    let mut outcome = Ok(());
    json.array(name, |array| {
        for _ in 0..count {
            if outcome.is_ok() {
                array.object(|json| outcome = read(json, reader));
            }
        }
    });
    outcome
}

/// A count of one byte; two values stand for none.
fn counted(reader: &mut Reader<'_>) -> Result<u8, Malformed> {
    reader.byte("a count").map(|count| if count < 0xfe { count } else { 0 })
}

fn named(json: &mut Object<'_>, name: &str, value: u8, names: &[&str]) {
    match (value, usize::from(value).checked_sub(1).and_then(|at| names.get(at))) {
        (0xfe | 0xff, _) => {}
        (_, Some(found)) => json.text(name, found),
        (other, None) => json.text(name, &format!("{name}_{other}")),
    }
}

fn vehicle(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    named(json, "state", reader.byte("a state")?, &["started", "off", "other"]);
    named(json, "charging", reader.byte("charging")?, &["parked", "driving", "none", "complete"]);
    named(json, "mode", reader.byte("a mode")?, &["electric", "hybrid", "fuel"]);
    reader.number("a speed", 2)?.write(json, "speed_kmh", 0, 1);
    reader.number("a mileage", 4)?.write(json, "mileage_km", 0, 1);
    reader.number("a voltage", 2)?.write(json, "voltage_v", 0, 1);
    reader.number("a current", 2)?.write(json, "current_a", 10_000, 1);
    reader.number("a charge", 1)?.write(json, "soc_percent", 0, 0);
    named(json, "dc_dc", reader.byte("DC/DC")?, &["working", "off"]);
    let gear = reader.byte("a gear")?;
    match gear & 0x0f {
        0 => json.text("gear", "neutral"),
        13 => json.text("gear", "reverse"),
        14 => json.text("gear", "drive"),
        15 => json.text("gear", "park"),
        other => json.text("gear", &other.to_string()),
    }
    json.flag("braking", gear >> 4 & 1 == 1);
    json.flag("driving", gear >> 5 & 1 == 1);
    reader.number("a resistance", 2)?.write(json, "insulation_kohm", 0, 0);
    reader.number("a pedal", 1)?.write(json, "accelerator_percent", 0, 0);
    reader.number("a pedal", 1)?.write(json, "brake_percent", 0, 0);
    Ok(())
}

fn motor(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    json.number("number", reader.byte("a number")?);
    named(json, "state", reader.byte("a state")?, &["consuming", "generating", "off", "ready"]);
    reader.number("a temperature", 1)?.write(json, "controller_temperature_c", 40, 0);
    reader.number("a speed", 2)?.write(json, "speed_rpm", 20_000, 0);
    reader.number("a torque", 2)?.write(json, "torque_nm", 20_000, 1);
    reader.number("a temperature", 1)?.write(json, "temperature_c", 40, 0);
    reader.number("a voltage", 2)?.write(json, "voltage_v", 0, 1);
    reader.number("a current", 2)?.write(json, "current_a", 10_000, 1);
    Ok(())
}

fn fuel_cell(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    reader.number("a voltage", 2)?.write(json, "voltage_v", 0, 1);
    reader.number("a current", 2)?.write(json, "current_a", 0, 1);
    reader.number("a consumption", 2)?.write(json, "consumption_kg_100km", 0, 2);
    let probes = reader.word("a number of probes")?;
    let temperatures = if probes < 0xfffe { reader.take("temperatures", probes.into())? } else { &[] };
    json.array("temperatures_c", |array| temperatures.iter().for_each(|byte| array.number(i64::from(*byte) - 40)));
    reader.number("a temperature", 2)?.write(json, "hydrogen_temperature_max_c", 400, 1);
    json.number("hydrogen_temperature_probe", reader.byte("a probe")?);
    reader.number("a concentration", 2)?.write(json, "hydrogen_concentration_max_ppm", 0, 0);
    json.number("hydrogen_concentration_sensor", reader.byte("a sensor")?);
    reader.number("a pressure", 2)?.write(json, "hydrogen_pressure_max_mpa", 0, 1);
    json.number("hydrogen_pressure_sensor", reader.byte("a sensor")?);
    named(json, "dc_dc", reader.byte("DC/DC")?, &["working", "off"]);
    Ok(())
}

fn engine(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    named(json, "state", reader.byte("a state")?, &["started", "off"]);
    reader.number("a speed", 2)?.write(json, "speed_rpm", 0, 0);
    reader.number("a consumption", 2)?.write(json, "consumption_l_100km", 0, 2);
    Ok(())
}

fn position(reader: &mut Reader<'_>) -> Result<Place, Malformed> {
    let state = reader.byte("a state")?;
    let (longitude, latitude) = (reader.number("a longitude", 4)?, reader.number("a latitude", 4)?);
    let on_earth = longitude.value <= 180_000_000 && latitude.value <= 90_000_000;
    let signed = |degrees: i64, bit: u8| if state >> bit & 1 == 1 { -degrees } else { degrees };
    if !on_earth {
        return Ok(Place::default());
    }
    Ok(Place { positioned: state & 1 == 0, latitude: signed(latitude.value, 1), longitude: signed(longitude.value, 2) })
}

fn extremes(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    for (name, length, offset, places) in [
        ("voltage_max_v", 2, 0, 3),
        ("voltage_min_v", 2, 0, 3),
        ("temperature_max_c", 1, 40, 0),
        ("temperature_min_c", 1, 40, 0),
    ] {
        json.number(&format!("{name}_system"), reader.byte("a system")?);
        json.number(&format!("{name}_at"), reader.byte("a cell")?);
        reader.number("a value", length)?.write(json, name, offset, places);
    }
    Ok(())
}

/// The general alarms, from bit 0.
const ALARMS: [&str; 19] = [
    "temperature_differs",
    "battery_temperature_high",
    "pack_voltage_high",
    "pack_voltage_low",
    "soc_low",
    "cell_voltage_high",
    "cell_voltage_low",
    "soc_high",
    "soc_jumps",
    "pack_mismatch",
    "cells_differ",
    "insulation",
    "dc_dc_temperature",
    "brakes",
    "dc_dc_state",
    "motor_controller_temperature",
    "high_voltage_interlock",
    "motor_temperature",
    "overcharge",
];

fn alarms(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    reader.number("a level", 1)?.write(json, "level_max", 0, 0);
    let bits = reader.number("alarms", 4)?.value;
    json.array("general", |array| {
        for bit in (0..32_usize).filter(|bit| bits >> bit & 1 == 1) {
            match ALARMS.get(bit) {
                Some(name) => array.text(name),
                None => array.text(&format!("bit_{bit}")),
            }
        }
    });
    for name in ["battery_faults", "motor_faults", "engine_faults", "other_faults"] {
        let mut faults = Vec::new();
        for _ in 0..counted(reader)? {
            faults.push(format!("{:#010x}", reader.number("a fault", 4)?.value));
        }
        json.texts(name, faults.iter().map(String::as_str));
    }
    Ok(())
}

fn voltages(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    json.number("system", reader.byte("a system")?);
    reader.number("a voltage", 2)?.write(json, "voltage_v", 0, 1);
    reader.number("a current", 2)?.write(json, "current_a", 10_000, 1);
    json.number("cells", reader.word("a number of cells")?);
    json.number("first", reader.word("a first cell")?);
    let count = reader.byte("a count")?;
    let bytes = reader.take("voltages", 2 * usize::from(count))?;
    json.array("millivolts", |array| {
        for [high, low] in bytes.as_chunks::<2>().0 {
            array.number(u16::from_be_bytes([*high, *low]));
        }
    });
    Ok(())
}

fn temperatures(json: &mut Object<'_>, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    json.number("system", reader.byte("a system")?);
    let count = reader.word("a number of probes")?;
    let bytes = if count < 0xfffe { reader.take("temperatures", count.into())? } else { &[] };
    json.array("probes_c", |array| bytes.iter().for_each(|byte| array.number(i64::from(*byte) - 40)));
    Ok(())
}

/// The JSON of any other frame.
#[must_use]
pub fn message(vin: &str, command: u8, response: u8, encryption: u8, data: &[u8], error: Option<&str>) -> String {
    json::object(|json| {
        json.text("vin", vin);
        json.text("command", &format!("{command:#04x}"));
        json.text("response", &format!("{response:#04x}"));
        if encryption != 1 {
            json.number("encryption", encryption);
        }
        if let Some(error) = error {
            json.text("error", error);
        }
        json.hex("data", data);
    })
}
