"""Lines of text. The first is "HELLO <clientid>"; each one after it is published on up; what arrives on down is sent."""

import re
from collections.abc import Callable

import polygate
from polygate import Connection, LineTooLong, Lines, Message, Refused, log

LINE_BYTES_MAX = 1024
KEEPALIVE_MS = 300_000


class Device(polygate.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._lines = Lines(LINE_BYTES_MAX)
        self._known = False
        self._closing = False

    def on_bytes(self, data: bytes) -> None:
        try:
            for line in self._lines.push(data):
                if not self._closing:
                    self._answer(lambda: self.connection.publish("up", line, 1) if self._known else self._hello(line))
        except LineTooLong as error:
            log("warn", f"{error}; closing")
            self._close()

    def on_message(self, message: Message) -> None:
        self.connection.send(message.payload + b"\n")

    def on_keepalive_timeout(self) -> None:
        self._close()

    def _hello(self, line: bytes) -> None:
        found = re.fullmatch(rb"HELLO ([!-~]+)", line)
        if not found:
            raise Refused("hello", "bad-params")
        self.connection.authenticate(found[1].decode(), proto_name="lines")
        self.connection.start_keepalive(KEEPALIVE_MS)
        self.connection.subscribe("down", 1)
        self._known = True

    def _answer(self, request: Callable[[], None]) -> None:
        try:
            request()
            self.connection.send("OK\n")
        except Refused as refused:
            self.connection.send(f"ERR {refused.code}\n")
            if not self._known:
                self._close()

    def _close(self) -> None:
        self._closing = True
        self.connection.close()


Handler = polygate.serve(Device)
