"""AIS (ITU-R M.1371): what ships tell of themselves, in the payloads of VDM and VDO. Knows nothing of connections.

A message comes in one sentence or in several, which are put together by their sequence number and channel. Its payload has six
bits a character. Positions, and the names of ships, are decoded. The library pyais would do this and more, but with it an
instance has 18.5 MiB of memory instead of 12.5, and a handler has 16 unless it is given more; so it is only what this was
compared with.
"""

from typing import Any

# Messages of which not all sentences have come; one more drops the oldest.
_UNFINISHED_MAX = 8
_CHARACTERS = "@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_ !\"#$%&'()*+,-./0123456789:;<=>?"

STATUSES = [
    "under_way_using_engine",
    "at_anchor",
    "not_under_command",
    "restricted_manoeuvrability",
    "constrained_by_draught",
    "moored",
    "aground",
    "fishing",
    "under_way_sailing",
]


class Undecodable(Exception):
    """A payload is not what M.1371 says."""


class Ais:
    """The unfinished messages of one receiver."""

    def __init__(self) -> None:
        self._unfinished: dict[tuple[str, str, int], dict[int, list[str]]] = {}

    def push(self, fields: list[str]) -> dict[str, Any]:
        """What a message says, once all of its sentences have come; empty before, and for a type that is not decoded here.

        The fields: sentences, number, sequence, channel, payload, fill bits.
        """
        fields = [*fields, "", "", "", "", "", ""][:6]
        total, number = _digit("number of sentences", fields[0]), _digit("number", fields[1])
        if not 1 <= number <= total:
            raise Undecodable(f"expected a sentence of 1 to {total}, found {number}")
        parts = {number: fields}
        if total > 1:
            key = fields[2], fields[3], total
            parts = self._unfinished.pop(key, {}) | parts
            if len(parts) < total:
                self._unfinished[key] = parts
                if len(self._unfinished) > _UNFINISHED_MAX:
                    self._unfinished.pop(next(iter(self._unfinished)))
                return {}
        return _decode("".join(_bits(parts[part][4], parts[part][5]) for part in sorted(parts)))


def _digit(name: str, text: str) -> int:
    if len(text) != 1 or not text.isascii() or not text.isdecimal():
        raise Undecodable(f'expected a {name} of one digit, found "{text}"')
    return int(text)


def _bits(payload: str, fill: str) -> str:
    bits = []
    for character in payload:
        value = ord(character) - 48
        value -= 8 if value > 40 else 0
        if not 0 <= value < 64:
            raise Undecodable(f'expected a payload of "0" to "w", found "{character}"')
        bits.append(f"{value:06b}")
    unused = _digit("number of fill bits", fill or "0")
    joined = "".join(bits)
    return joined[: len(joined) - unused] if unused else joined


class _Message:
    """Reads fields by their place; what lies behind the end of a message is not there."""

    def __init__(self, bits: str) -> None:
        self._bits = bits

    def unsigned(self, at: int, length: int) -> int:
        if at + length > len(self._bits):
            raise Undecodable(f"expected {at + length} bits, found {len(self._bits)}")
        return int(self._bits[at : at + length], 2)

    def signed(self, at: int, length: int) -> int:
        value = self.unsigned(at, length)
        return value - (1 << length) if value >> (length - 1) else value

    def text(self, at: int, length: int) -> str:
        end = min(at + length, len(self._bits) - (len(self._bits) - at) % 6)
        characters = [_CHARACTERS[self.unsigned(place, 6)] for place in range(at, end, 6)]
        return "".join(characters).partition("@")[0].rstrip()


def _decode(bits: str) -> dict[str, Any]:
    message = _Message(bits)
    kind = message.unsigned(0, 6)
    members: dict[str, Any] = {"message_type": kind, "mmsi": message.unsigned(8, 30)}
    if kind in (1, 2, 3):
        status = message.unsigned(38, 4)
        members["status"] = STATUSES[status] if status < len(STATUSES) else f"status_{status}"
        members |= _motion(message, 50, 61, 116, 128) | {"position_accurate": message.unsigned(60, 1) == 1}
    elif kind in (4, 11):
        members |= _utc(message) | _place(message, 79, 28, 27, 600_000)
    elif kind == 9:
        altitude, speed = message.unsigned(38, 12), message.unsigned(50, 10)
        members |= {} if altitude == 4095 else {"altitude_m": altitude}
        members |= {} if speed == 1023 else {"speed_knots": speed}
        members |= _place(message, 61, 28, 27, 600_000) | _course(message.unsigned(116, 12))
    elif kind in (18, 19):
        members |= _motion(message, 46, 57, 112, 124)
        if kind == 19:
            members |= {"name": message.text(143, 120), "ship_type": message.unsigned(263, 8)}
    elif kind == 21:
        members |= {"aid_type": message.unsigned(38, 5), "name": message.text(43, 120)}
        members |= _place(message, 164, 28, 27, 600_000)
    elif kind == 27:
        speed, course = message.unsigned(79, 6), message.unsigned(85, 9)
        members |= _place(message, 44, 18, 17, 600)
        members |= {} if speed == 63 else {"speed_knots": speed}
        members |= {} if course >= 360 else {"course_deg": course}
    elif kind == 5:
        members |= {
            "imo": message.unsigned(40, 30),
            "callsign": message.text(70, 42),
            "name": message.text(112, 120),
            "ship_type": message.unsigned(232, 8),
            "draught_m": message.unsigned(294, 8) / 10,
            "destination": message.text(302, 120),
        }
    elif kind == 24 and message.unsigned(38, 2) == 0:
        members["name"] = message.text(40, 120)
    elif kind == 24:
        members |= {"ship_type": message.unsigned(40, 8), "callsign": message.text(90, 42)}
    return members


def _motion(message: _Message, speed_at: int, longitude_at: int, course_at: int, heading_at: int) -> dict[str, Any]:
    speed, heading = message.unsigned(speed_at, 10), message.unsigned(heading_at, 9)
    members = _place(message, longitude_at, 28, 27, 600_000)
    members |= {} if speed == 1023 else {"speed_knots": speed / 10}
    members |= _course(message.unsigned(course_at, 12))
    return members | ({} if heading >= 360 else {"heading_deg": heading})


def _place(message: _Message, at: int, longitude_bits: int, latitude_bits: int, a_degree: int) -> dict[str, Any]:
    """181 and 91 degrees stand for a place that is not known."""
    longitude = message.signed(at, longitude_bits) / a_degree
    latitude = message.signed(at + longitude_bits, latitude_bits) / a_degree
    if abs(longitude) > 180 or abs(latitude) > 90:
        return {"positioned": False}
    return {"positioned": True, "latitude": round(latitude, 6), "longitude": round(longitude, 6)}


def _course(tenths: int) -> dict[str, Any]:
    return {} if tenths >= 3600 else {"course_deg": tenths / 10}


def _utc(message: _Message) -> dict[str, Any]:
    year, month, day = message.unsigned(38, 14), message.unsigned(52, 4), message.unsigned(56, 5)
    hour, minute, second = message.unsigned(61, 5), message.unsigned(66, 6), message.unsigned(72, 6)
    if not year or not 1 <= month <= 12 or not day or hour > 23 or minute > 59 or second > 59:
        return {}
    return {"time": f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"}
