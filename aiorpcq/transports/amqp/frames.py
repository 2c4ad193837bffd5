"""AMQP 0-9-1 frames, without I/O: how they are laid out, those we send, and what the arguments of others say.

The layout of frames is in section 2.3 of the AMQP 0-9-1 specification, the numbers of classes and methods in its XML,
`nack` in RabbitMQ's extensions. Inbound bytes are cut into frames by `parser.FrameParser`.
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import Final

from ...protocol.messages import Publication
from .properties import PropertyError, encode_properties, encode_short_string

__all__ = [
    "BASIC_CONSUME",
    "BASIC_QOS",
    "BODY",
    "CONTENT_HEADER_SIZE",
    "END",
    "FRAME",
    "FRAME_OVERHEAD",
    "HEADER",
    "HEARTBEAT",
    "METHOD",
    "FrameError",
    "PublishEncoder",
    "close_cause",
    "close_reason",
    "delivery_route",
    "encode_ack",
    "encode_cancel",
    "encode_cancel_ok",
    "encode_nack",
    "return_route",
    "split_delivery",
]

FRAME_OVERHEAD: Final = 8
"""Bytes of a frame besides its payload: type, channel, size and the end octet."""

HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

BASIC_QOS: Final = (60, 10)
BASIC_CONSUME: Final = (60, 20)

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
END: Final = 0xCE
"""The octet that ends a frame."""

FRAME: Final = Struct(">BHI")
"""What a frame begins with: type, channel, size of its payload."""

CONTENT_HEADER_SIZE: Final = 14
"""Bytes of the payload of a content header before its properties."""

_END_BYTE: Final = b"\xce"
_KEPT_METHODS: Final = 1_000
_CONTENT_HEADER: Final = Struct(">BHIHHQH")  # frame header, class 60, weight 0, body size, property flags
_SETTLE: Final = Struct(">BHIHHQBB")  # frame header, class, method, delivery tag, bits, end octet
_TAG: Final = Struct(">Q")

_BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28\x00\x00"  # class 60, method 40, and the reserved short that follows


class FrameError(Exception):
    """The peer sent bytes that are no AMQP 0-9-1 frames, or frames in an order that the specification forbids."""


class PublishEncoder:
    """Publications to the frames of one channel.

    What a publish says besides its content is the same for every message to a routing key; those frames are kept, up to
    a thousand.
    """

    __slots__ = ("_channel", "_methods", "_payload_max", "_properties_max")

    def __init__(self, channel: int, frame_max: int) -> None:
        self._channel = channel
        self._methods: dict[tuple[str, str, bool], bytes] = {}
        self._payload_max = frame_max - FRAME_OVERHEAD
        self._properties_max = self._payload_max - CONTENT_HEADER_SIZE

    def encode(self, publication: Publication) -> bytes:
        """Return the frames of *publication*: method, header, and the body split at the negotiated frame size.

        Raises:
            PropertyError: a property does not fit its field, or all of them do not fit a frame.
        """
        key = (publication.exchange, publication.routing_key, publication.mandatory)
        method = self._methods.get(key)
        if method is None:
            method = self._method(*key)
        flags, properties = encode_properties(publication.properties)
        body, channel = publication.body, self._channel
        size = len(body)
        header = _CONTENT_HEADER.pack(HEADER, channel, CONTENT_HEADER_SIZE + len(properties), 60, 0, size, flags)
        if size + len(properties) <= self._properties_max:  # each fits a frame for certain
            if not size:
                return b"".join((method, header, properties, _END_BYTE))
            frame = FRAME.pack(BODY, channel, size)
            return b"".join((method, header, properties, _END_BYTE, frame, body, _END_BYTE))
        if len(properties) > self._properties_max:
            # A content header cannot be split, and RabbitMQ closes the connection on a frame that is too large.
            raise PropertyError(
                f"properties and headers have {len(properties)} bytes, the limit is {self._properties_max}"
            )
        parts = [method, header, properties, _END_BYTE]
        step = self._payload_max
        for start in range(0, size, step):
            chunk = body[start : start + step]
            parts += (FRAME.pack(BODY, channel, len(chunk)), chunk, _END_BYTE)
        return b"".join(parts)

    def _method(self, exchange: str, routing_key: str, mandatory: bool) -> bytes:
        payload = b"".join(
            (
                _BASIC_PUBLISH,
                encode_short_string(exchange, "exchange"),
                encode_short_string(routing_key, "routing key"),
                b"\x01" if mandatory else b"\x00",
            )
        )
        frame = FRAME.pack(METHOD, self._channel, len(payload)) + payload + _END_BYTE
        if len(self._methods) >= _KEPT_METHODS:
            self._methods.clear()
        self._methods[exchange, routing_key, mandatory] = frame
        return frame


def encode_ack(channel: int, tag: int, multiple: bool) -> bytes:
    """Return the frame that acknowledges delivery *tag*, and all before it where *multiple*."""
    return _SETTLE.pack(METHOD, channel, 13, 60, 80, tag, multiple, END)


def encode_nack(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return the frame that refuses delivery *tag*."""
    return _SETTLE.pack(METHOD, channel, 13, 60, 120, tag, 2 if requeue else 0, END)


def encode_cancel(channel: int, consumer_tag: str) -> bytes:
    """Return the frame that cancels a consumer and asks for CancelOk."""
    payload = b"\x00\x3c\x00\x1e" + encode_short_string(consumer_tag, "consumer tag") + b"\x00"
    return FRAME.pack(METHOD, channel, len(payload)) + payload + _END_BYTE


def encode_cancel_ok(channel: int, consumer_tag: bytes) -> bytes:
    """Return the frame that answers the broker's own cancel of a consumer."""
    payload = b"\x00\x3c\x00\x1f" + bytes((len(consumer_tag),)) + consumer_tag
    return FRAME.pack(METHOD, channel, len(payload)) + payload + _END_BYTE


def split_delivery(method: bytes) -> tuple[bytes, int, bool]:
    """Return consumer tag, delivery tag and redelivered of Basic.Deliver.

    Raises:
        FrameError: it is cut short.
    """
    try:
        at = 5 + method[4]
        return method[5:at], _TAG.unpack_from(method, at)[0], bool(method[at + 8] & 1)
    except (IndexError, struct.error) as error:
        raise FrameError(f"method frame of {len(method)} bytes for a delivery") from error


def delivery_route(method: bytes) -> tuple[str, str]:
    """Return exchange and routing key of Basic.Deliver; raises `FrameError` where it is cut short."""
    at = 5 + method[4] + 9
    exchange, at = _short_string(method, at)
    return exchange, _short_string(method, at)[0]


def return_route(method: bytes) -> tuple[str, str, str]:
    """Return reply text, exchange and routing key of Basic.Return; raises `FrameError` where it is cut short."""
    text, at = _short_string(method, 6)
    exchange, at = _short_string(method, at)
    return text, exchange, _short_string(method, at)[0]


def close_reason(arguments: bytes) -> str:
    """Return code and text of Channel.Close or Connection.Close; empty for the CloseOk methods."""
    if len(arguments) < 3:
        return ""
    return f"{int.from_bytes(arguments[:2], 'big')} {_short_string(arguments, 2)[0]}"


def close_cause(arguments: bytes) -> tuple[int, int]:
    """Return class and method that Channel.Close is the answer to; zeros where the broker closed it by itself."""
    if len(arguments) < 3:
        return 0, 0
    cause = arguments[_short_string_end(arguments, 2) :]
    return int.from_bytes(cause[:2], "big"), int.from_bytes(cause[2:4], "big")


def _short_string_end(data: bytes, at: int) -> int:
    return at + 1 + data[at]


def _short_string(data: bytes, at: int) -> tuple[str, int]:
    if at >= len(data):
        raise FrameError(f"method frame of {len(data)} bytes ends before its last text")
    stop = at + 1 + data[at]
    return data[at + 1 : stop].decode("utf-8", "replace"), stop
