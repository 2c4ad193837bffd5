"""The default codec: MessagePack, with the types that users register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import CodecError
from .errors import type_name
from .extensions import NATIVE, USER_CODES, Extension
from .packing import Packing

__all__ = ["MsgpackCodec"]

_T = TypeVar("_T")


class MsgpackCodec(Packing):
    """MessagePack with the types of the standard library that arguments are made of; what arrives equals what was sent.

    Not carried over: a bytearray or memoryview arrives as bytes, and a fixed offset loses its name. A subclass of a
    carried type (IntEnum, namedtuple, OrderedDict) is refused unless it is registered.

    An instance belongs to one event loop and is used in its thread only: it reuses its buffers, and plain functions
    that run in threads get decoded values. Loops in several threads each need a codec of their own.
    """

    content_type = "application/msgpack"

    def register(self, cls: type[_T], code: int, encode: Callable[[_T], Any], decode: Callable[[Any], _T]) -> None:
        """Carry values of *cls*, written as what *encode* makes of them.

        Both sides register the same code. A subclass that is not registered itself goes as its nearest registered
        base; *encode* gets the instance as it is and may tell them apart.

        Raises:
            ValueError: *code* is not in 64..127 or is taken, or *cls* is registered or carried without.
        """
        name = type_name(cls)
        if type(code) is not int or code not in USER_CODES:
            raise ValueError(f"code must be an int from 64 to 127, not {code!r}")
        if (taken := self._by_code.get(code)) is not None:
            raise ValueError(f"code {code} is taken by {taken.name}")
        if cls in NATIVE or cls in self._by_type:
            raise ValueError(f"cls is carried or registered already: {name}")

        def dump(value: _T) -> bytes:
            try:
                plain = encode(value)
            except Exception as error:
                raise CodecError(f"the encoder registered for {name} raised {type_name(type(error))}") from error
            return self.encode(plain)

        def load(payload: bytes) -> _T:
            plain = self.decode(payload)
            try:
                return decode(plain)
            except Exception as error:
                raise CodecError(f"the decoder registered for {name} raised {type_name(type(error))}") from error

        self._add(cls, Extension(code, name, dump, load), inherited=True)
