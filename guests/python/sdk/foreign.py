"""Peers that speak another protocol: when to end them, and what the log says of them.

    foreign = Foreign("NMEA 0183")
    connection.start_keepalive(KEEPALIVE_MS)   # before the first frame: it runs out after 60 s
    foreign.stray(data)                        # bytes in no frame
    if foreign.ends():
        foreign.log()
        connection.close()
"""

import re

from polygate import log, now_ms

# So many bytes in no frame, one after the other, end a peer; and for so long they may come, in milliseconds.
BYTES_MAX = 4096
AGE_MAX_MS = 60_000
# For start_keepalive before the first frame, in milliseconds.
KEEPALIVE_MS = 40_000
# Bytes that the log shows.
_FIRST_MAX = 16

_KNOWN = {
    b"xx": "GT06",
    b"yy": "GT06",
    b"##,imei:": "GPS103",
    b"imei:": "GPS103",
    b"##": "GB/T 32960",
    b"\x7e": "JT/T 808",
    b"\x00\x0f": "Teltonika",
    b"\x00\x00\x00\x00": "Teltonika",
    b"$$": "Meitrack",
    b"!AIVD": "AIS (NMEA 0183)",
    b"LOGIN ": "NMEA 0183",
    b"+RESP:": "Queclink",
    b"+BUFF:": "Queclink",
    b"+ACK:": "Queclink",
    b"\x16\x03": "TLS",
    b"GET ": "HTTP",
    b"POST ": "HTTP",
    b"PUT ": "HTTP",
    b"HEAD ": "HTTP",
    b"OPTIONS ": "HTTP",
    b"CONNECT ": "HTTP",
    b"PRI * HTTP/2": "HTTP/2",
    b"SSH-": "SSH",
    b"PROXY ": "a PROXY header",
    b"\r\n\r\n\x00\r\nQUIT\n": "a PROXY header",
    b"\x03\x00": "RDP",
}
_KNOWN_FORMS = [
    (re.compile(rb"\*..,", re.DOTALL), "H02"),
    (re.compile(rb"\$[A-Z]"), "NMEA 0183"),
    (re.compile(rb"\$[^0-9]", re.DOTALL), "H02"),
    (re.compile(rb"\([0-9]"), "TK103"),
    (re.compile(rb"\[.[A-Z]", re.DOTALL), "Watch (3G)"),
    (re.compile(rb"\x10...MQTT", re.DOTALL), "MQTT"),
]


def protocol_of(first: bytes) -> str | None:
    """Which protocol begins like this; None when it is none that is known here."""
    for begins, name in _KNOWN.items():
        if first.startswith(begins):
            return name
    for form, name in _KNOWN_FORMS:
        if form.match(first):
            return name
    return None


class Foreign:
    """Bytes since the latest frame that are in none."""

    def __init__(self, protocol: str) -> None:
        """The protocol is the handler's own, for the log."""
        self._protocol = protocol
        self._first = b""
        self._since_ms: int | None = None
        self.bytes = 0
        self.framed = False
        """Whether a frame was ever seen."""

    def stray(self, data: bytes) -> None:
        """These are in no frame."""
        if self._since_ms is None:
            self._since_ms = now_ms()
        self.bytes += len(data)
        self._first += data[: _FIRST_MAX - len(self._first)]

    def frame(self) -> None:
        """A frame was seen: all begins anew."""
        self._first, self._since_ms, self.bytes, self.framed = b"", None, 0, True

    def ends(self) -> bool:
        """Whether the peer is to be ended."""
        if self._since_ms is None:
            return False
        return self.bytes >= BYTES_MAX or now_ms() - self._since_ms >= AGE_MAX_MS

    def log(self, why: str = "") -> None:
        """What came, as a warning."""
        name = protocol_of(self._first)
        looks = f"; they look like {name}" if name else ""
        log("warn", f"{self.bytes} bytes that are no frame of {self._protocol}, beginning with {self._first.hex()}{looks}{why and '; ' + why}")
