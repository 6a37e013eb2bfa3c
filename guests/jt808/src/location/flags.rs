//! Names for the bits of the alarm and the status word. JT/T 808-2019 tables 24 and 25; 2013 has the same but fewer.

use polygate_guest::json::Object;

/// Status bit 1: the position is a present one.
pub(super) const POSITIONED: u32 = 1 << 1;
/// Status bit 2: the latitude is a southern one.
pub(super) const SOUTH: u32 = 1 << 2;
/// Status bit 3: the longitude is a western one.
pub(super) const WEST: u32 = 1 << 3;
/// Status bits 8 and 9 are one number.
pub(super) const LOAD: u32 = 0b11 << 8;

/// The alarm word, from bit 0.
pub(super) const ALARMS: [&str; 32] = [
    "emergency",
    "overspeed",
    "fatigue",
    "dangerous_driving",
    "gnss_fault",
    "gnss_antenna_cut",
    "gnss_antenna_short",
    "power_low",
    "power_cut",
    "display_fault",
    "tts_fault",
    "camera_fault",
    "ic_card_fault",
    "overspeed_warning",
    "fatigue_warning",
    "driving_violation",
    "tyre_pressure_warning",
    "right_turn_blind_spot",
    "driving_time_exceeded",
    "parking_time_exceeded",
    "area",
    "route",
    "section_time",
    "off_route",
    "speed_sensor_fault",
    "fuel_abnormal",
    "theft",
    "illegal_ignition",
    "illegal_movement",
    "collision",
    "rollover",
    "illegal_door_open",
];

/// The status word, from bit 0. An empty name is a bit without one.
pub(super) const STATUS: [&str; 23] = [
    "acc_on",
    "positioned",
    "south",
    "west",
    "out_of_service",
    "coordinates_encrypted",
    "forward_collision_warning",
    "lane_departure_warning",
    "",
    "",
    "fuel_line_cut",
    "circuit_cut",
    "doors_locked",
    "front_door_open",
    "middle_door_open",
    "rear_door_open",
    "driver_door_open",
    "custom_door_open",
    "gps",
    "beidou",
    "glonass",
    "galileo",
    "moving",
];

/// The names of the bits that are set; one without a name is `bit_` and its number, so that nothing is lost.
pub(super) fn write(json: &mut Object<'_>, name: &str, bits: u32, names: &[&str]) {
    json.array(name, |array| {
        for bit in (0..32_usize).filter(|bit| bits >> bit & 1 == 1) {
            match names.get(bit) {
                Some(name) if !name.is_empty() => array.text(name),
                _ => array.text(&format!("bit_{bit}")),
            }
        }
    });
}

/// How much the vehicle carries.
pub(super) const fn load(status: u32) -> &'static str {
    match (status & LOAD) >> 8 {
        0 => "empty",
        1 => "half",
        3 => "full",
        _ => "reserved",
    }
}

#[cfg(test)]
mod tests {
    use polygate_guest::json;

    use super::*;

    /// The ends of both tables lie where the standard puts them, and a reserved bit keeps its number.
    #[test]
    fn tables() {
        let shown = |bits, names| json::object(|object| write(object, "on", bits, names));
        assert_eq!(shown(1 | 1 << 31 | 1 << 20, &ALARMS), r#"{"on":["emergency","area","illegal_door_open"]}"#);
        assert_eq!(
            shown(1 | 1 << 12 | 1 << 22 | 1 << 23 | 1 << 8, &STATUS),
            r#"{"on":["acc_on","bit_8","doors_locked","moving","bit_23"]}"#
        );
    }
}
