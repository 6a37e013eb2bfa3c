//! Sentences and records as JSON, and what answers them. Pure.

use polygate_guest::calendar;
use polygate_guest::json::{self, Object};

/// Which topic something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A position.
    Position,
    /// The tracker's state.
    Status,
    /// Cells of the mobile network.
    Cells,
    /// Anything else.
    Message,
}

impl Topic {
    /// As its topic ends.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Position => "position",
            Self::Status => "status",
            Self::Cells => "cells",
            Self::Message => "message",
        }
    }
}

/// What became of a sentence or record.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// Where it belongs.
    pub topic: Topic,
    /// The JSON.
    pub json: String,
    /// Why it was passed on as it is.
    pub undecoded: Option<&'static str>,
}

/// A sentence, cut into its fields.
pub struct Sentence<'a> {
    /// The two letters of the maker.
    pub maker: &'a str,
    /// The tracker's number; empty where the tracker leaves it out.
    pub id: &'a str,
    /// `V1`, `NBR` and so on.
    pub kind: &'a str,
    fields: Vec<&'a str>,
    text: &'a str,
}

impl<'a> Sentence<'a> {
    /// None for bytes without a maker and an id.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let text = core::str::from_utf8(bytes).ok()?;
        let mut fields = text.strip_prefix('*')?.strip_suffix('#')?.split(',');
        let (maker, id) = (fields.next()?, fields.next()?);
        let kind = fields.next().unwrap_or_default();
        let is_name = |name: &str, max| name.len() <= max && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let known = maker.len() == 2 && is_name(maker, 2) && is_name(id, 20) && text.bytes().all(|byte| byte >= b' ');
        known.then(|| Self { maker, id, kind, fields: fields.map(str::trim).collect(), text })
    }

    fn field(&self, at: usize) -> &'a str {
        self.fields.get(at).copied().unwrap_or_default()
    }

    /// What the tracker waits for. `now_s` is in seconds since the Unix epoch.
    #[must_use]
    pub fn answer(&self, id: &str, now_s: i64) -> Option<String> {
        let ((year, month, day), (hour, minute, second)) = calendar::civil(now_s);
        let Self { maker, kind, .. } = self;
        match *kind {
            "V0" | "HTBT" => Some(format!("*{maker},{id},{kind}#")),
            "V1" | "NBR" => {
                Some(format!("*{maker},{id},V4,{kind},{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}#"))
            }
            _ => None,
        }
    }

    /// The JSON of the sentence of tracker `id`, whose clock is in UTC.
    #[must_use]
    pub fn report(&self, id: &str) -> Report {
        let mut undecoded = None;
        let mut topic = Topic::Message;
        let json = json::object(|json| {
            json.text("device", id);
            json.text("kind", self.kind);
            topic = match self.kind {
                "V0" | "HTBT" => {
                    if let Ok(level) = self.field(0).parse::<u8>() {
                        json.number("battery_percent", level);
                    }
                    Topic::Status
                }
                "LINK" if self.fields.len() >= 7 => self.link(json),
                "NBR" if self.fields.len() >= 6 => self.neighbours(json),
                "V3" if self.fields.len() >= 6 => self.cells(json),
                "VP1" if self.field(0) == "V" => self.paired_cells(json),
                _ => match self.place_at() {
                    Some(at) => self.position(json, at),
                    None => Topic::Message,
                },
            };
            if topic == Topic::Message {
                undecoded = Some("expected a kind of sentence that is known here, found another one or too few fields");
                json.text("error", undecoded.unwrap_or_default());
                json.text("text", self.text);
                json.hex("data", self.text.as_bytes());
            }
        });
        Report { topic, json, undecoded }
    }

    /// Where validity, latitude, side, longitude and side stand.
    fn place_at(&self) -> Option<usize> {
        (0..self.fields.len()).find(|at| {
            let valid = self.field(*at);
            let sides = (self.field(at + 2), self.field(at + 4));
            (matches!(valid, "A" | "B" | "V" | "") || valid.bytes().all(|byte| byte.is_ascii_digit()))
                && matches!(sides.0, "N" | "S" | "0")
                && matches!(sides.1, "E" | "W" | "0")
                && (self.field(at + 1).is_empty() || degrees(self.field(at + 1), 90).is_some())
                && (self.field(at + 3).is_empty() || degrees(self.field(at + 3), 180).is_some())
        })
    }

    fn position(&self, json: &mut Object<'_>, at: usize) -> Topic {
        // Between the course and the date some trackers have the battery.
        let (time, mut behind) = (if at == 0 { "" } else { self.field(at - 1) }, at + 7);
        if !is_date(self.field(behind)) && is_date(self.field(behind + 1)) {
            if let Ok(battery) = self.field(behind).parse::<u8>() {
                json.number("battery", battery);
            }
            behind += 1;
        }
        let date = self.field(behind);
        if self.kind == "V4" {
            json.text("command", self.field(0));
            json.texts("result", self.fields.get(1..at.saturating_sub(1)).unwrap_or_default().iter().copied());
        }
        write_time(json, time, date);
        let place = degrees(self.field(at + 1), 90).zip(degrees(self.field(at + 3), 180));
        let valid = !matches!(self.field(at), "V" | "") && place.is_some() && self.field(at + 2) != "0";
        json.flag("positioned", valid);
        if let Some((latitude, longitude)) = place {
            json.decimal("latitude", if self.field(at + 2) == "S" { -latitude } else { latitude }, 6);
            json.decimal("longitude", if self.field(at + 4) == "W" { -longitude } else { longitude }, 6);
        }
        if let Some(knots) = thousandths(self.field(at + 5)) {
            json.decimal("speed_kmh", (knots * 1852 + 500) / 1000, 3);
        }
        if let Some(course) = thousandths(self.field(at + 6)) {
            json.decimal("course_deg", course, 3);
        }
        let mut rest = self.fields.get(behind + 1..).unwrap_or_default();
        if let Some(word) = rest.iter().position(|field| is_status(field)) {
            write_status(json, rest.get(word).copied().unwrap_or_default());
            if word > 0 {
                json.texts("before_status", rest.get(..word).unwrap_or_default().iter().copied());
            }
            rest = rest.get(word + 1..).unwrap_or_default();
        }
        if !rest.is_empty() {
            json.texts("rest", rest.iter().copied());
        }
        Topic::Position
    }

    /// Time, signal, satellites, battery, steps, turnovers, date, status.
    fn link(&self, json: &mut Object<'_>) -> Topic {
        write_time(json, self.field(0), self.field(6));
        for (name, at) in
            [("signal_strength", 1), ("satellites", 2), ("battery_percent", 3), ("steps", 4), ("turnovers", 5)]
        {
            if let Ok(number) = self.field(at).parse::<u32>() {
                json.number(name, number);
            }
        }
        write_status(json, self.field(7));
        Topic::Status
    }

    /// Time, country, network, delay, number of cells, each with area, cell and strength; date, status.
    fn neighbours(&self, json: &mut Object<'_>) -> Topic {
        let count = self.field(4).parse().unwrap_or(0_usize);
        let behind = 5 + 3 * count;
        if self.fields.len() < behind {
            return Topic::Message;
        }
        write_time(json, self.field(0), self.field(behind));
        write_cells(json, self.field(1), self.field(2), self.fields.get(5..behind).unwrap_or_default(), 3);
        write_status(json, self.field(behind + 1));
        Topic::Cells
    }

    /// Time, country and network in one, number of cells, each with area, cell and two numbers; battery, restarts, X, date,
    /// status.
    fn cells(&self, json: &mut Object<'_>) -> Topic {
        let count = self.field(2).parse().unwrap_or(0_usize);
        let behind = 3 + 4 * count;
        let Some((country, network)) = self.field(1).split_at_checked(3).filter(|_| self.fields.len() >= behind) else {
            return Topic::Message;
        };
        write_time(json, self.field(0), self.field(behind + 3));
        write_cells(json, country, network, self.fields.get(3..behind).unwrap_or_default(), 4);
        if let Ok(battery) = u16::from_str_radix(self.field(behind), 16) {
            json.decimal("battery_v", battery, 2);
        }
        write_status(json, self.field(behind + 4));
        Topic::Cells
    }

    /// V, country, network, and cells with a `Y` between them.
    fn paired_cells(&self, json: &mut Object<'_>) -> Topic {
        let text = self.fields.get(3..).unwrap_or_default().join(",");
        let cells: Vec<_> = text.split('Y').flat_map(|cell| cell.split(',')).collect();
        write_cells(json, self.field(1), self.field(2), &cells, 3);
        Topic::Cells
    }
}

/// A record's tracker, or none for digits that are none.
#[must_use]
pub fn record_id(record: &[u8]) -> Option<String> {
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if record.len() == crate::frame::LONG_RECORD {
        // An IMEI has fifteen digits.
        return Some(digits(record.get(1..9)?).chars().take(15).collect());
    }
    record.get(1..6).map(digits)
}

/// The JSON of a record of tracker `id`.
#[must_use]
pub fn record(id: &str, record: &[u8]) -> Report {
    let at = if record.len() == crate::frame::LONG_RECORD { 9 } else { 6 };
    let digits: String = record.iter().skip(at).take(19).map(|byte| format!("{byte:02x}")).collect();
    let field = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    let number = |from, to| field(from, to).parse::<i64>().ok();
    let latitude = angle(number(12, 14), number(14, 20));
    let longitude = angle(number(22, 25), number(25, 31));
    let flags = u8::from_str_radix(field(31, 32), 16).unwrap_or_default();
    let status: String = record.iter().skip(at + 19).take(4).map(|byte| format!("{byte:02x}")).collect();
    let rest = record.get(at + 23..).unwrap_or_default();
    let mut undecoded = None;
    let json = json::object(|json| {
        json.text("device", id);
        json.text("kind", "record");
        write_time(json, field(0, 6), field(6, 12));
        match latitude.zip(longitude) {
            Some((latitude, longitude)) if latitude <= 90_000_000 && longitude <= 180_000_000 => {
                json.flag("positioned", flags & 2 != 0);
                json.decimal("latitude", if flags & 4 == 0 { -latitude } else { latitude }, 6);
                json.decimal("longitude", if flags & 8 == 0 { -longitude } else { longitude }, 6);
            }
            _ => {
                undecoded = Some("expected degrees in decimal digits, found others");
                json.flag("positioned", false);
                json.text("error", undecoded.unwrap_or_default());
                json.hex("data", record);
            }
        }
        if let Ok(battery) = u8::from_str_radix(field(20, 22), 16) {
            json.number("battery", battery);
        }
        if let Some(knots) = number(32, 35) {
            json.decimal("speed_kmh", knots * 1852, 3);
        }
        if let Some(course) = number(35, 38) {
            json.number("course_deg", course);
        }
        write_status(json, &status);
        if !rest.is_empty() {
            json.hex("rest", rest);
        }
    });
    Report { topic: if undecoded.is_some() { Topic::Message } else { Topic::Position }, json, undecoded }
}

/// Degrees and ten-thousandths of minutes, in millionths of a degree.
fn angle(degrees: Option<i64>, minutes: Option<i64>) -> Option<i64> {
    let (degrees, minutes) = (degrees?, minutes.filter(|minutes| *minutes < 600_000)?);
    Some(degrees * 1_000_000 + (minutes * 10 + 3) / 6)
}

/// `ddmm.mmmm`, `-dd-mm.mmmm` or `ddmmdddd`, in millionths of a degree, without the sign, which stands behind it.
fn degrees(text: &str, max: i64) -> Option<i64> {
    let (degrees, minutes) = match text.strip_prefix('-') {
        Some(rest) => rest.split_once('-')?,
        None => {
            let whole = text.find('.').unwrap_or(if max == 90 { 4 } else { 5 });
            text.split_at_checked(whole.checked_sub(2)?)?
        }
    };
    let minutes =
        if minutes.contains('.') { minutes.to_owned() } else { format!("{}.{}", minutes.get(..2)?, minutes.get(2..)?) };
    let degrees = if degrees.is_empty() { 0 } else { digits(degrees)? };
    let (whole, fraction) = minutes.split_once('.')?;
    let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let millionths = digits(whole)? * 1_000_000 + digits(&fraction)?;
    let found = degrees * 1_000_000 + (millionths + 30) / 60;
    (millionths < 60_000_000 && found <= max * 1_000_000).then_some(found)
}

fn digits(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A number with up to three places, in thousandths.
fn thousandths(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    Some(digits(whole).filter(|_| whole.len() <= 6)? * 1000 + digits(&fraction)?)
}

fn is_date(text: &str) -> bool {
    text.len() == 6 && digits(text).is_some()
}

fn is_status(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `hhmmss` and `ddmmyy`, in UTC; the time of day alone where the date is missing or does not exist.
fn write_time(json: &mut Object<'_>, time: &str, date: &str) {
    let pairs = |text: &str| {
        let pair = |at: usize| digits(text.get(at..at + 2)?);
        if text.len() == 6 { pair(0).zip(pair(2)).zip(pair(4)) } else { None }
    };
    let (time_of_day, day) = (pairs(time), pairs(date));
    match (time_of_day, day) {
        (Some(((hour, minute), second)), Some(((day, month), year))) => {
            match calendar::epoch_s((2000 + year, month, day), (hour, minute, second)) {
                Some(epoch_s) => json.text("time", &calendar::rfc3339(epoch_s)),
                None => json.text("clock", &format!("{date} {time}")),
            }
        }
        (Some(((hour, minute), second)), None) => {
            json.text("time_of_day", &format!("{hour:02}:{minute:02}:{second:02}Z"));
        }
        (None, Some(((day, month), year))) => json.text("date", &format!("{:04}-{month:02}-{day:02}", 2000 + year)),
        (None, None) => {}
    }
}

/// The status word: a bit that is not set tells an alarm, but for ignition.
fn write_status(json: &mut Object<'_>, hex: &str) {
    const ALARMS: [(u32, &str); 5] =
        [(0, "vibration"), (1, "sos"), (2, "overspeed"), (18, "sos_wired"), (19, "power_cut")];
    const IGNITION: u32 = 10;
    let Some(bits) = u32::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 8) else { return };
    let alarms = ALARMS.iter().filter(|(bit, _)| bits >> bit & 1 == 0);
    json.texts("alarms", alarms.map(|(_, name)| *name));
    json.texts("status", (bits >> IGNITION & 1 == 1).then_some("acc_on"));
    json.text("status_word", &hex.to_ascii_lowercase());
}

fn write_cells(json: &mut Object<'_>, country: &str, network: &str, fields: &[&str], each: usize) {
    for (name, text) in [("mcc", country), ("mnc", network)] {
        if let Some(number) = digits(text).filter(|_| !text.is_empty() && text.len() < 6) {
            json.number(name, number);
        }
    }
    json.array("cells", |array| {
        for cell in fields.chunks(each) {
            let number = |at: usize| cell.get(at).and_then(|text| text.parse::<i64>().ok());
            if let Some((area, id)) = number(0).zip(number(1)) {
                array.object(|json| {
                    json.number("lac", area);
                    json.number("cell_id", id);
                    if let Some(strength) = number(each - 1).or_else(|| number(2)) {
                        json.number("rssi", strength);
                    }
                });
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways in which trackers write degrees.
    #[test]
    fn angles() {
        assert_eq!(degrees("2250.1480", 90), Some(22_835_800));
        assert_eq!(degrees("-23-29.0095", 90), Some(23_483_492));
        assert_eq!(degrees("11425.2945", 180), Some(114_421_575));
        assert_eq!(degrees("954.9490", 180), Some(9_915_817));
        assert_eq!(degrees("22501480", 90), Some(22_835_800));
        for wrong in ["9100.0000", "2260.0000", "x", "", "12", "-1"] {
            assert_eq!(degrees(wrong, 90), None, "{wrong}");
        }
    }

    /// Any text is reported, and nothing is said twice.
    #[test]
    fn any_sentence() {
        for text in
            ["*HQ,1,#", "*HQ,1,V1#", "*HQ,1,NBR,1,2,3,4,99#", "*HQ,1,V3,,,,,,,#", "*HQ,1,VP1,V#", "*HQ,1,LINK,,,,,,,,#"]
        {
            let report = Sentence::parse(text.as_bytes()).unwrap().report("1");
            serde_json::from_str::<serde_json::Value>(&report.json).unwrap();
        }
        assert!(Sentence::parse(b"*HQ,../,V1#").is_none());
    }
}
