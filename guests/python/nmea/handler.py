"""A handler for receivers that send NMEA 0183: their positions become JSON messages, and messages become sentences.

What it publishes, and its limits, are listed in README.md.
"""

import json
import re
from typing import Any

import foreign
import polygate
import sentence as nmea
from ais import Ais, Undecodable
from foreign import Foreign
from polygate import Connection, LineTooLong, Message, Refused, log
from sentence import Malformed, NoSentence, Sentence, parse, seal

# The standard has 82 with the end; receivers exceed it in sentences of their own.
LINE_MAX = 256
# What leaves room for "$", "*", the checksum and the end in the standard's 82.
COMMAND_MAX = 76
# Kinds of faults that are counted by themselves.
KINDS_MAX = 32
KEEPALIVE_S_DEFAULT = 300
KEEPALIVE_S_MAX = 65_535

LOGIN = re.compile(rb"LOGIN ([A-Za-z0-9._-]{1,64})(?: ([!-~]{1,128}))?")
COMMAND = re.compile(rb"[ -#%-)+-~]+")
# With identity = "prefix": what stands before a sentence, or alone on a line.
IMEI_LINE = re.compile(rb"(?:IMEI|ID)[ :=]*([0-9A-Za-z._-]{1,64})")
PREFIX = re.compile(rb"([A-Za-z0-9._-]{1,64})[ ,;:|]*")


class Nmea(polygate.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._lines = polygate.Lines(LINE_MAX)
        self._client: str | None = None
        self._closing = False
        self._dropped = 0
        self._faults: dict[str, int] = {}
        self._foreign = Foreign("NMEA 0183")
        self._ais = Ais()
        self._publish_others = one_of("others", ("publish", "drop")) == "publish"
        self._checksum_optional = one_of("checksum", ("required", "optional")) == "optional"
        self._identity = one_of("identity", ("login", "prefix", "listener"))
        self._keepalive_ms = keepalive_s() * 1000
        # Until it has said who it is a peer has 60 s.
        connection.start_keepalive(min(self._keepalive_ms, foreign.KEEPALIVE_MS))

    def on_bytes(self, data: bytes) -> None:
        if self._closing:
            return
        if not self._foreign.framed:
            self._foreign.stray(data)
        try:
            # Some multiplexers end lines with CR alone; empty lines are none.
            for line in self._lines.push(data.replace(b"\r", b"\n")):
                if line and not self._closing:
                    self._on_line(line)
        except LineTooLong as error:
            if not self._closing:
                if self._foreign.framed:
                    self._foreign.stray(data)
                self._end(str(error))
        if not self._closing and self._foreign.bytes and self._foreign.ends():
            self._end()

    def on_keepalive_timeout(self) -> None:
        if not self._foreign.framed and self._foreign.bytes:
            self._foreign.log()

    def on_message(self, message: Message) -> None:
        command = message.payload
        try:
            if len(command) > COMMAND_MAX or not COMMAND.fullmatch(command):
                raise Malformed(f'expected 1 to {COMMAND_MAX} printable characters without "$" and "*"')
            self.connection.send(seal(command))
        except (Malformed, Refused) as error:
            self._tell("command/error", {"error": str(error)})

    def on_closed(self, reason: str) -> None:
        if self._dropped:
            log("info", f"{self._dropped} sentences of other kinds were dropped")
        if self._faults:
            counts = ", ".join(f"{kind}: {count}" for kind, count in self._faults.items())
            log("info", f"faults of this connection: {counts}")

    def _on_line(self, line: bytes) -> None:
        if self._client is None and self._identity == "login":
            self._login(line)
            return
        if self._client is None and not self._identify(line):
            return
        try:
            sentence = parse(line, checksum_optional=self._checksum_optional)
        except NoSentence as error:
            if not (self._identity == "prefix" and IMEI_LINE.fullmatch(line)):
                self._fault("broken sentences", f"a sentence is refused: {error}")
                self._foreign.stray(line)
            return
        except Malformed as error:
            self._undecoded("unknown", line, error)
            return
        self._foreign.frame()
        try:
            self._on_sentence(sentence, line)
        except Malformed as error:
            self._undecoded(sentence.kind, line, error)

    def _on_sentence(self, sentence: Sentence, line: bytes) -> None:
        if sentence.kind == "RMC" and sentence.talker != "P":
            self._publish("position", nmea.position(sentence))
        elif sentence.kind == "GGA" and sentence.talker != "P":
            self._publish("fix", nmea.fix(sentence))
        elif sentence.kind in nmea.FIXES and sentence.talker != "P":
            self._publish("fix", nmea.FIXES[sentence.kind](sentence))
        elif sentence.talker == "P" and sentence.kind == "UBX" and sentence.field(1) == "00":
            self._publish("fix", nmea.pubx_position(sentence) | {"fields": sentence.fields})
        elif sentence.kind in ("VDM", "VDO"):
            self._on_ais(sentence)
        elif not self._publish_others:
            self._dropped += 1
        else:
            decode = nmea.DECODED.get(sentence.kind) if sentence.talker != "P" else None
            head = {"talker": sentence.talker, "kind": sentence.kind, "fields": sentence.fields}
            self._publish("sentence", head | (decode(sentence) if decode else {}))

    def _on_ais(self, sentence: Sentence) -> None:
        names = ("fragments", "number", "sequence", "channel", "payload", "fill_bits")
        head: dict[str, Any] = {"talker": sentence.talker, "kind": sentence.kind}
        for name, text in zip(names, sentence.fields, strict=False):
            if text:
                head[name] = int(text) if name in ("fragments", "number", "fill_bits") and text.isdecimal() else text
        try:
            head |= self._ais.push(sentence.fields)
        except Undecodable as error:
            self._fault("undecoded AIS", f"a message of AIS is passed on as it is: {error}")
            head["error"] = str(error)
        self._tell("ais", head)

    def _publish(self, what: str, members: dict[str, Any]) -> None:
        if "odd" in members:
            self._fault(f"odd {members.get('kind')}", f"a field of {members.get('kind')} is left out: {members['odd'][0]}")
        self._tell(what, members)

    def _undecoded(self, kind: str, line: bytes, error: Malformed) -> None:
        """A sentence that is whole, and does not say what its kind should."""
        self._foreign.frame()
        self._fault(f"undecoded {kind}", f"a sentence is passed on as it is: {error}")
        self._tell("message", {"kind": kind, "error": str(error), "data": line.hex()})

    def _fault(self, kind: str, text: str) -> None:
        """The first of a kind as a warning, further ones as debug lines."""
        if kind not in self._faults and len(self._faults) >= KINDS_MAX:
            kind = "others"
        log("debug" if kind in self._faults else "warn", text)
        self._faults[kind] = self._faults.get(kind, 0) + 1

    def _login(self, line: bytes) -> None:
        """The first line says who the receiver is."""
        found = LOGIN.fullmatch(line)
        if not found:
            self._foreign.log("expected LOGIN, a client id and perhaps a password")
            self._refuse("expected LOGIN <client> [<password>]")
            return
        client, password = found[1].decode(), found[2].decode() if found[2] else None
        refused = self._authenticate(client, password)
        if refused is not None:
            self._refuse(refused)
        else:
            self.connection.send("OK\r\n")

    def _identify(self, line: bytes) -> bool:
        """Receivers that cannot log in: by what stands before their first sentence, or by the listener that they come to."""
        if self._identity == "listener":
            client = polygate.setting("client") or "{host}"
            client = re.sub(r"[^A-Za-z0-9._-]", "-", client.replace("{host}", self.connection.info.peer.host))
        else:
            alone, before = IMEI_LINE.fullmatch(line), PREFIX.fullmatch(nmea.prefix(line))
            found = alone or before
            if not found:
                self._fault("lines before an identity", "expected a client id before the first sentence; the line is dropped")
                return False
            client = found[1].decode()
        if not self._is_sentence(line):
            return False
        refused = self._authenticate(client, None)
        if refused is not None:
            self._close()
        return refused is None

    def _is_sentence(self, line: bytes) -> bool:
        """A peer that speaks another protocol must not get an identity."""
        if self._identity == "prefix" and IMEI_LINE.fullmatch(line):
            return True
        try:
            parse(line, checksum_optional=self._checksum_optional)
        except NoSentence as error:
            self._fault("broken sentences", f"a sentence is refused: {error}")
            return False
        except Malformed:
            pass
        return True

    def _authenticate(self, client: str, password: str | None) -> str | None:
        """Why the gateway refuses, if it does."""
        try:
            self.connection.authenticate(client, username=client, password=password, proto_name="nmea0183")
            self.connection.subscribe(f"nmea/{client}/command", 1)
        except Refused as refused:
            log("info", f"{client} is refused: {refused}")
            return refused.code
        self._client = client
        self._foreign.frame()
        self.connection.start_keepalive(self._keepalive_ms)
        return None

    def _end(self, why: str = "") -> None:
        self._foreign.log(why)
        self._close()

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
            self._fault("refused publishes", f"a {what} is lost: {refused}")


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
