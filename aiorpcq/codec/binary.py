"""The default codec: MessagePack, with extensions for what it has no type for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

import msgpack  # type: ignore[import-untyped]  # it ships no annotations

from ..errors import CodecError, PayloadTooLarge
from .contents import check_msgpack
from .errors import decode_error, encode_error, type_name
from .extensions import CONTAINERS, NATIVE, SCALARS, USER_CODES, Extension

__all__ = ["MsgpackCodec"]

_T = TypeVar("_T")
_unpackb = msgpack.unpackb

_MAX_EXTENSIONS: Final = 64
"""Extensions inside each other. Each costs C stack on both sides, and a body must not be able to exhaust it."""
_SHALLOW: Final = 1
"""Extensions inside each other up to which msgpack's own limit, 1,024 lists and dicts inside each other, is enough."""
_MAX_INNER: Final = 24
"""Lists and dicts inside each other in a payload that is deeper than that: 1,024 take 450 KiB of C stack, measured."""
_MAX_HELD: Final = 128 * 1024 * 1024
"""Bytes of extension payloads decoded inside each other: each is a copy of a part of the one around it, twice."""
_UNSCANNED: Final = 512
"""Bodies up to this many bytes are unpacked at once; in longer ones the declared lengths are checked first."""
_KEPT: Final = 1024 * 1024
"""Bytes of the buffer that a packer may keep for its next value."""


class MsgpackCodec:
    """MessagePack with the types of the standard library that arguments are made of; what arrives equals what was sent.

    Not carried over: a bytearray or memoryview arrives as bytes, and a fixed offset loses its name. A subclass of a
    carried type (IntEnum, namedtuple, OrderedDict) is refused unless it is registered.

    An instance belongs to one event loop and is used in its thread only: it reuses its buffers, and plain functions
    that run in threads get decoded values. Loops in several threads each need a codec of their own.
    """

    content_type = "application/msgpack"

    def __init__(self) -> None:
        self._depth = 0  # extensions around what is being encoded or decoded now
        self._held = 0  # bytes of their payloads
        self._packers = [self._new_packer()]  # by depth: a packer that is at work cannot take another value
        self._hook = self._load  # bound once
        self._by_type: dict[type, Extension] = {}
        self._registered: dict[type, Extension] = {}
        self._by_code: dict[int, Extension] = {}
        for cls, (code, dump, load) in SCALARS.items():
            self._add(cls, Extension(code, type_name(cls), dump, load))
        for cls, code in CONTAINERS.items():
            self._add(cls, Extension(code, type_name(cls), self._dump_items, partial(self._load_items, cls)))

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

        self._registered[cls] = extension = Extension(code, name, dump, load)
        self._add(cls, extension)

    def encode(self, value: Any) -> bytes:
        """Write *value*.

        Raises:
            CodecError: a type in it is not carried, a str in it is not valid text, or it is nested too deeply.
        """
        depth = self._depth
        if depth > _SHALLOW:
            _check_nesting(value, _MAX_INNER)
        packer = self._packers[depth]
        try:
            body: bytes = packer.pack(value)
        except BaseException as error:
            packer.reset()
            if isinstance(error, CodecError) or not isinstance(error, Exception):
                raise
            raise encode_error(error) from error
        if len(body) > _KEPT:
            self._packers[depth] = self._new_packer()
        return body

    def decode(self, body: bytes) -> Any:
        """Read what `encode` wrote.

        Raises:
            PayloadTooLarge: *body* holds more than 500,000 lists, dicts and extended values, or 4,000,000 values.
            CodecError: *body* is anything else.
        """
        try:
            if len(body) <= _UNSCANNED and self._depth <= _SHALLOW:
                # Given by name here: a partial of it takes twice the time, measured.
                return _unpackb(body, ext_hook=self._hook, strict_map_key=False)
            return self._unpack_with_care(body)
        except (CodecError, PayloadTooLarge):
            raise
        except Exception as error:
            raise decode_error(error) from error

    def _add(self, cls: type, extension: Extension) -> None:
        self._by_type[cls] = self._by_code[extension.code] = extension

    def _new_packer(self) -> Any:
        return msgpack.Packer(default=self._dump, strict_types=True, use_bin_type=True)

    def _unpack_with_care(self, body: bytes) -> Any:
        _scan(body)
        if self._depth == 0:  # what is inside was counted with what is around it
            check_msgpack(body)
        if self._depth <= _SHALLOW:
            return _unpackb(body, ext_hook=self._hook, strict_map_key=False)
        # unpackb keeps 40 KiB of state on the C stack, an Unpacker keeps it on the heap.
        unpacker = msgpack.Unpacker(max_buffer_size=len(body), ext_hook=self._hook, strict_map_key=False)
        unpacker.feed(body)
        return unpacker.unpack()

    def _dump(self, value: Any) -> Any:
        cls = type(value)
        extension = self._by_type.get(cls) or self._inherited(cls)
        depth = self._depth
        if depth == _MAX_EXTENSIONS:
            raise CodecError(f"cannot encode more than {_MAX_EXTENSIONS} extended values inside each other")
        if len(self._packers) == depth + 1:
            self._packers.append(self._new_packer())
        self._depth = depth + 1
        try:
            return msgpack.ExtType(extension.code, extension.dump(value))
        finally:
            self._depth = depth

    def _inherited(self, cls: type) -> Extension:
        for base in cls.__mro__:
            if (extension := self._registered.get(base)) is not None:
                return extension
        raise CodecError(f"cannot encode a value of type {type_name(cls)}; register the type with the codec")

    def _load(self, code: int, payload: bytes) -> Any:
        extension = self._by_code.get(code)
        if extension is None:
            raise CodecError(f"cannot decode extension code {code}; no type is registered for it")
        depth, held = self._depth, self._held
        if depth == _MAX_EXTENSIONS or held + len(payload) > _MAX_HELD:
            raise CodecError("cannot decode a body nested too deeply")
        self._depth, self._held = depth + 1, held + len(payload)
        try:
            return extension.load(payload)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"cannot decode a value of type {extension.name}") from error
        finally:
            self._depth, self._held = depth, held

    def _dump_items(self, value: Iterable[Any]) -> bytes:
        return self.encode(list(value))

    def _load_items(self, cls: Callable[[list[Any]], Any], payload: bytes) -> Any:
        items = self.decode(payload)
        if type(items) is not list:
            raise ValueError("not an array")
        return cls(items)


def _scan(body: bytes) -> None:
    # msgpack allocates a list by its declared length, 8 bytes an item, before it sees the items, and a thousand may be
    # declared inside each other. Skipping allocates nothing, and ends where the bytes do.
    unpacker = msgpack.Unpacker(max_buffer_size=len(body) or 1)
    unpacker.feed(body)
    unpacker.skip()
    if unpacker.tell() != len(body):
        raise CodecError("cannot decode a body with trailing bytes")


def _check_nesting(value: Any, left: int) -> None:
    if type(value) is dict:
        value = value.values()  # a key that is hashable holds no list or dict, but in an extension
    elif type(value) is not list:
        return
    if left == 0:
        raise CodecError("cannot encode a value nested too deeply")
    for item in value:
        _check_nesting(item, left - 1)
