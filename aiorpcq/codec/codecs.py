"""The codecs of one client or worker: what it encodes with, what it accepts, and the limits on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..errors import CodecError, ContentDisallowed, PayloadTooLarge
from ..limits import DEFAULT_MAX_SIZE, check_integer, check_iterable, check_max_size
from .base import Codec, EncodedBody
from .binary import MsgpackCodec
from .compression import COMPRESSIONS, Compression
from .errors import decode_error, encode_error, too_large
from .text import JsonCodec

__all__ = ["Codecs"]

_SHORT: Final = 255
"""Bytes of an AMQP short string, as which a content type travels (AMQP 0-9-1, section 4.2.5.3)."""
_MOST_BYTES: Final = 2**40
_SHOWN: Final = 100
"""Characters of a content type from the network that an error shows."""


class Codecs:
    """What a client or worker encodes with, what it accepts, and the limits on both.

    *accept* holds codecs, or content types of *default* and the built-in ones; without it that is *default*,
    MessagePack and JSON. A given list is exact: *default* too decodes only what is on it. *compression* ("zstd" or
    "gzip") is used for bodies longer than *compress_above* bytes; compressed bodies are accepted with or without it.
    *max_size* bounds a body as it travels and *max_decompressed* the same unpacked, in bytes. An error reply must fit,
    so *max_size* is at least 1,024.

    Decoded, a body takes up to 100 times its unpacked bytes: an empty dict is one byte of MessagePack and 72 of memory.
    The built-in codecs therefore decode at most 500,000 lists, dicts and extended values and 4,000,000 values in a
    body: 1.5 GB of the worst kind, sets of short texts, measured. *encode* does not count them. Where memory is scarce,
    lower *max_decompressed* and *max_size*: the factor holds for them.

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
        max_size: int = DEFAULT_MAX_SIZE,
        max_decompressed: int = 32 * 1024 * 1024,
    ) -> None:
        self._default: Codec = MsgpackCodec() if default is None else default
        self._content_type = _content_type("default", self._default)
        self._max_size = check_max_size(max_size)
        self._max_decompressed = check_integer(max_decompressed, "max_decompressed", 1, _MOST_BYTES)
        self._compression = _compression(compression)
        self._encoding = compression
        self._compress_above = check_integer(compress_above, "compress_above", 0, _MOST_BYTES)
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

    def encode(self, value: Any) -> EncodedBody:
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
            raise encode_error(error) from error
        if not isinstance(body, bytes):
            raise CodecError(f"the codec of {self._content_type} returned a {type(body).__name__}, not bytes")
        if len(body) > self._plain:
            return self._shrink(body)
        return body, self._content_type, None

    def decode(self, body: bytes, content_type: str | None, content_encoding: str | None) -> Any:
        """Return the value of *body*; its content type is compared as a whole and in lower case.

        Raises:
            ContentDisallowed: the type or encoding is not accepted; nothing was decoded.
            PayloadTooLarge: the body, what it decompresses to, or the number of values in it is past its limit.
            CodecError: the body is not what its type and encoding say.
        """
        codec = self._accepted.get(content_type) or self._find(content_type)  # type: ignore[arg-type]  # None: refused
        if len(body) > self._max_size:
            raise too_large(len(body), self._max_size)
        if content_encoding is not None:
            body = self._decompress(body, content_encoding)
        try:
            return codec.decode(body)
        except (CodecError, PayloadTooLarge):
            raise
        except Exception as error:
            raise decode_error(error) from error

    def _find(self, content_type: str | None) -> Codec:
        if content_type is None:
            raise ContentDisallowed("content type None is not accepted")
        codec = self._accepted.get(content_type.lower())
        if codec is None:
            raise ContentDisallowed(f"content type {content_type[:_SHOWN]!r} is not accepted")
        return codec

    def _shrink(self, body: bytes) -> EncodedBody:
        smaller, encoding = body, None
        if self._compression is not None and len(body) > self._compress_above:
            if len(body) > self._max_decompressed:
                raise too_large(len(body), self._max_decompressed)
            smaller, encoding = self._compression.compress(body), self._encoding
            if len(smaller) >= len(body):
                smaller, encoding = body, None
        if len(smaller) > self._max_size:
            raise too_large(len(smaller), self._max_size)
        return smaller, self._content_type, encoding

    def _decompress(self, body: bytes, content_encoding: str) -> bytes:
        compression = COMPRESSIONS.get(content_encoding)
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
    check_iterable(accept, "accept")
    if not accept:
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


def _compression(name: str | None) -> Compression | None:
    if name is None:
        return None
    if name not in ("zstd", "gzip"):
        raise ValueError(f"compression must be None, 'zstd' or 'gzip', not {name!r}")
    if name not in COMPRESSIONS:
        raise ValueError("compression 'zstd' needs the zstandard package: install aiorpcq[zstd]")
    return COMPRESSIONS[name]
