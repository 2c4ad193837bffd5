"""Packing: MessagePack, with extensions for what it has no type for; compiled, see `hatch_build.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships no annotations

from ..errors import CodecError, PayloadTooLarge
from ..subclassing import mypyc_attr
from .contents import check_msgpack
from .errors import decode_error, encode_error, type_name
from .extensions import CONTAINERS, SCALARS, Extension

__all__ = ["Packing"]

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


@mypyc_attr(allow_interpreted_subclasses=True)
class Packing:
    """Values to MessagePack and back, by the types that are built in and those that are added."""

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

    def _add(self, cls: type, extension: Extension, *, inherited: bool = False) -> None:
        """Carry values of *cls* as *extension*; where it is *inherited*, those of its subclasses too."""
        self._by_type[cls] = self._by_code[extension.code] = extension
        if inherited:
            self._registered[cls] = extension

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
