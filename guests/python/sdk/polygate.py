"""What a handler in Python stands on: a class Handler of which every connection has an object, its Connection, and lines.

    import polygate

    class Echo(polygate.Handler):
        def on_bytes(self, data: bytes) -> None:
            self.connection.send(data)

    Handler = polygate.serve(Echo)

What is printed goes to the gateway's log. Nothing else of the outside world is there: to open a file or a socket, or to ask
Python for the time, ends the connection as a failure of the handler (use now_ms); Python's random numbers are part of the
component's start-up snapshot, and so the same for every connection (use random).
"""

import io
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from componentize_py_types import Err
from wit_world.imports import adapter, types
from wit_world.imports.types import Address, Certificate, ConnInfo, Message

__all__ = [
    "Address",
    "Certificate",
    "ConnInfo",
    "Connection",
    "Handler",
    "LineTooLong",
    "Lines",
    "Message",
    "Refused",
    "log",
    "migrating",
    "now_ms",
    "random",
    "raw_publish",
    "serve",
    "setting",
]

T = TypeVar("T")


class Refused(Exception):
    """The gateway does not do what was asked; its log, at level debug, says more than the code.

    The codes: unknown, conn-gone, bad-params, permission-denied, not-authenticated, overloaded, timeout.
    """

    def __init__(self, operation: str, code: str) -> None:
        super().__init__(f"{operation}: {code}")
        self.operation = operation
        self.code = code


def _asked(operation: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Err as error:
        raise Refused(operation, _word(error.value)) from None


def _word(value: types.ErrorCode) -> str:
    return value.name.lower().replace("_", "-")


def _bytes(payload: bytes | str) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


class Connection:
    """One accepted peer, and what may be asked for it. Whatever is not done raises Refused."""

    def __init__(self, conn: int, info: ConnInfo) -> None:
        self._conn = conn
        self.info = info
        """Who is at the far end: kind, peer, local, peer_cert."""

    def send(self, data: bytes | str) -> None:
        """Queues bytes for the peer, or text as UTF-8; the order of calls is the order on the wire."""
        _asked("send", lambda: adapter.send(self._conn, _bytes(data)))

    def close(self) -> None:
        """Sends what is queued and closes; on_closed follows. Nothing happens when it has ended already."""
        try:
            _asked("close", lambda: adapter.close(self._conn))
        except Refused as refused:
            if refused.code != "conn-gone":
                raise

    def authenticate(
        self,
        client_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        proto_name: str = "",
        proto_ver: str = "",
    ) -> None:
        """Says who the peer is. Waits for the answer; when refused, it may be tried again.

        The newest connection with the same client id ends the older one.
        """
        client = types.ClientInfo(proto_name, proto_ver, client_id, username, None)
        _asked("authenticate", lambda: adapter.authenticate(self._conn, client, password))

    def start_keepalive(self, interval_ms: int) -> None:
        """Ends the connection after 1.5 times so long without a byte from the peer; on_keepalive_timeout comes first.

        A second call replaces the first.
        """
        _asked("start_keepalive", lambda: adapter.start_timer(self._conn, types.Timer.KEEPALIVE, interval_ms))

    def stop_keepalive(self) -> None:
        _asked("stop_keepalive", lambda: adapter.stop_timer(self._conn, types.Timer.KEEPALIVE))

    def publish(self, topic: str, payload: bytes | str, qos: int = 0) -> None:
        """Text goes as UTF-8."""
        _asked("publish", lambda: adapter.publish(self._conn, topic, types.Qos(qos), _bytes(payload)))

    def subscribe(self, filter: str, qos: int = 0) -> None:
        _asked("subscribe", lambda: adapter.subscribe(self._conn, filter, types.Qos(qos)))

    def unsubscribe(self, filter: str) -> None:
        _asked("unsubscribe", lambda: adapter.unsubscribe(self._conn, filter))


class Handler:
    """What happens on one connection. A handler extends it, and overrides what it wants to know."""

    def __init__(self, connection: Connection) -> None:
        """Comes first of all events; not a byte was read yet."""
        self.connection = connection

    def on_bytes(self, data: bytes) -> None:
        """The next bytes of the stream, cut anywhere; or one whole datagram."""

    def on_message(self, message: Message) -> None:
        """A message for one of the connection's subscriptions."""

    def on_keepalive_timeout(self) -> None:
        """The keepalive timer ran out. The connection is closed afterwards."""

    def on_closed(self, reason: str) -> None:
        """The last event.

        The reason is peer, handler, keepalive-timeout, idle-timeout, replaced, kicked, expired, host, or error with words.
        """

    def snapshot(self) -> tuple[int, bytes] | None:
        """The state to carry over to a newer version of the handler: a format number of its own, and bytes."""
        return None

    def restore(self, state: tuple[int, bytes] | None) -> None:
        """Takes over what the older version's snapshot gave. An exception keeps the connection there."""


_handlers: dict[int, Handler] = {}


def _told(event: Callable[[], T]) -> T:
    """An exception ends the connection as a failure of the handler; the gateway cannot see what it was, so it is logged."""
    try:
        return event()
    except Exception as error:
        log("error", "\n".join([f"{type(error).__name__}: {error}", *_places(error)]))
        raise


def _places(error: Exception) -> Iterator[str]:
    """Where it came from, innermost last. The module traceback would look for the sources, and there are no files."""
    frame = error.__traceback__
    while frame:
        code = frame.tb_frame.f_code
        yield f"    in {code.co_qualname} ({code.co_filename}:{frame.tb_lineno})"
        frame = frame.tb_next


def serve(handler: Callable[[Connection], Handler]) -> type:
    """Makes the component's export of a class: Handler = polygate.serve(Echo)."""

    class Exported:
        def on_socket_created(self, conn: int, info: ConnInfo) -> None:
            _handlers[conn] = _told(lambda: handler(Connection(conn, info)))

        def on_received_bytes(self, conn: int, bytes: bytes) -> None:
            _told(lambda: _handlers[conn].on_bytes(bytes))

        def on_timer_timeout(self, conn: int, timer: types.Timer) -> None:
            _told(lambda: _handlers[conn].on_keepalive_timeout())

        def on_received_messages(self, conn: int, messages: list[Message]) -> None:
            for message in messages:
                _told(lambda: _handlers[conn].on_message(message))

        def on_socket_closed(self, conn: int, reason: types.CloseReason) -> None:
            _told(lambda: _handlers.pop(conn).on_closed(_reason(reason)))

    return Exported


def migrating(handler: Callable[[Connection], Handler]) -> type:
    """Makes the second export of a component of the world migrating-connection-handler: Migrate = polygate.migrating(Echo).

    Its connections outlive a change of the handler.
    """
    from wit_world.exports import migrate

    class Exported:
        def snapshot(self, conn: int) -> migrate.State | None:
            state = _told(lambda: _handlers[conn].snapshot())
            return None if state is None else migrate.State(*state)

        def restore(self, conn: int, info: ConnInfo, state: migrate.State | None) -> None:
            try:
                restored = handler(Connection(conn, info))
                restored.restore(None if state is None else (state.format, state.bytes))
            except Exception as error:
                raise Err(f"{type(error).__name__}: {error}") from None
            _handlers[conn] = restored

    return Exported


def _reason(reason: types.CloseReason) -> str:
    if isinstance(reason, types.CloseReason_Error):
        return f"error: {reason.value}"
    name = type(reason).__name__.removeprefix("CloseReason_")
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("-")


def raw_publish(topic: str, payload: bytes | str, qos: int = 0) -> None:
    """Publishes on no connection's behalf: no mountpoint, no rules."""
    _asked("raw_publish", lambda: adapter.raw_publish(topic, types.Qos(qos), _bytes(payload)))


def setting(name: str) -> str | None:
    """A value from the handler's settings in the configuration."""
    return adapter.setting(name)


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return adapter.now_ms()


def random(length: int) -> bytes:
    """Bytes from the gateway's secure generator, at most 1024."""
    return adapter.random(length)


def log(level: str, text: str) -> None:
    """A line in the gateway's log, with the connection's id beside it. Levels: trace, debug, info, warn, error."""
    adapter.log(types.Level[level.upper()], text)


# What is printed without an end of line is logged when it is so long.
_LINE_MAX = 4096


class _Printed(io.TextIOBase):
    """Takes what is printed, and logs it line by line."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._line = ""

    def write(self, text: str) -> int:
        *whole, self._line = (self._line + text).split("\n")
        if len(self._line) > _LINE_MAX:
            whole.append(self._line)
            self._line = ""
        for line in whole:
            log(self._level, line)
        return len(text)


sys.stdout, sys.stderr = _Printed("info"), _Printed("warn")


class LineTooLong(Exception):
    """A line is longer than a Lines allows; nothing that follows can be understood."""


class Lines:
    """Cuts a stream into lines, which end in LF or CRLF."""

    def __init__(self, max_bytes: int) -> None:
        """The bound is on a line without its end."""
        self._max = max_bytes
        self._held = b""

    def push(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes and gives the lines that they complete, without their ends. Raises LineTooLong."""
        *whole, self._held = (self._held + data).split(b"\n")
        for line in whole:
            yield self._checked(line)
        self._checked(self._held)

    def _checked(self, line: bytes) -> bytes:
        line = line.removesuffix(b"\r")
        if len(line) > self._max:
            raise LineTooLong(f"expected a line of at most {self._max} bytes")
        return line
