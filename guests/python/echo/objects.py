"""Cuts a stream of JSON objects, written one after the other, into single ones. Knows nothing of their contents."""

import re
from collections.abc import Iterator

# The longest object: what a connection may keep of an unfinished one, in bytes.
OBJECT_MAX = 1 << 20

# What matters outside of a string, and in one. An escape takes the byte after it along, if that has arrived.
OUTSIDE = re.compile(rb'[{}"]')
INSIDE = re.compile(rb'"|\\(?s:.)?')
STRAY = re.compile(rb"[^ \t\n\f\r{]")


class Broken(Exception):
    """A stream cannot be cut any further."""


class Objects:
    """It only counts braces outside of strings, which is enough to find the end of an object that is well-formed.

    Whether it is, its reader will say.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    def push(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes and gives the objects that they complete. Raises Broken."""
        self._held += data
        while (end := self._end()) is not None:
            found = bytes(self._held[:end])
            del self._held[:end]
            self._scanned = 0
            yield found
        if len(self._held) > OBJECT_MAX:
            raise Broken(f"expected an object of at most {OBJECT_MAX} bytes")

    def _end(self) -> int | None:
        """Where the first object ends, if it does; what was scanned is not scanned again."""
        if self._depth == 0:
            begin = self._held.find(b"{")
            stray = STRAY.search(self._held, 0, len(self._held) if begin < 0 else begin)
            if stray:
                raise Broken(f"expected a JSON object, found byte 0x{stray[0].hex()}")
            if begin < 0:
                self._held.clear()
                return None
            del self._held[:begin]
        while found := (INSIDE if self._in_string else OUTSIDE).search(self._held, self._scanned):
            if found[0] == b"\\":
                # The escaped byte has not arrived: here it goes on.
                self._scanned = found.start()
                return None
            self._scanned = found.end()
            match found[0]:
                case b'"':
                    self._in_string = not self._in_string
                case b"{":
                    self._depth += 1
                case b"}":
                    self._depth -= 1
                    if self._depth == 0:
                        return self._scanned
        self._scanned = len(self._held)
        return None
