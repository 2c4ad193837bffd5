"""How bodies are compressed, and decompressed up to a limit: with gzip, and zstd where it is installed."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import CodecError, PayloadTooLarge

if sys.version_info >= (3, 14):
    try:
        from compression import zstd
    except ImportError:  # an interpreter built without it
        zstd = None  # type: ignore[assignment]  # tested before use
try:
    import zstandard
except ImportError:  # the extra is not installed
    zstandard = None  # type: ignore[assignment]  # tested before use

__all__ = ["COMPRESSIONS", "Compression"]

_PORTION: Final = 1024 * 1024
"""Bytes read at once of a stream that does not tell its size."""


@dataclass(frozen=True, slots=True)
class Compression:
    """A content encoding; *decompress* takes the bytes that its result may have."""

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


COMPRESSIONS: Final = {"gzip": Compression(_compress_gzip, _decompress_gzip)}


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

    COMPRESSIONS["zstd"] = Compression(_compress_zstd, _decompress_zstd)
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
            while size <= limit and (chunk := reader.read(_PORTION)):
                size += len(chunk)
        return size

    COMPRESSIONS["zstd"] = Compression(_compress_zstd, _decompress_zstd)
