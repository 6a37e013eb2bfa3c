"""NMEA 0183: what a sentence is, and what stands in the ones that tell a position. Knows nothing of connections.

    $GPRMC,083000.00,A,3113.82496,N,12128.42206,E,32.4,90.0,150126,,,A*53

A sentence begins with "$" (or "!", when it is encapsulated), has its talker and kind in the first field, and ends in "*" and
the exclusive-or of all bytes between, as two hexadecimal digits.
"""

import datetime
import re
from dataclasses import dataclass
from typing import Any

KNOT_KMH = 1.852

_SENTENCE = re.compile(rb"[$!]([ -#%-)+-~]*)\*([0-9A-Fa-f]{2})")
_TIME = re.compile(r"(\d\d)(\d\d)(\d\d)(\.\d{1,3})?\d*")
_DATE = re.compile(r"(\d\d)(\d\d)(\d\d)")
_ANGLE = re.compile(r"(\d{2,3})(\d\d(?:\.\d+)?)")
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?")

# The quality of a fix, by its number in GGA.
QUALITIES = ["none", "gnss", "differential", "pps", "rtk", "rtk_float", "dead_reckoning", "manual", "simulated"]
# The mode of a position, by its letter in RMC.
MODES = {
    "A": "autonomous",
    "D": "differential",
    "E": "dead_reckoning",
    "F": "rtk_float",
    "M": "manual",
    "N": "none",
    "P": "precise",
    "R": "rtk",
    "S": "simulated",
}


class Malformed(Exception):
    """Bytes are not what the standard says."""


@dataclass
class Sentence:
    talker: str
    """GP, GN, GL and so on; P for a sentence of a maker's own."""
    kind: str
    fields: list[str]

    def field(self, number: int) -> str:
        """The field with this number, as the standard counts them from 1; empty when it is not there."""
        return self.fields[number - 1] if number <= len(self.fields) else ""


def checksum(body: bytes) -> int:
    result = 0
    for byte in body:
        result ^= byte
    return result


def seal(body: bytes) -> bytes:
    """The whole sentence of what stands between "$" and "*"."""
    return b"$%b*%02X\r\n" % (body, checksum(body))


def parse(line: bytes) -> Sentence:
    found = _SENTENCE.fullmatch(line)
    if not found:
        raise Malformed('expected "$", printable characters, "*" and two hexadecimal digits')
    body, digits = found[1], found[2]
    if int(digits, 16) != checksum(body):
        raise Malformed(f"expected the checksum {checksum(body):02X}, found {digits.decode()}")
    address, *fields = body.decode("ascii").split(",")
    if address.startswith("P"):
        return Sentence("P", address[1:], fields)
    if len(address) != 5:
        raise Malformed(f'expected a talker of 2 and a kind of 3 characters, found "{address}"')
    return Sentence(address[:2], address[2:], fields)


def position(rmc: Sentence) -> dict[str, Any]:
    """RMC: place, speed, course, time and date. What the receiver left empty is left out."""
    status = rmc.field(2)
    if status not in ("A", "V"):
        raise Malformed(f'expected the status A or V, found "{status}"')
    date, time = _date(rmc.field(9)), _time(rmc.field(1))
    speed = _number("speed", rmc.field(7))
    return _present(
        talker=rmc.talker,
        time=f"{date}T{time}" if date and time else None,
        positioned=status == "A",
        **_place(rmc, 3),
        speed_kmh=None if speed is None else round(speed * KNOT_KMH, 3),
        course_deg=_number("course", rmc.field(8)),
        magnetic_variation_deg=_signed("magnetic variation", rmc.field(10), rmc.field(11), "EW"),
        mode=MODES.get(rmc.field(12), rmc.field(12)) or None,
    )


def fix(gga: Sentence) -> dict[str, Any]:
    """GGA: place, height, and how good they are; a time without a date. What the receiver left empty is left out."""
    quality = gga.field(6)
    if not quality.isdecimal() or int(quality) >= len(QUALITIES):
        raise Malformed(f'expected a quality of 0 to {len(QUALITIES) - 1}, found "{quality}"')
    satellites = gga.field(7)
    if satellites and not satellites.isdecimal():
        raise Malformed(f'expected a number of satellites, found "{satellites}"')
    station = gga.field(14)
    return _present(
        talker=gga.talker,
        time_of_day=_time(gga.field(1)),
        positioned=quality != "0",
        **_place(gga, 2),
        quality=QUALITIES[int(quality)],
        satellites=int(satellites) if satellites else None,
        hdop=_number("HDOP", gga.field(8)),
        altitude_m=_number("altitude", gga.field(9)),
        geoid_separation_m=_number("geoid separation", gga.field(11)),
        differential_age_s=_number("age", gga.field(13)),
        station=station or None,
    )


def _present(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _place(sentence: Sentence, first: int) -> dict[str, float | None]:
    latitude, north, longitude, east = (sentence.field(first + index) for index in range(4))
    return {
        "latitude": _angle("latitude", latitude, north, "NS", 90),
        "longitude": _angle("longitude", longitude, east, "EW", 180),
    }


def _angle(name: str, text: str, side: str, sides: str, degrees_max: int) -> float | None:
    """Degrees and minutes, (d)ddmm.mm, as degrees to the ten-millionth."""
    if not text:
        return None
    found = _ANGLE.fullmatch(text)
    degrees = int(found[1]) + float(found[2]) / 60 if found and float(found[2]) < 60 else None
    if degrees is None or degrees > degrees_max or side not in tuple(sides):
        raise Malformed(f'expected a {name} up to {degrees_max} degrees with {sides[0]} or {sides[1]}, found "{text},{side}"')
    return round(-degrees if side == sides[1] else degrees, 7)


def _signed(name: str, text: str, side: str, sides: str) -> float | None:
    number = _number(name, text)
    if number is None:
        return None
    if side not in tuple(sides):
        raise Malformed(f'expected a {name} with {sides[0]} or {sides[1]}, found "{text},{side}"')
    return -number if side == sides[1] else number


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise Malformed(f'expected a {name} in decimal digits, found "{text}"')
    return float(text)


def _time(text: str) -> str | None:
    """hhmmss.ss as hh:mm:ss.ssZ, to the millisecond."""
    if not text:
        return None
    found = _TIME.fullmatch(text)
    # 60 is a leap second.
    if not found or int(found[1]) > 23 or int(found[2]) > 59 or int(found[3]) > 60:
        raise Malformed(f'expected a time hhmmss, found "{text}"')
    return f"{found[1]}:{found[2]}:{found[3]}{found[4] or ''}Z"


def _date(text: str) -> str | None:
    """ddmmyy; the satellites have been up since 1980."""
    if not text:
        return None
    found = _DATE.fullmatch(text)
    try:
        if found:
            year = int(found[3])
            return datetime.date(year + (1900 if year >= 80 else 2000), int(found[2]), int(found[1])).isoformat()
    except ValueError:
        pass
    raise Malformed(f'expected a date ddmmyy, found "{text}"')
