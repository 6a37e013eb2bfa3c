"""NMEA 0183: what a sentence is, and what stands in the ones that are known here. Knows nothing of connections.

    $GPRMC,083000.00,A,3113.82496,N,12128.42206,E,32.4,90.0,150126,,,A*53

A sentence begins with "$" (or "!", when it is encapsulated), has its talker and kind in the first field, and ends in "*" and
the exclusive-or of all bytes between, as two hexadecimal digits.
"""

import datetime
import re
from dataclasses import dataclass
from typing import Any

KNOT_KMH = 1.852

_SENTENCE = re.compile(rb"[$!]([ -#%-)+-~]*)(?:\*([0-9A-Fa-f]{2}))?")
# What may stand before a sentence in its line: a tag block, or what a modem writes.
_BEFORE = re.compile(rb"[^$!]*(?=[$!])")
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


class NoSentence(Exception):
    """Bytes are no sentence, or a broken one."""


class Malformed(Exception):
    """A sentence does not say what the standard has for its kind."""


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


def parse(line: bytes, *, checksum_optional: bool = False) -> Sentence:
    """The sentence in a line, whatever stands before it."""
    before = _BEFORE.match(line)
    found = _SENTENCE.fullmatch(line[before.end() :] if before else line)
    if not found:
        raise NoSentence('expected "$" or "!", printable characters, "*" and two hexadecimal digits')
    body, digits = found[1], found[2]
    if digits is None and not checksum_optional:
        raise NoSentence('expected "*" and a checksum, found none; the setting checksum = "optional" allows that')
    if digits is not None and int(digits, 16) != checksum(body):
        raise NoSentence(f"expected the checksum {checksum(body):02X}, found {digits.decode()}")
    address, *fields = body.decode("ascii").split(",")
    if address.startswith("P"):
        return Sentence("P", address[1:], fields)
    if len(address) != 5:
        raise Malformed(f'expected a talker of 2 and a kind of 3 characters, found "{address}"')
    return Sentence(address[:2], address[2:], fields)


def prefix(line: bytes) -> bytes:
    """What stands before the sentence in a line."""
    before = _BEFORE.match(line)
    return before[0] if before else b""


class Odd(list[str]):
    """What of a sentence cannot be; it is left out, and the rest counts."""

    def without(self, read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except Malformed as error:
            self.append(str(error))
            return None


def position(rmc: Sentence) -> dict[str, Any]:
    """RMC: place, speed, course, time and date. What the receiver left empty is left out."""
    status = rmc.field(2)
    if status not in ("A", "V"):
        raise Malformed(f'expected the status A or V, found "{status}"')
    place, odd = _place(rmc, 3), Odd()
    date, time = odd.without(_date, rmc.field(9)), odd.without(_time, rmc.field(1))
    speed = odd.without(_number, "speed", rmc.field(7))
    return _present(
        talker=rmc.talker,
        kind=rmc.kind,
        time=f"{date}T{time}" if date and time else None,
        time_of_day=time if time and not date else None,
        positioned=status == "A",
        **place,
        speed_knots=speed,
        speed_kmh=_kmh(speed),
        course_deg=odd.without(_number, "course", rmc.field(8)),
        magnetic_variation_deg=odd.without(_signed, "magnetic variation", rmc.field(10), rmc.field(11), "EW"),
        mode=MODES.get(rmc.field(12), rmc.field(12)) or None,
        nav_status=rmc.field(13) or None,
        odd=list(odd) or None,
    )


def gll(sentence: Sentence) -> dict[str, Any]:
    """GLL: place and time of day."""
    status = sentence.field(6)
    if status not in ("A", "V", ""):
        raise Malformed(f'expected the status A or V, found "{status}"')
    place, odd = _place(sentence, 1), Odd()
    return _present(
        talker=sentence.talker,
        kind=sentence.kind,
        time_of_day=odd.without(_time, sentence.field(5)),
        positioned=status != "V" and place["latitude"] is not None,
        **place,
        mode=MODES.get(sentence.field(7), sentence.field(7)) or None,
        odd=list(odd) or None,
    )


def gns(sentence: Sentence) -> dict[str, Any]:
    """GNS: as GGA, with a mode for each constellation: GPS, GLONASS, Galileo, BeiDou, QZSS, NavIC."""
    place, odd, modes = _place(sentence, 2), Odd(), sentence.field(6)
    return _present(
        talker=sentence.talker,
        kind=sentence.kind,
        time_of_day=odd.without(_time, sentence.field(1)),
        positioned=any(mode != "N" for mode in modes) and place["latitude"] is not None,
        **place,
        modes=[MODES.get(mode, mode) for mode in modes] or None,
        satellites=odd.without(_count, "number of satellites", sentence.field(7)),
        hdop=odd.without(_number, "HDOP", sentence.field(8)),
        altitude_m=odd.without(_number, "altitude", sentence.field(9)),
        geoid_separation_m=odd.without(_number, "geoid separation", sentence.field(10)),
        differential_age_s=odd.without(_number, "age", sentence.field(11)),
        station=sentence.field(12) or None,
        nav_status=sentence.field(13) or None,
        odd=list(odd) or None,
    )


def pubx_position(sentence: Sentence) -> dict[str, Any]:
    """PUBX,00: u-blox's own position, with speed and course."""
    # The first field is the number of the message.
    body = Sentence("P", "PUBX,00", sentence.fields[1:])
    place, odd, status = _place(body, 2), Odd(), body.field(7)
    return _present(
        talker="P",
        kind="PUBX,00",
        time_of_day=odd.without(_time, body.field(1)),
        positioned=status not in ("NF", "") and place["latitude"] is not None,
        **place,
        altitude_m=odd.without(_number, "altitude", body.field(6)),
        status=status or None,
        horizontal_accuracy_m=odd.without(_number, "accuracy", body.field(8)),
        vertical_accuracy_m=odd.without(_number, "accuracy", body.field(9)),
        speed_kmh=odd.without(_number, "speed", body.field(10)),
        course_deg=odd.without(_number, "course", body.field(11)),
        vertical_speed_m_s=odd.without(_number, "speed", body.field(12)),
        hdop=odd.without(_number, "HDOP", body.field(14)),
        vdop=odd.without(_number, "VDOP", body.field(15)),
        tdop=odd.without(_number, "TDOP", body.field(16)),
        satellites=odd.without(_count, "number of satellites", body.field(17)),
        odd=list(odd) or None,
    )


def vtg(sentence: Sentence) -> dict[str, Any]:
    """VTG: course and speed over ground. Before 2.0 there were four fields without their units."""
    odd = Odd()
    if sentence.field(2) in ("T", ""):
        course, magnetic, knots, kmh, mode = (sentence.field(number) for number in (1, 3, 5, 7, 9))
    else:
        course, magnetic, knots, kmh = (sentence.field(number) for number in range(1, 5))
        mode = ""
    return _present(
        course_true_deg=odd.without(_number, "course", course),
        course_magnetic_deg=odd.without(_number, "course", magnetic),
        speed_knots=odd.without(_number, "speed", knots),
        speed_kmh=odd.without(_number, "speed", kmh),
        mode=MODES.get(mode, mode) or None,
        odd=list(odd) or None,
    )


def gsa(sentence: Sentence) -> dict[str, Any]:
    """GSA: which satellites are used, and how good their geometry is."""
    odd = Odd()
    used = [odd.without(_count, "satellite", sentence.field(number)) for number in range(3, 15)]
    return _present(
        selection={"A": "automatic", "M": "manual"}.get(sentence.field(1), sentence.field(1)) or None,
        fix={"1": "none", "2": "2d", "3": "3d"}.get(sentence.field(2), sentence.field(2)) or None,
        used=[number for number in used if number is not None],
        pdop=odd.without(_number, "PDOP", sentence.field(15)),
        hdop=odd.without(_number, "HDOP", sentence.field(16)),
        vdop=odd.without(_number, "VDOP", sentence.field(17)),
        system=sentence.field(18) or None,
        odd=list(odd) or None,
    )


def gsv(sentence: Sentence) -> dict[str, Any]:
    """GSV: the satellites in view, up to four a sentence. Since 4.1 a signal may follow them."""
    odd = Odd()
    satellites = []
    fields = sentence.fields[3:]
    signal = fields.pop() if len(fields) % 4 == 1 else ""
    for at in range(0, len(fields) - 3, 4):
        numbers = [odd.without(_count, "number", field) for field in fields[at : at + 4]]
        if any(number is not None for number in numbers):
            satellites.append(dict(zip(("prn", "elevation", "azimuth", "snr"), numbers, strict=True)))
    return _present(
        sentences=odd.without(_count, "number of sentences", sentence.field(1)),
        number=odd.without(_count, "number", sentence.field(2)),
        in_view=odd.without(_count, "number of satellites", sentence.field(3)),
        satellites=satellites,
        signal=signal or None,
        odd=list(odd) or None,
    )


def zda(sentence: Sentence) -> dict[str, Any]:
    """ZDA: time and date in UTC, and the local zone."""
    odd = Odd()
    time = odd.without(_time, sentence.field(1))
    day, month, year = (odd.without(_count, "number", sentence.field(number)) for number in (2, 3, 4))
    date = odd.without(_calendar, year, month, day) if None not in (day, month, year) else None
    return _present(
        time=f"{date}T{time}" if date and time else None,
        zone_hours=odd.without(_integer, "zone", sentence.field(5)),
        zone_minutes=odd.without(_integer, "zone", sentence.field(6)),
        odd=list(odd) or None,
    )


def hdt(sentence: Sentence) -> dict[str, Any]:
    """HDT: where the bow points."""
    odd = Odd()
    return _present(heading_deg=odd.without(_number, "heading", sentence.field(1)), odd=list(odd) or None)


# Sentences that are published with their fields, and what is known of them beside that.
DECODED = {"VTG": vtg, "GSA": gsa, "GSV": gsv, "ZDA": zda, "HDT": hdt}
# Sentences with a place, but no date.
FIXES = {"GLL": gll, "GNS": gns}


def fix(gga: Sentence) -> dict[str, Any]:
    """GGA: place, height, and how good they are; a time without a date. What the receiver left empty is left out."""
    quality = gga.field(6)
    if not any(gga.fields):
        # A receiver that has just been switched on knows nothing, not even that.
        return {"talker": gga.talker, "kind": gga.kind, "positioned": False}
    if not quality.isdecimal() or int(quality) >= len(QUALITIES):
        raise Malformed(f'expected a quality of 0 to {len(QUALITIES) - 1}, found "{quality}"')
    place, odd = _place(gga, 2), Odd()
    return _present(
        talker=gga.talker,
        kind=gga.kind,
        time_of_day=odd.without(_time, gga.field(1)),
        positioned=quality != "0",
        **place,
        quality=QUALITIES[int(quality)],
        satellites=odd.without(_count, "number of satellites", gga.field(7)),
        hdop=odd.without(_number, "HDOP", gga.field(8)),
        altitude_m=odd.without(_number, "altitude", gga.field(9)),
        geoid_separation_m=odd.without(_number, "geoid separation", gga.field(11)),
        differential_age_s=odd.without(_number, "age", gga.field(13)),
        station=gga.field(14) or None,
        odd=list(odd) or None,
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


def _kmh(knots: float | None) -> float | None:
    return None if knots is None else round(knots * KNOT_KMH, 3)


def _count(name: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise Malformed(f'expected a {name} in decimal digits, found "{text}"')
    return int(text)


def _integer(name: str, text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", text):
        raise Malformed(f'expected a {name} of up to three digits, found "{text}"')
    return int(text)


def _calendar(year: int, month: int, day: int) -> str:
    try:
        return datetime.date(year, month, day).isoformat()
    except ValueError:
        raise Malformed(f"expected a date, found {year}-{month}-{day}") from None


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
