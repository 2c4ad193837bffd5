"""What a body may hold, counted before anything is built of it: a byte of it takes up to 100 when decoded."""

from __future__ import annotations

import re
import zlib
from itertools import islice
from typing import Final

from ..errors import PayloadTooLarge
from .extensions import CONTAINERS, USER_CODES

__all__ = ["MAX_CONTAINERS", "MAX_VALUES", "check_json", "check_msgpack"]

MAX_CONTAINERS: Final = 500_000
"""Lists, maps and extension values in a body: an empty map takes 1 byte there and 72 here, a set of five 9 and 750."""
MAX_VALUES: Final = 4_000_000
"""Values of any kind in a body, keys and containers among them: an int takes 40 bytes here, a short str 88, 180 in a
set."""

_FEW: Final = 256
"""Values that are walked over before anything else: where a body is a few long texts, they settle it."""
_ADDED: Final = 65_520
"""Ones that adler32 adds up without its sum passing its modulus, 65,521."""
_MAX_TEXTS: Final = 100_000
"""JSON texts that are looked at for brackets and commas which are no structure; what later ones hold is counted."""
_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # an open one matches too: it ends the search

_EXTENSIONS: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD4: -1, 0xD5: -2, 0xD6: -4, 0xD7: -8, 0xD8: -16}
"""By head: bytes of the length that follows, or the length itself, negative."""
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""By head of a str or bytes: bytes of the length that follows."""
_NESTING: Final = frozenset(CONTAINERS.values()) | frozenset(USER_CODES)
"""Extensions with MessagePack as their payload: it is counted as well."""


def _step(head: int) -> int:
    # Bytes to the next value; those to a list's or map's first item, negative; 0 where a length has to be read.
    fixed = {0xCA: 5, 0xCB: 9, 0xDC: -3, 0xDD: -5, 0xDE: -3, 0xDF: -5}
    if head in _LENGTHS or head in _EXTENSIONS:
        return 0
    if head in fixed:
        return fixed[head]
    if 0xCC <= head <= 0xD3:
        return 1 + (1 << (head & 3))
    if 0xA0 <= head <= 0xBF:
        return 1 + (head & 0x1F)
    return -1 if 0x80 <= head <= 0x9F else 1


_STEPS: Final = tuple(map(_step, range(256)))
_MARKS: Final = bytes(_STEPS[head] < 0 or head in _EXTENSIONS for head in range(256))


def check_msgpack(body: bytes) -> None:
    """Refuse a MessagePack body that holds too much; payloads of extensions count as far as they are MessagePack.

    Raises:
        PayloadTooLarge: it holds more than `MAX_CONTAINERS` or `MAX_VALUES`.
    """
    size = len(body)
    if size <= MAX_CONTAINERS:  # every value takes a byte of its own
        return
    if size - _walk(body, _FEW) <= MAX_CONTAINERS - _FEW:
        return
    if size <= MAX_VALUES and _marked(body) <= MAX_CONTAINERS:
        return
    if _walk(body, MAX_VALUES) < size:
        raise _too_many(MAX_VALUES, "values")


def check_json(body: bytes) -> None:
    """Refuse a JSON text that holds too much, by its punctuation.

    Raises:
        PayloadTooLarge: it holds more than `MAX_CONTAINERS` or `MAX_VALUES`.
    """
    if len(body) <= 2 * MAX_CONTAINERS:  # a list takes two bytes, a number one and a comma
        return
    containers, values = _punctuation(body, 0, len(body))
    if containers <= MAX_CONTAINERS and values <= MAX_VALUES:
        return
    for text in islice(_TEXT.finditer(body), _MAX_TEXTS):
        inside, separated = _punctuation(body, *text.span())
        containers -= inside
        values -= separated
    if containers > MAX_CONTAINERS:
        raise _too_many(MAX_CONTAINERS, "lists and dicts")
    if values > MAX_VALUES:
        raise _too_many(MAX_VALUES, "values")


def _too_many(limit: int, what: str) -> PayloadTooLarge:
    return PayloadTooLarge(f"a body holds more than the limit of {limit} {what}")


def _walk(body: bytes, limit: int) -> int:
    # Returns where the walk ended: after *limit* values, or at or past the end. It needs no stack, since every value
    # begins where its predecessor's head or content ends. Out of step it gets only in a payload that is malformed,
    # which decoding does not get past either. A loop over a table: twice as fast as asking msgpack for each value.
    position, containers, size, steps = 0, 0, len(body), _STEPS
    for _ in range(limit):
        if position >= size:
            break
        step = steps[body[position]]
        if step > 0:
            position += step
            continue
        if step < 0:
            position -= step
        elif (width := _LENGTHS.get(body[position])) is not None:
            if width == 1 and position + 1 < size:  # the usual ones, at a third of the time
                position += 2 + body[position + 1]
                continue
            start = position + 1 + width
            position = start + int.from_bytes(body[position + 1 : start], "big")
            continue
        else:
            position = _after_extension(body, position)
        containers += 1
        if containers > MAX_CONTAINERS:
            raise _too_many(MAX_CONTAINERS, "lists, maps and extension values")
    return position


def _after_extension(body: bytes, position: int) -> int:
    width = _EXTENSIONS[body[position]]
    start = position + 1 + max(width, 0)
    length = -width if width < 0 else int.from_bytes(body[position + 1 : start], "big")
    code = body[start : start + 1]
    return start + 1 if code and code[0] in _NESTING else start + 1 + length


def _marked(body: bytes) -> int:
    # Bytes that could begin a list, map or extension value. Their sum by adler32 takes a tenth of a millisecond for
    # 1 MiB, and bytes.count up to 1.5.
    marks = memoryview(body.translate(_MARKS))
    return sum(zlib.adler32(marks[at : at + _ADDED], 0) & 0xFFFF for at in range(0, len(marks), _ADDED))


def _punctuation(body: bytes, start: int, end: int) -> tuple[int, int]:
    # Lists and dicts, and all values: each follows a bracket, a comma or a colon, but the first.
    containers = body.count(b"[", start, end) + body.count(b"{", start, end)
    return containers, containers + body.count(b",", start, end) + body.count(b":", start, end)
