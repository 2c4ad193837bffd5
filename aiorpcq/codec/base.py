"""What a codec is."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Codec", "EncodedBody"]

EncodedBody = tuple[bytes, str, str | None]
"""A value as it travels: data, content type, content encoding."""


class Codec(Protocol):
    """One way to write values as bytes, known to both sides by its content type (lower case).

    *encode* returns `bytes`, and nothing that can change on its way, such as a bytearray. Both methods run in the event
    loop and raise `CodecError`; anything else they raise becomes one, but that `PayloadTooLarge` passes where *decode*
    raises it.
    """

    content_type: str

    def encode(self, value: Any) -> bytes: ...

    def decode(self, body: bytes) -> Any: ...
