"""Values to bodies and back: the codecs, the accept list, compression and the size limits.

`MsgpackCodec` is the default. What MessagePack has no type for travels as an extension, and so these codes are part of
the wire; the payload of a container is MessagePack itself:

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

The only module that imports msgpack. Errors name types, sizes and limits, never a value.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, InvalidOperation
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]  # it ships no annotations

from aiorpcq.errors import CodecError, ContentDisallowed, PayloadTooLarge

if sys.version_info >= (3, 14):
    try:
        from compression import zstd
    except ImportError:  # an interpreter built without it
        zstd = None  # type: ignore[assignment]  # tested before use
try:
    import zstandard
except ImportError:  # the extra is not installed
    zstandard = None  # type: ignore[assignment]  # tested before use

__all__ = ["Codec", "Codecs", "JsonCodec", "MsgpackCodec"]

_T = TypeVar("_T")
_unpackb = msgpack.unpackb

_USER_CODES: Final = range(64, 128)
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
_SHORT: Final = 255
"""Bytes of an AMQP short string, as which a content type travels (AMQP 0-9-1, section 4.2.5.3)."""
_SHOWN: Final = 100
"""Characters of a content type from the network that an error shows."""


class Codec(Protocol):
    """One way to write values as bytes, known to both sides by its content type (lower case).

    Both methods run in the event loop and raise `CodecError`; anything else they raise becomes one.
    """

    content_type: str

    def encode(self, value: Any) -> bytes: ...

    def decode(self, body: bytes) -> Any: ...


class _Extension(NamedTuple):
    code: int
    name: str
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], Any]


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
        self._by_type: dict[type, _Extension] = {}
        self._registered: dict[type, _Extension] = {}
        self._by_code: dict[int, _Extension] = {}
        for cls, (code, dump, load) in _SCALARS.items():
            self._add(cls, _Extension(code, _name(cls), dump, load))
        for cls, code in _CONTAINERS.items():
            self._add(cls, _Extension(code, _name(cls), self._dump_items, partial(self._load_items, cls)))

    def register(self, cls: type[_T], code: int, encode: Callable[[_T], Any], decode: Callable[[Any], _T]) -> None:
        """Carry values of *cls*, written as what *encode* makes of them.

        Both sides register the same code. A subclass that is not registered itself goes as its nearest registered
        base; *encode* gets the instance as it is and may tell them apart.

        Raises:
            ValueError: *code* is not in 64..127 or is taken, or *cls* is registered or carried without.
        """
        name = _name(cls)
        if type(code) is not int or code not in _USER_CODES:
            raise ValueError(f"code must be an int from 64 to 127, not {code!r}")
        if (taken := self._by_code.get(code)) is not None:
            raise ValueError(f"code {code} is taken by {taken.name}")
        if cls in _NATIVE or cls in self._by_type:
            raise ValueError(f"cls is carried or registered already: {name}")

        def dump(value: _T) -> bytes:
            try:
                plain = encode(value)
            except Exception as error:
                raise CodecError(f"the encoder registered for {name} raised {_name(type(error))}") from error
            return self.encode(plain)

        def load(payload: bytes) -> _T:
            plain = self.decode(payload)
            try:
                return decode(plain)
            except Exception as error:
                raise CodecError(f"the decoder registered for {name} raised {_name(type(error))}") from error

        self._registered[cls] = extension = _Extension(code, name, dump, load)
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
            raise _encode_error(error) from error
        if len(body) > _KEPT:
            self._packers[depth] = self._new_packer()
        return body

    def decode(self, body: bytes) -> Any:
        """Read what `encode` wrote.

        Raises:
            CodecError: *body* is anything else.
        """
        try:
            if len(body) <= _UNSCANNED and self._depth <= _SHALLOW:
                # Given by name here: a partial of it takes twice the time, measured.
                return _unpackb(body, ext_hook=self._hook, strict_map_key=False)
            return self._unpack_with_care(body)
        except CodecError:
            raise
        except Exception as error:
            raise _decode_error(error) from error

    def _add(self, cls: type, extension: _Extension) -> None:
        self._by_type[cls] = self._by_code[extension.code] = extension

    def _new_packer(self) -> Any:
        return msgpack.Packer(default=self._dump, strict_types=True, use_bin_type=True)

    def _unpack_with_care(self, body: bytes) -> Any:
        _scan(body)
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

    def _inherited(self, cls: type) -> _Extension:
        for base in cls.__mro__:
            if (extension := self._registered.get(base)) is not None:
                return extension
        raise CodecError(f"cannot encode a value of type {_name(cls)}; register the type with the codec")

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
            raise _encode_error(error) from error

    def decode(self, body: bytes) -> Any:
        """Read a JSON text.

        Raises:
            CodecError: *body* is anything else.
        """
        try:
            text = body.decode()
            value = json.loads(text, parse_constant=_finite, parse_float=_finite)
            if "\\ud" in text or "\\uD" in text:  # an escaped lone surrogate is no text, and could not be sent on
                _dump_json(value).encode()
        except Exception as error:
            raise _decode_error(error) from error
        return value


class Codecs:
    """What a client or worker encodes with, what it accepts, and the limits on both.

    *accept* holds codecs, or content types of *default* and the built-in ones; without it that is *default*,
    MessagePack and JSON. A given list is exact: *default* too decodes only what is on it. *compression* ("zstd" or
    "gzip") is used for bodies longer than *compress_above* bytes; compressed bodies are accepted with or without it.
    *max_size* bounds a body as it travels and *max_decompressed* the same unpacked, in bytes.

    Raises:
        ValueError: an option is out of its range; the message names it.
    """

    def __init__(
        self,
        default: Codec | None = None,
        *,
        accept: Sequence[str | Codec] | None = None,
        compression: str | None = None,
        compress_above: int = 16384,
        max_size: int = 8 * 1024 * 1024,
        max_decompressed: int = 64 * 1024 * 1024,
    ) -> None:
        self._default: Codec = MsgpackCodec() if default is None else default
        self._content_type = _content_type("default", self._default)
        self._max_size = _at_least("max_size", max_size, 1)
        self._max_decompressed = _at_least("max_decompressed", max_decompressed, 1)
        self._compression = _compression(compression)
        self._encoding = compression
        self._compress_above = _at_least("compress_above", compress_above, 0)
        self._plain = max_size if compression is None else min(compress_above, max_size)
        self._accepted = _accepted(self._default, accept)

    @property
    def default(self) -> Codec:
        """The codec that values are encoded with."""
        return self._default

    @property
    def accepts(self) -> tuple[str, ...]:
        """The content types that are decoded."""
        return tuple(self._accepted)

    @property
    def max_size(self) -> int:
        """The bytes that a body may have as it travels."""
        return self._max_size

    def register(self, codec: Codec) -> None:
        """Accept the content type of *codec*; a codec of the same content type gives way, for encoding too."""
        content_type = _content_type("codec", codec)
        self._accepted[content_type] = codec
        if content_type == self._content_type:
            self._default = codec

    def encode(self, value: Any) -> tuple[bytes, str, str | None]:
        """Return the body, its content type and its content encoding.

        Raises:
            CodecError: the default codec cannot carry *value*.
            PayloadTooLarge: the body is past a limit that the same options on the other side would refuse it by.
        """
        try:
            body = self._default.encode(value)
        except CodecError:
            raise
        except Exception as error:
            raise _encode_error(error) from error
        if len(body) > self._plain:
            return self._shrink(body)
        return body, self._content_type, None

    def decode(self, body: bytes, content_type: str | None, content_encoding: str | None) -> Any:
        """Return the value of *body*; its content type is compared as a whole and in lower case.

        Raises:
            ContentDisallowed: the type or encoding is not accepted; nothing was decoded.
            PayloadTooLarge: the body, or what it decompresses to, is past its limit.
            CodecError: the body is not what its type and encoding say.
        """
        codec = self._accepted.get(content_type) or self._find(content_type)  # type: ignore[arg-type]  # None: refused
        if len(body) > self._max_size:
            raise _too_large(len(body), self._max_size)
        if content_encoding is not None:
            body = self._decompress(body, content_encoding)
        try:
            return codec.decode(body)
        except CodecError:
            raise
        except Exception as error:
            raise _decode_error(error) from error

    def _find(self, content_type: str | None) -> Codec:
        if content_type is None:
            raise ContentDisallowed("content type None is not accepted")
        codec = self._accepted.get(content_type.lower())
        if codec is None:
            raise ContentDisallowed(f"content type {content_type[:_SHOWN]!r} is not accepted")
        return codec

    def _shrink(self, body: bytes) -> tuple[bytes, str, str | None]:
        smaller, encoding = body, None
        if self._compression is not None and len(body) > self._compress_above:
            if len(body) > self._max_decompressed:
                raise _too_large(len(body), self._max_decompressed)
            smaller, encoding = self._compression.compress(body), self._encoding
            if len(smaller) >= len(body):
                smaller, encoding = body, None
        if len(smaller) > self._max_size:
            raise _too_large(len(smaller), self._max_size)
        return smaller, self._content_type, encoding

    def _decompress(self, body: bytes, content_encoding: str) -> bytes:
        compression = _COMPRESSIONS.get(content_encoding)
        if compression is None:
            raise ContentDisallowed(f"content encoding {content_encoding[:_SHOWN]!r} is not accepted")
        try:
            return compression.decompress(body, self._max_decompressed)
        except (CodecError, PayloadTooLarge):
            raise
        except Exception as error:
            raise CodecError(f"cannot decompress a body as {content_encoding}") from error


def _accepted(default: Codec, accept: Sequence[str | Codec] | None) -> dict[str, Codec]:
    known: dict[str, Codec] = {default.content_type: default}
    for codec in (MsgpackCodec(), JsonCodec()):
        known.setdefault(codec.content_type, codec)
    if accept is None:
        return known
    if isinstance(accept, str) or not accept:
        raise ValueError("accept must be a sequence of at least one content type or codec")
    accepted: dict[str, Codec] = {}
    for item in accept:
        if not isinstance(item, str):
            accepted[_content_type("accept", item)] = item
        elif item in known:
            accepted[item] = known[item]
        else:
            raise ValueError(f"accept names {item!r}, which has no codec here; give the codec itself")
    return accepted


def _content_type(option: str, codec: Codec) -> str:
    content_type = getattr(codec, "content_type", None)
    if type(content_type) is not str or content_type != content_type.lower() or not 0 < len(content_type) <= _SHORT:
        raise ValueError(f"{option} must be a codec with a content type in lower case, not of {content_type!r}")
    return content_type


def _at_least(option: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{option} must be an int of at least {least}, not {value!r}")
    return value


def _compression(name: str | None) -> _Compression | None:
    if name is None:
        return None
    if name not in ("zstd", "gzip"):
        raise ValueError(f"compression must be None, 'zstd' or 'gzip', not {name!r}")
    if name not in _COMPRESSIONS:
        raise ValueError("compression 'zstd' needs the zstandard package: install aiorpcq[zstd]")
    return _COMPRESSIONS[name]


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _too_large(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"a body of {size} bytes is larger than the limit of {limit}")


def _encode_error(error: Exception) -> CodecError:
    if isinstance(error, UnicodeEncodeError):
        return CodecError("cannot encode a str with lone surrogates")
    if isinstance(error, RecursionError) or "recursion limit" in str(error):  # msgpack's is a ValueError
        return CodecError("cannot encode a value nested too deeply")
    return CodecError(f"cannot encode the value: {_name(type(error))}")


def _decode_error(error: Exception) -> CodecError:
    if isinstance(error, UnicodeError):
        return CodecError("cannot decode a body with invalid utf-8")
    if isinstance(error, (RecursionError, msgpack.StackError)):
        return CodecError("cannot decode a body nested too deeply")
    if isinstance(error, msgpack.ExtraData):
        return CodecError("cannot decode a body with trailing bytes")
    if isinstance(error, TypeError):
        return CodecError("cannot decode a body with a key that cannot be hashed")
    return CodecError("cannot decode a malformed or truncated body")


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
            f"cannot encode a {_name(type(value))} with a tzinfo of type {_name(type(tzinfo))};"
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


_COMPLEX: Final = struct.Struct(">dd")
_STRICT: Final = Context(traps=[InvalidOperation])  # whatever the caller's context, what is no number raises
_TINY_OFFSET: Final = re.compile(r"([+-])00:00:00\.([0-9]{6})$")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")  # ZoneInfo opens a file of this name
_NATIVE: Final = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict, msgpack.ExtType, msgpack.Timestamp}
)
_CONTAINERS: Final[dict[type, int]] = {tuple: 1, set: 2, frozenset: 3}
_SCALARS: Final[dict[type, tuple[int, Callable[[Any], bytes], Callable[[bytes], Any]]]] = {
    int: (0, _dump_int, _load_int),
    datetime: (4, _dump_moment, partial(_load_moment, datetime)),
    date: (5, _dump_date, _load_date),
    time: (6, _dump_moment, partial(_load_moment, time)),
    timedelta: (7, _dump_timedelta, _load_timedelta),
    UUID: (8, _dump_uuid, _load_uuid),
    Decimal: (9, _dump_decimal, _load_decimal),
    complex: (10, _dump_complex, _load_complex),
}


_dump_json: Final = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_json(value: Any) -> None:
    cls = type(value)
    if cls is list or cls is tuple:
        for item in value:
            _check_json(item)
    elif cls is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise CodecError(f"cannot encode a dict key of type {_name(type(key))}; JSON has only str keys")
            _check_json(item)
    elif cls not in (str, int, float, bool, type(None)):
        raise CodecError(f"cannot encode a value of type {_name(cls)}; JSON cannot carry it")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


@dataclass(frozen=True, slots=True)
class _Compression:
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]


def _compress_gzip(body: bytes) -> bytes:
    return zlib.compress(body, 1, wbits=31)  # level 1: it runs in the event loop


def _decompress_gzip(body: bytes, limit: int) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), body, limit)


def _whole(decompressor: Any, body: bytes, limit: int) -> bytes:
    value: bytes = decompressor.decompress(body, limit + 1)
    if len(value) > limit:
        raise PayloadTooLarge(f"a body decompresses to more than the limit of {limit} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise CodecError("cannot decompress a body that is truncated or has trailing bytes")
    return value


_COMPRESSIONS: Final = {"gzip": _Compression(_compress_gzip, _decompress_gzip)}


def _window_log(limit: int) -> int:
    # A frame declares the window that its decoder keeps. RFC 8878, section 3.1.1.1.2 asks for 8 MiB; a larger one is
    # taken as far as the limit on the result allows.
    return min(max(23, (limit - 1).bit_length()), 30)


if sys.version_info >= (3, 14) and zstd is not None:

    def _compress_zstd(body: bytes) -> bytes:
        return zstd.compress(body)

    def _decompress_zstd(body: bytes, limit: int) -> bytes:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _window_log(limit)}
        return _whole(zstd.ZstdDecompressor(options=options), body, limit)

    _COMPRESSIONS["zstd"] = _Compression(_compress_zstd, _decompress_zstd)
elif zstandard is not None:

    def _compress_zstd(body: bytes) -> bytes:
        return zstandard.ZstdCompressor().compress(body)

    def _decompress_zstd(body: bytes, limit: int) -> bytes:
        # One call with the size known checks the end of the frame as well, which this package's streams do not tell.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _window_log(limit))
        size = zstandard.get_frame_parameters(body).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            size = _stream_size(decompressor, body, limit)
        if size > limit:
            raise PayloadTooLarge(f"a body decompresses to more than the limit of {limit} bytes")
        value = decompressor.decompress(body, max_output_size=max(size, 1), allow_extra_data=False)
        # A second frame, which the call left out; and after an empty frame it does not look for one.
        if len(value) != size or size == 0:
            raise CodecError("cannot decompress a body that is truncated or has trailing bytes")
        return value

    def _stream_size(decompressor: zstandard.ZstdDecompressor, body: bytes, limit: int) -> int:
        size = 0
        with decompressor.stream_reader(body) as reader:
            while size <= limit and (chunk := reader.read(_KEPT)):
                size += len(chunk)
        return size

    _COMPRESSIONS["zstd"] = _Compression(_compress_zstd, _decompress_zstd)
