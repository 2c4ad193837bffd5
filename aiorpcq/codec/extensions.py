"""What MessagePack has no type for: it travels as an extension, and so these codes are part of the wire.

The payload of a container is MessagePack itself:

    ======  ===================  ==========================================================================
    code    type                 payload
    ======  ===================  ==========================================================================
    0       int past 64 bits     two's complement, big endian
    1       tuple                array of the items
    2       set                  array of the items, in no order
    3       frozenset            array of the items, in no order
    4       datetime             text: ISO 8601, then " 0" or " 1" (fold) and " Area/City" where they say more
    5       date                 text: ISO 8601
    6       time                 text: as a datetime
    7       timedelta            array of days, seconds, microseconds
    8       UUID                 its 16 bytes
    9       Decimal              text: sign, digits and exponent, as `str` writes them
    10      complex              two big-endian doubles: real, imaginary
    11-63   reserved             refused
    64-127  the user's own       what the registered encoder returned, as MessagePack
    -1      `msgpack.Timestamp`  as the MessagePack specification has it
    ======  ===================  ==========================================================================
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, InvalidOperation
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]  # it ships no annotations

from ..errors import CodecError
from .errors import type_name

__all__ = ["CONTAINERS", "NATIVE", "SCALARS", "USER_CODES", "Extension"]

USER_CODES: Final = range(64, 128)
"""The codes that users register their own types with."""


class Extension(NamedTuple):
    """How one type travels: its code, its name in errors, and its payload written and read."""

    code: int
    name: str
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], Any]


def _dump_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _load_int(payload: bytes) -> int:
    return int.from_bytes(payload, "big", signed=True)


def _dump_moment(value: datetime | time) -> bytes:
    tzinfo, zone = value.tzinfo, ""
    if type(tzinfo) is ZoneInfo and _ZONE.fullmatch(tzinfo.key or ""):
        zone, value = f" {tzinfo.key}", value.replace(tzinfo=None)
    elif tzinfo is not None and type(tzinfo) is not timezone:
        raise CodecError(
            f"cannot encode a {type_name(type(value))} with a tzinfo of type {type_name(type(tzinfo))};"
            " use datetime.timezone, or zoneinfo.ZoneInfo with a key"
        )
    fold = f" {value.fold}" if value.fold or zone else ""
    return f"{value.isoformat()}{fold}{zone}".encode()


def _load_moment(cls: type[datetime] | type[time], payload: bytes) -> datetime | time:
    iso, *more = payload.decode("ascii").split(" ", 2)
    value = cls.fromisoformat(iso)
    if tiny := _TINY_OFFSET.search(iso):  # CPython's fromisoformat takes an offset of no whole second for UTC
        value = value.replace(tzinfo=timezone(timedelta(microseconds=int(tiny[1] + tiny[2]))))
    if more:
        value = value.replace(fold=int(more[0]))
    if len(more) > 1:
        if value.tzinfo is not None or not _ZONE.fullmatch(more[1]):
            raise ValueError("not a zone")
        value = value.replace(tzinfo=ZoneInfo(more[1]))
    return value


def _dump_date(value: date) -> bytes:
    return value.isoformat().encode()


def _load_date(payload: bytes) -> date:
    return date.fromisoformat(payload.decode("ascii"))


def _dump_timedelta(value: timedelta) -> bytes:
    packed: bytes = msgpack.packb([value.days, value.seconds, value.microseconds])
    return packed


def _load_timedelta(payload: bytes) -> timedelta:
    if len(payload) > _THREE_INTS:
        raise ValueError("not three ints")
    days, seconds, microseconds = msgpack.unpackb(payload)
    if not type(days) is type(seconds) is type(microseconds) is int:
        raise ValueError("not three ints")
    return timedelta(days, seconds, microseconds)


def _dump_uuid(value: UUID) -> bytes:
    return value.bytes


def _load_uuid(payload: bytes) -> UUID:
    return UUID(bytes=payload)


def _dump_decimal(value: Decimal) -> bytes:
    return str(value).encode()


def _load_decimal(payload: bytes) -> Decimal:
    return Decimal(payload.decode("ascii"), _STRICT)


def _dump_complex(value: complex) -> bytes:
    return _COMPLEX.pack(value.real, value.imag)


def _load_complex(payload: bytes) -> complex:
    return complex(*_COMPLEX.unpack(payload))


_THREE_INTS: Final = 1 + 3 * 9  # bytes they take at most: the payload is unpacked without a look at what it declares
_COMPLEX: Final = struct.Struct(">dd")
_STRICT: Final = Context(traps=[InvalidOperation])  # whatever the caller's context, what is no number raises
_TINY_OFFSET: Final = re.compile(r"([+-])00:00:00\.([0-9]{6})$")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")  # ZoneInfo opens a file of this name
NATIVE: Final = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict, msgpack.ExtType, msgpack.Timestamp}
)
"""The types that MessagePack carries itself."""
CONTAINERS: Final[dict[type, int]] = {tuple: 1, set: 2, frozenset: 3}
"""By type: the code of those whose payload is an array of their items."""
SCALARS: Final[dict[type, tuple[int, Callable[[Any], bytes], Callable[[bytes], Any]]]] = {
    int: (0, _dump_int, _load_int),
    datetime: (4, _dump_moment, partial(_load_moment, datetime)),
    date: (5, _dump_date, _load_date),
    time: (6, _dump_moment, partial(_load_moment, time)),
    timedelta: (7, _dump_timedelta, _load_timedelta),
    UUID: (8, _dump_uuid, _load_uuid),
    Decimal: (9, _dump_decimal, _load_decimal),
    complex: (10, _dump_complex, _load_complex),
}
"""By type: the code of the others, and how their payload is written and read."""
