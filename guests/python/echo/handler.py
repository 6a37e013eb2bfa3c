"""The JSON echo protocol of ExProto's own suite: what a device writes as JSON is done, and the result comes back.

The frames are listed in ../../echo/README.md.
"""

import json
from collections.abc import Callable
from typing import Any

import polygate
from objects import Broken, Objects
from polygate import Connection, Message, Refused, log


class Type:
    """The numbers of the frames."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 5
    SUBACK = 6
    UNSUBSCRIBE = 7
    UNSUBACK = 8
    DISCONNECT = 9
    RAW_PUBLISH = 10


# What the timer's 32 bits of milliseconds can say.
KEEPALIVE_S_MAX = 4_294_967


class Malformed(Exception):
    """A member is missing or malformed."""


class Echo(polygate.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._objects = Objects()
        self._raw = is_raw()

    def on_bytes(self, data: bytes) -> None:
        if self._raw:
            self.connection.send(data)
            return
        try:
            for found in self._objects.push(data):
                self._on_object(found)
        except Broken as broken:
            log("warn", f"{broken}; closing")
            self.connection.close()

    def on_message(self, message: Message) -> None:
        # JSON has no bytes: what is not UTF-8 arrives with U+FFFD in its place.
        payload = message.payload.decode(errors="replace")
        self._send({"type": Type.PUBLISH, "topic": message.topic, "qos": message.qos.value, "payload": payload})

    def on_closed(self, reason: str) -> None:
        log("debug", f"closed: {reason}")

    def _on_object(self, found: bytes) -> None:
        try:
            request = json.loads(found)
        except ValueError as error:
            log("warn", f"expected JSON in UTF-8: {error}")
            return
        connection = self.connection
        match request.get("type"):
            case Type.CONNECT:
                if not self._answer(Type.CONNACK, lambda: self._connect(request)):
                    connection.close()
            case Type.PUBLISH:
                self._answer(Type.PUBACK, lambda: connection.publish(*publication(request)))
            case Type.RAW_PUBLISH:
                self._answer(Type.PUBACK, lambda: polygate.raw_publish(*publication(request)))
            case Type.SUBSCRIBE:
                self._answer(Type.SUBACK, lambda: connection.subscribe(text(request, "topic"), qos(request)))
            case Type.UNSUBSCRIBE:
                self._answer(Type.UNSUBACK, lambda: connection.unsubscribe(text(request, "topic")))
            case Type.DISCONNECT:
                connection.close()
            case other:
                log("warn", f"expected a type of 1, 3, 5, 7, 9 or 10, found {other}")

    def _connect(self, request: dict[str, Any]) -> None:
        client = request.get("clientinfo", {})
        self.connection.authenticate(
            text(client, "clientid"),
            username=optional(client, "username"),
            password=optional(request, "password"),
            proto_name=optional(client, "proto_name") or "",
            proto_ver=optional(client, "proto_ver") or "",
        )
        keepalive_s = client.get("keepalive", 0)
        if not isinstance(keepalive_s, int) or not 0 <= keepalive_s <= KEEPALIVE_S_MAX:
            raise Malformed(f'member "keepalive": expected seconds up to {KEEPALIVE_S_MAX}, found {keepalive_s}')
        if keepalive_s:
            self.connection.start_keepalive(keepalive_s * 1000)

    def _answer(self, kind: int, request: Callable[[], None]) -> bool:
        """Answers a request: code 0 when it was done, 1 when it was not, and then the log says why."""
        done = True
        try:
            request()
        except (Refused, Malformed) as error:
            log("info", f"answering type {kind} with code 1: {error}")
            done = False
        self._send({"type": kind, "code": 0 if done else 1})
        return done

    def _send(self, frame: dict[str, Any]) -> None:
        try:
            self.connection.send(json.dumps(frame))
        except Refused as refused:
            log("warn", f"an answer is lost: {refused}")


def is_raw() -> bool:
    """With the setting mode = "raw" there is no protocol: every chunk goes back as it came, for measuring."""
    mode = polygate.setting("mode") or "json"
    if mode not in ("raw", "json"):
        log("error", f'setting mode: expected "json" or "raw", found "{mode}"; using "json"')
    return mode == "raw"


def publication(request: dict[str, Any]) -> tuple[str, str, int]:
    return text(request, "topic"), text(request, "payload"), qos(request)


def text(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise Malformed(f'member "{name}": expected a string, found {type(value).__name__}')
    return value


def optional(members: dict[str, Any], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) else None


def qos(request: dict[str, Any]) -> int:
    value = request.get("qos", 0)
    if value not in (0, 1, 2):
        raise Malformed(f'member "qos": expected 0, 1 or 2, found {value}')
    return int(value)


Handler = polygate.serve(Echo)
