"""Stands in for the gateway: notes what is asked, and refuses what a test wants refused.

The modules of the same names are made by componentize-py; here they have just what the SDK uses.
"""

import enum
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

asked: list[tuple[Any, ...]] = []
refusals: list[Any] = []


@dataclass
class Err(Exception):
    value: Any


@dataclass
class State:
    format: int
    bytes: bytes


@dataclass
class CloseReason_KeepaliveTimeout:
    pass


@dataclass
class CloseReason_Error:
    value: str


def enumeration(name: str, *names: str) -> type[enum.Enum]:
    return enum.Enum(name, names, start=0)


def operation(name: str) -> Any:
    def ask(*request: Any) -> None:
        asked.append((name, *request))
        if refusals:
            raise Err(refusals.pop())

    return ask


OPERATIONS = (
    "send close authenticate start_timer stop_timer publish subscribe unsubscribe raw_publish setting now_ms random log"
)
MODULES: dict[str, dict[str, Any]] = {
    "componentize_py_types": {"Err": Err},
    "wit_world.imports.adapter": {name: operation(name) for name in OPERATIONS.split()},
    "wit_world.imports.types": {
        **{name: type(name, (), {}) for name in ("Address", "Certificate", "ClientInfo", "ConnInfo", "Message")},
        "CloseReason": object,
        "CloseReason_KeepaliveTimeout": CloseReason_KeepaliveTimeout,
        "CloseReason_Error": CloseReason_Error,
        "ErrorCode": enumeration("ErrorCode", "UNKNOWN", "CONN_GONE", "BAD_PARAMS", "PERMISSION_DENIED"),
        "Level": enumeration("Level", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"),
        "Qos": enumeration("Qos", "AT_MOST_ONCE", "AT_LEAST_ONCE", "EXACTLY_ONCE"),
        "Timer": enumeration("Timer", "KEEPALIVE"),
    },
    "wit_world.exports.migrate": {"State": State},
}


def install() -> ModuleType:
    """Puts the modules where imports find them; gives the one with the types."""
    for path, members in MODULES.items():
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            module = sys.modules.setdefault(name, ModuleType(name))
            if length > 1:
                setattr(sys.modules[".".join(parts[: length - 1])], parts[length - 1], module)
        vars(sys.modules[path]).update(members)
    return sys.modules["wit_world.imports.types"]
