"""What a user may send along in a header: the check of a call's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

__all__ = ["check_metadata"]

_DEPTH_LIMIT: Final = 16
_SIZE_LIMIT: Final = 64 * 1024
_FIELD_SIZE: Final = 9  # type and value, or type and length
_HEADER_NAME_LIMIT: Final = 128  # section 4.2.5.5 of the specification


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise `ValueError` where *metadata* cannot be sent in a header.

    AMQP's field types are None, bool, int of 64 bits, finite float, str, bytes, and lists, tuples and mappings with
    string keys of those; nested at most 16 deep, and at most 64 KiB in all, so that a header fits one frame.
    """
    if _check_field(metadata, 0) > _SIZE_LIMIT:
        raise ValueError(f"metadata: more than {_SIZE_LIMIT} bytes")


def _check_field(value: Any, depth: int) -> int:
    """Return the bytes that *value* takes in a header, about; raise `ValueError` where it cannot be there."""
    kind = type(value)
    if depth > _DEPTH_LIMIT:
        raise ValueError(f"metadata: nested more than {_DEPTH_LIMIT} deep")
    if kind is bytes:
        return _FIELD_SIZE + len(value)
    if kind is float:
        if not isfinite(value):  # RabbitMQ cannot read one in a header, and closes the connection (541, seen on 3.10)
            raise ValueError(f"metadata: {value!r} cannot be sent in a header")
    elif kind is int:
        if not -(2**63) <= value < 2**63:
            raise ValueError("metadata: an integer of more than 64 bits")
    elif kind is str:
        return _FIELD_SIZE + _text_size(value)
    elif kind in (list, tuple):
        return _FIELD_SIZE + sum(_check_field(item, depth + 1) for item in value)
    elif isinstance(value, Mapping):
        size = _FIELD_SIZE
        for name, item in value.items():
            if type(name) is not str or _text_size(name) > _HEADER_NAME_LIMIT:
                raise ValueError(f"metadata: {name!r:.60} is not a string of at most {_HEADER_NAME_LIMIT} bytes")
            size += _text_size(name) + _check_field(item, depth + 1)
        return size
    elif value is not None and kind is not bool:
        raise ValueError(f"metadata: a {kind.__qualname__} cannot be sent in a header")
    return _FIELD_SIZE


def _text_size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("metadata: text that is not encodable") from None
