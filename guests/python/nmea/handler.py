"""A handler for receivers that send NMEA 0183 over TCP: their positions become JSON messages, and messages become sentences.

What it publishes, and its limits, are listed in README.md.
"""

import json
import re
from typing import Any

import polygate
from polygate import Connection, LineTooLong, Message, Refused, log
from sentence import Malformed, fix, parse, position, seal

# The standard has 82 with the end; receivers exceed it in sentences of their own.
LINE_MAX = 256
# What leaves room for "$", "*", the checksum and the end in the standard's 82.
COMMAND_MAX = 76
# Further warnings about one peer's faults are debug lines.
WARNINGS_MAX = 10
KEEPALIVE_S_DEFAULT = 300
KEEPALIVE_S_MAX = 65_535

LOGIN = re.compile(rb"LOGIN ([A-Za-z0-9._-]{1,64})(?: ([!-~]{1,128}))?")
COMMAND = re.compile(rb"[ -#%-)+-~]+")


class Nmea(polygate.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._lines = polygate.Lines(LINE_MAX)
        self._client: str | None = None
        self._closing = False
        self._faults = 0
        self._others = 0
        self._publish_others = one_of("others", ("drop", "publish")) == "publish"
        connection.start_keepalive(keepalive_s() * 1000)

    def on_bytes(self, data: bytes) -> None:
        try:
            for line in self._lines.push(data):
                if self._closing:
                    return
                if line:
                    self._on_line(line)
        except LineTooLong as error:
            if not self._closing:
                log("warn", f"{error}; closing")
                self._close()

    def on_message(self, message: Message) -> None:
        command = message.payload
        try:
            if len(command) > COMMAND_MAX or not COMMAND.fullmatch(command):
                raise Malformed(f'expected 1 to {COMMAND_MAX} printable characters without "$" and "*"')
            self.connection.send(seal(command))
        except (Malformed, Refused) as error:
            self._tell("command/error", {"error": str(error)})

    def on_closed(self, reason: str) -> None:
        if self._faults or self._others:
            log("info", f"{self._faults} sentences were refused, {self._others} of other kinds were dropped")

    def _on_line(self, line: bytes) -> None:
        if self._client is None:
            self._login(line)
            return
        try:
            sentence = parse(line)
            if sentence.kind == "RMC":
                self._tell("position", position(sentence))
            elif sentence.kind == "GGA":
                self._tell("fix", fix(sentence))
            elif self._publish_others:
                self._tell("sentence", {"talker": sentence.talker, "kind": sentence.kind, "fields": sentence.fields})
            else:
                self._others += 1
        except Malformed as error:
            self._faults += 1
            log("warn" if self._faults <= WARNINGS_MAX else "debug", f"a sentence is refused: {error}")

    def _login(self, line: bytes) -> None:
        """The first line says who the receiver is."""
        found = LOGIN.fullmatch(line)
        if not found:
            log("warn", "expected LOGIN, a client id and perhaps a password; closing")
            self._refuse("expected LOGIN <client> [<password>]")
            return
        client, password = found[1].decode(), found[2].decode() if found[2] else None
        try:
            self.connection.authenticate(client, username=client, password=password, proto_name="nmea0183")
            self.connection.subscribe(f"nmea/{client}/command", 1)
        except Refused as refused:
            log("info", f"{client} is refused: {refused}")
            self._refuse(refused.code)
            return
        self._client = client
        self.connection.send("OK\r\n")

    def _refuse(self, why: str) -> None:
        self.connection.send(f"ERR {why}\r\n")
        self._close()

    def _close(self) -> None:
        self._closing = True
        self.connection.close()

    def _tell(self, what: str, members: dict[str, Any]) -> None:
        """Publishes JSON. A receiver waits for no answer, so what is refused is lost, and logged."""
        try:
            payload = json.dumps({"client": self._client, **members}, separators=(",", ":"))
            self.connection.publish(f"nmea/{self._client}/{what}", payload, 1)
        except Refused as refused:
            self._faults += 1
            log("warn" if self._faults <= WARNINGS_MAX else "debug", f"a {what} is lost: {refused}")


def one_of(name: str, values: tuple[str, ...]) -> str:
    """A setting; the first value is its default."""
    value = polygate.setting(name) or values[0]
    if value not in values:
        log("error", f'setting {name}: expected one of {", ".join(values)}, found "{value}"; using {values[0]}')
        return values[0]
    return value


def keepalive_s() -> int:
    text = polygate.setting("keepalive_s") or str(KEEPALIVE_S_DEFAULT)
    if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= KEEPALIVE_S_MAX:
        return int(text)
    log("error", f'setting keepalive_s: expected 1 to {KEEPALIVE_S_MAX}, found "{text}"; using {KEEPALIVE_S_DEFAULT}')
    return KEEPALIVE_S_DEFAULT


Handler = polygate.serve(Nmea)
