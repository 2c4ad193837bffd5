"""The codec that people and other languages read: JSON."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any, Final

from ..errors import CodecError, PayloadTooLarge
from .contents import check_json
from .errors import decode_error, encode_error, type_name

__all__ = ["JsonCodec"]

_dump_json: Final = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class JsonCodec:
    """Strict JSON (RFC 8259) in utf-8: None, bool, int, finite float, str, list, and dict with str keys.

    A tuple is taken and arrives as a list; every other type and every subclass is refused, not approximated. An int
    has at most as many digits as the interpreter converts (4,300 unless set otherwise).
    """

    content_type = "application/json"

    def encode(self, value: Any) -> bytes:
        """Write *value*.

        Raises:
            CodecError: JSON cannot carry it.
        """
        try:
            _check_json(value)
            return _dump_json(value).encode()
        except CodecError:
            raise
        except Exception as error:
            raise encode_error(error) from error

    def decode(self, body: bytes) -> Any:
        """Read a JSON text.

        Raises:
            PayloadTooLarge: *body* holds more than 500,000 lists and dicts, or 4,000,000 values.
            CodecError: *body* is anything else.
        """
        try:
            check_json(body)
            text = body.decode()
            value = json.loads(text, parse_constant=_finite, parse_float=_finite)
            if "\\ud" in text or "\\uD" in text:  # an escaped lone surrogate is no text, and could not be sent on
                _dump_json(value).encode()
        except PayloadTooLarge:
            raise
        except Exception as error:
            raise decode_error(error) from error
        return value


def _check_json(value: Any) -> None:
    cls = type(value)
    if cls is list or cls is tuple:
        for item in value:
            _check_json(item)
    elif cls is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise CodecError(f"cannot encode a dict key of type {type_name(type(key))}; JSON has only str keys")
            _check_json(item)
    elif cls not in (str, int, float, bool, type(None)):
        raise CodecError(f"cannot encode a value of type {type_name(cls)}; JSON cannot carry it")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value
