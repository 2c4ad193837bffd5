"""Bodies: values to bodies and back, within the limits; compiled, see `hatch_build.py`."""

from __future__ import annotations

from typing import Any, Final

from ..errors import CodecError, ContentDisallowed, PayloadTooLarge
from ..subclassing import mypyc_attr
from .base import Codec
from .compression import COMPRESSIONS, Compression
from .errors import decode_error, encode_error, too_large

__all__ = ["Bodies"]

_SHOWN: Final = 100
"""Characters of a content type from the network that an error shows."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Bodies:
    """What bodies are written and read with. The options are those of `Codecs`, checked there."""

    def __init__(
        self,
        default: Codec,
        accepted: dict[str, Codec],
        compression: Compression | None,
        encoding: str | None,
        compress_above: int,
        max_size: int,
        max_decompressed: int,
    ) -> None:
        self._default = default
        self._content_type: str = default.content_type
        self._accepted = accepted
        self._compression = compression
        self._encoding = encoding
        self._compress_above = compress_above
        self._max_size = max_size
        self._max_decompressed = max_decompressed
        self._plain = max_size if compression is None else min(compress_above, max_size)

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

    def _shrink(self, body: bytes) -> tuple[bytes, str, str | None]:
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
