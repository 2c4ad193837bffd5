"""Basic properties and header tables of AMQP 0-9-1, both ways.

Property flags and order are those of section 4.2.6.1 of the specification, field types those that RabbitMQ uses
("AMQP 0-9-1 Errata", section 3).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from typing import Any, Final

from ...protocol.messages import Properties
from ...protocol.wire import LEADING_HEADER

__all__ = ["PropertyError", "decode_properties", "encode_properties", "encode_short_string"]

_FLAGS_AT: Final = 12  # in a content header: after class, weight and body size
_FIRST_PROPERTY_AT: Final = 14
_SHORT_STRING_LIMIT: Final = 255
_EXPIRATION_LIMIT: Final = 2**32 - 1
_KEPT_STRINGS: Final = 2_000
_KEPT_TABLES: Final = 500
_KEPT_TABLE_SIZE: Final = 512
_NESTING_LIMIT: Final = 32

_LONG_LONG: Final = Struct(">q")
_LONG: Final = Struct(">I")
_DOUBLE: Final = Struct(">d")


class PropertyError(ValueError):
    """A property that does not fit its field, or bytes that are no properties; the text names the property."""


_OCTETS: Final = [bytes((value,)) for value in range(256)]
_short_strings: dict[str, bytes] = {}
_expirations: dict[int, bytes] = {}


def encode_short_string(text: str, name: str) -> bytes:
    """Return *text* as a short string; *name* is what an error calls it."""
    try:
        data = text.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise PropertyError(f"{name} is not encodable text: {type(text).__name__}") from error
    if len(data) > _SHORT_STRING_LIMIT:
        raise PropertyError(f"{name} has {len(data)} bytes, the limit is {_SHORT_STRING_LIMIT}")
    return _OCTETS[len(data)] + data


def _recurring(text: str, name: str) -> bytes:
    """Return *text* as a short string, remembering it: for properties that take few values."""
    known = _short_strings.get(text)
    if known is None:
        if len(_short_strings) >= _KEPT_STRINGS:
            _short_strings.clear()
        known = _short_strings[text] = encode_short_string(text, name)
    return known


def encode_properties(properties: Properties) -> tuple[int, bytes]:
    """Return the property flags and the property list.

    Raises:
        PropertyError: a property does not fit its field.
    """
    flags = 0
    parts: list[bytes] = []
    if properties.content_type is not None:
        flags |= 0x8000
        parts.append(_recurring(properties.content_type, "content_type"))
    if properties.content_encoding is not None:
        flags |= 0x4000
        parts.append(_recurring(properties.content_encoding, "content_encoding"))
    if properties.headers is not None:
        flags |= 0x2000
        parts.append(_encode_table(properties.headers, 0))
    if properties.delivery_mode is not None:
        flags |= 0x1000
        parts.append(_octet(properties.delivery_mode, "delivery_mode"))
    if properties.priority is not None:
        flags |= 0x0800
        parts.append(_octet(properties.priority, "priority"))
    if properties.correlation_id is not None:
        flags |= 0x0400
        parts.append(encode_short_string(properties.correlation_id, "correlation_id"))
    if properties.reply_to is not None:
        flags |= 0x0200
        parts.append(_recurring(properties.reply_to, "reply_to"))
    if properties.expiration is not None:
        flags |= 0x0100
        parts.append(_expiration(properties.expiration))
    if properties.type is not None:
        flags |= 0x0020
        parts.append(_recurring(properties.type, "type"))
    if (
        properties.message_id is None
        and properties.timestamp is None
        and properties.user_id is None
        and properties.app_id is None
    ):
        return flags, b"".join(parts)
    return _encode_rare(properties, flags, parts)


def _encode_rare(properties: Properties, flags: int, parts: list[bytes]) -> tuple[int, bytes]:
    """Add the properties that RPC does not use itself; two of them stand before `type`."""
    kind = parts.pop() if flags & 0x0020 else None
    if properties.message_id is not None:
        flags |= 0x0080
        parts.append(encode_short_string(properties.message_id, "message_id"))
    if properties.timestamp is not None:
        flags |= 0x0040
        if not 0 <= properties.timestamp < 2**63:
            raise PropertyError(f"timestamp: {properties.timestamp} is not between 0 and 2**63 - 1 seconds")
        parts.append(_LONG_LONG.pack(properties.timestamp))
    if kind is not None:
        parts.append(kind)
    if properties.user_id is not None:
        flags |= 0x0010
        parts.append(_recurring(properties.user_id, "user_id"))
    if properties.app_id is not None:
        flags |= 0x0008
        parts.append(_recurring(properties.app_id, "app_id"))
    return flags, b"".join(parts)


def _octet(value: int, name: str) -> bytes:
    if not 0 <= value <= 255:
        raise PropertyError(f"{name}: {value} is not between 0 and 255")
    return bytes((value,))


def _expiration(milliseconds: int) -> bytes:
    known = _expirations.get(milliseconds)  # most calls have the same timeout
    if known is not None:
        return known
    # RabbitMQ closes the channel on an expiration that is negative or does not fit 32 bits ("Time-To-Live").
    if not 0 <= milliseconds <= _EXPIRATION_LIMIT:
        raise PropertyError(f"expiration: {milliseconds} ms is not between 0 and {_EXPIRATION_LIMIT}")
    digits = b"%d" % milliseconds
    if len(_expirations) >= _KEPT_STRINGS:
        _expirations.clear()
    known = _expirations[milliseconds] = _OCTETS[len(digits)] + digits
    return known


_copies: dict[str, bytes] = {}


def _encode_table(table: Mapping[Any, Any], depth: int) -> bytes:
    parts = []
    for name, value in table.items():
        if name == "CC" and depth == 0 and type(value) is tuple and len(value) == 1 and type(value[0]) is str:
            # The same for every request of one connection.
            known = _copies.get(value[0])
            if known is None:
                if len(_copies) >= _KEPT_TABLES:
                    _copies.clear()
                known = _copies[value[0]] = b"\x02CC" + _encode_field(value, name, depth)
            parts.append(known)
            continue
        if not isinstance(name, str):
            raise PropertyError(f"a header name is a {type(name).__name__}, not a string")
        parts.append(_recurring(name, "header name"))
        parts.append(_encode_field(value, name, depth))
    data = b"".join(parts)
    return _LONG.pack(len(data)) + data


def _encode_field(value: Any, name: str, depth: int) -> bytes:
    kind = type(value)
    if kind is int:
        try:
            return b"l" + _LONG_LONG.pack(value)
        except struct.error as error:
            raise PropertyError(f"header {name}: an integer beyond 64 bits") from error
    if kind is tuple or kind is list:
        return b"A" + _sized(b"".join([_encode_field(item, name, _deeper(depth, name)) for item in value]))
    if kind is str:
        try:
            return b"S" + _sized(value.encode())
        except UnicodeEncodeError as error:
            raise PropertyError(f"header {name} is not encodable text") from error
    if kind is bool:
        return b"t\x01" if value else b"t\x00"
    if kind is float:
        return b"d" + _DOUBLE.pack(value)
    if value is None:
        return b"V"
    if kind is bytes:
        return b"x" + _sized(value)
    if isinstance(value, datetime):
        return b"T" + _LONG_LONG.pack(int(value.timestamp()))
    if isinstance(value, Mapping):
        return b"F" + _encode_table(value, _deeper(depth, name))
    raise PropertyError(f"header {name}: a {kind.__qualname__} cannot be sent in a header")


def _sized(data: bytes) -> bytes:
    return _LONG.pack(len(data)) + data


def _deeper(depth: int, name: str) -> int:
    if depth >= _NESTING_LIMIT:
        raise PropertyError(f"header {name} is nested more than {_NESTING_LIMIT} deep")
    return depth + 1


def decode_properties(header: bytes) -> Properties:
    """Read the payload of a content header frame.

    Raises:
        PropertyError: it is cut short, or its headers hold an unknown field type.
    """
    try:
        return _decode_properties(header)
    except (IndexError, struct.error, OverflowError, ValueError, OSError) as error:  # OSError: of `fromtimestamp`
        raise PropertyError(f"malformed properties: {error}") from error


def _decode_properties(data: bytes) -> Properties:
    flags = data[_FLAGS_AT] << 8 | data[_FLAGS_AT + 1]
    at = _FIRST_PROPERTY_AT
    properties = Properties()
    # The properties of requests and states are read here, in place: a function call for each doubles the cost. What
    # is sent back, correlation id and reply queue, has to be text; of the rest a replacement will do.
    if flags & 0x8000:
        start = at + 1
        at = start + data[at]
        properties.content_type = data[start:at].decode("utf-8", "replace")
    if flags & 0x4000:
        properties.content_encoding, at = _read_short_string(data, at)
    if flags & 0x2000:
        size = data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]
        stop = at + 4 + size
        properties.headers = _read_headers(data[at + 4 : _within(data, stop)])
        at = stop
    if flags & 0x1800:
        if flags & 0x1000:
            properties.delivery_mode = data[at]
            at += 1
        if flags & 0x0800:
            properties.priority = data[at]
            at += 1
    if flags & 0x0400:
        start = at + 1
        at = start + data[at]
        properties.correlation_id = data[start:at].decode()
    if flags & 0x0200:
        start = at + 1
        at = start + data[at]
        properties.reply_to = data[start:at].decode()
    if flags & 0x0100:
        start = at + 1
        at = start + data[at]
        digits = data[start:at]
        properties.expiration = int(digits) if digits.isdigit() else None
    if flags & 0x00C0:
        if flags & 0x0080:
            properties.message_id, at = _read_short_string(data, at)
        if flags & 0x0040:
            properties.timestamp = _LONG_LONG.unpack_from(data, at)[0]
            at += 8
    if flags & 0x0020:
        start = at + 1
        at = start + data[at]
        properties.type = data[start:at].decode("utf-8", "replace")
    if flags & 0x0018:
        if flags & 0x0010:
            properties.user_id, at = _read_short_string(data, at)
        if flags & 0x0008:
            properties.app_id, at = _read_short_string(data, at)
    _within(data, at)
    return properties


def _within(data: bytes, stop: int) -> int:
    if stop > len(data):
        raise ValueError("cut short")
    return stop


def _read_short_string(data: bytes, at: int) -> tuple[str, int]:
    stop = at + 1 + data[at]
    if stop > len(data):
        raise ValueError("cut short")
    # Other publishers may send what is not UTF-8; that is no reason to lose the connection.
    return data[at + 1 : stop].decode("utf-8", "replace"), stop


_LEADING: Final = bytes((len(LEADING_HEADER),)) + LEADING_HEADER.encode() + b"l"
_LEADING_VALUE_AT: Final = len(_LEADING)
_LEADING_SIZE: Final = _LEADING_VALUE_AT + 8
_tables: dict[bytes, dict[str, Any]] = {}


def _read_headers(table: bytes) -> dict[str, Any]:
    """Read a header table.

    A request's table is its deadline, which differs each time, and behind it what hardly ever does; that part is read
    once and remembered.
    """
    if len(table) < _LEADING_SIZE or not table.startswith(_LEADING):
        return _read_table(table, 0)
    rest = table[_LEADING_SIZE:]
    known = _tables.get(rest)
    if known is None:
        known = _read_table(rest, 0)
        if len(rest) <= _KEPT_TABLE_SIZE and not any(map(_holds_table, known.values())):
            if len(_tables) >= _KEPT_TABLES:
                _tables.clear()
            _tables[rest] = known
    return {LEADING_HEADER: _LONG_LONG.unpack_from(table, _LEADING_VALUE_AT)[0], **known}


def _holds_table(value: Any) -> bool:
    """Tell whether *value* is or may hold a table: user metadata, say, which must not be shared between messages."""
    return type(value) is dict or (type(value) is list and any(type(item) is not str for item in value))


def _read_table(data: bytes, depth: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        name, at = _read_short_string(data, at)
        table[name], at = _read_field(data, at, depth)
    return table


def _read_field(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = data[at]
    fixed = _FIXED.get(kind)
    if fixed is not None:
        layout, convert = fixed
        value = layout.unpack_from(data, at + 1)[0]
        return (value if convert is None else convert(value)), at + 1 + layout.size
    if kind == 0x56:  # V
        return None, at + 1
    if kind == 0x44:  # D: a scale and a signed 32-bit number
        unscaled = int.from_bytes(data[at + 2 : _within(data, at + 6)], "big", signed=True)
        return Decimal(unscaled).scaleb(-data[at + 1]), at + 6
    if kind not in _SIZED:
        raise ValueError(f"field type {kind:#x} is unknown")
    start = at + 5
    stop = start + _LONG.unpack_from(data, at + 1)[0]
    content = data[start : _within(data, stop)]
    if kind == 0x53:  # S
        return content.decode("utf-8", "replace"), stop
    if kind == 0x78:  # x
        return content, stop
    if depth >= _NESTING_LIMIT:
        raise ValueError(f"nested more than {_NESTING_LIMIT} deep")
    if kind == 0x46:  # F
        return _read_table(content, depth + 1), stop
    items: list[Any] = []
    inner = 0
    while inner < len(content):
        item, inner = _read_field(content, inner, depth + 1)
        items.append(item)
    return items, stop


def _timestamp(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_SIZED: Final = frozenset(b"SxFA")
_FIXED: Final[dict[int, tuple[Struct, Callable[[Any], Any] | None]]] = {
    ord("t"): (Struct(">?"), None),
    ord("b"): (Struct(">b"), None),
    ord("B"): (Struct(">B"), None),
    ord("s"): (Struct(">h"), None),
    ord("u"): (Struct(">H"), None),
    ord("I"): (Struct(">i"), None),
    ord("i"): (Struct(">I"), None),
    ord("l"): (_LONG_LONG, None),
    ord("L"): (_LONG_LONG, None),
    ord("f"): (Struct(">f"), None),
    ord("d"): (_DOUBLE, None),
    ord("T"): (_LONG_LONG, _timestamp),
}
