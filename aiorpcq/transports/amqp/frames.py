"""AMQP 0-9-1 content frames, without I/O: publishes and acknowledgements out, deliveries, returns and confirms in.

`FrameParser` cuts inbound bytes at frame boundaries. Content of the channels it is told of, and the methods that decide
whether a lane may go on, become events; every other frame is passed through unchanged and in order. The layout of
frames is in section 2.3 of the AMQP 0-9-1 specification, the numbers of classes and methods in its XML, `nack` and the
confirms in RabbitMQ's extensions.
"""

from __future__ import annotations

import struct
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from ...protocol.messages import Publication
from .properties import PropertyError, encode_properties, encode_short_string

__all__ = [
    "BASIC_CONSUME",
    "BASIC_QOS",
    "FRAME_OVERHEAD",
    "HEARTBEAT",
    "Event",
    "EventKind",
    "FrameError",
    "FrameParser",
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

_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_END: Final = 0xCE
_END_BYTE: Final = b"\xce"
_LARGEST_UNNEGOTIATED: Final = 1 << 20
_CONTENT_HEADER_SIZE: Final = 14

_CONFIRM_SIZE: Final = 13
_KEPT_METHODS: Final = 1_000

_FRAME: Final = Struct(">BHI")
_CONTENT_HEADER: Final = Struct(">BHIHHQH")  # frame header, class 60, weight 0, body size, property flags
_BODY_SIZE: Final = Struct(">Q")
_SETTLE: Final = Struct(">BHIHHQBB")  # frame header, class, method, delivery tag, bits, end octet
_TAG: Final = Struct(">Q")
_METHOD_ID: Final = Struct(">I")

_BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28\x00\x00"  # class 60, method 40, and the reserved short that follows


class EventKind(Enum):
    """What the parser found."""

    PASS = "pass"
    """*payload*: whole frames for whoever keeps the connection."""
    DELIVER = "deliver"
    RETURN = "return"
    ACK = "ack"
    """A confirm: *tag*, *multiple*."""
    NACK = "nack"
    CANCEL = "cancel"
    """The broker cancelled a consumer; *payload* is its tag."""
    CANCEL_OK = "cancel-ok"
    CHANNEL_CLOSED = "channel-closed"
    """Channel.Close or Channel.CloseOk; *payload* is the method's arguments. Passed through as well."""
    CONNECTION_CLOSED = "connection-closed"
    BLOCKED = "blocked"
    UNBLOCKED = "unblocked"


class Event(NamedTuple):
    """One thing that the parser found; a tuple, since several are made for every call.

    *tag* is that of a confirm; of content it is the size of a body that was skipped, 0 for all others.
    """

    kind: EventKind
    channel: int
    payload: bytes
    header: bytes = b""
    body: bytes = b""
    tag: int = 0
    multiple: bool = False


_event = tuple.__new__  # an Event without the Python function that its own constructor is: a third of the cost

_BASIC: Final = 60 << 16
_CONTENT: Final = {_BASIC + 60: EventKind.DELIVER, _BASIC + 50: EventKind.RETURN}
_CONFIRMS: Final = {_BASIC + 80: EventKind.ACK, _BASIC + 120: EventKind.NACK}
_CONSUMER: Final = {_BASIC + 30: EventKind.CANCEL, _BASIC + 31: EventKind.CANCEL_OK}
_CHANNEL_CLOSING: Final = frozenset({(20 << 16) + 40, (20 << 16) + 41})
_CONNECTION: Final = {
    (10 << 16) + 50: EventKind.CONNECTION_CLOSED,
    (10 << 16) + 60: EventKind.BLOCKED,
    (10 << 16) + 61: EventKind.UNBLOCKED,
}


class FrameError(Exception):
    """The peer sent bytes that are no AMQP 0-9-1 frames, or frames in an order that the specification forbids."""


class _Assembly:
    """Content that is not complete yet."""

    __slots__ = ("chunks", "header", "kind", "method", "missing", "oversize")

    def __init__(self, kind: EventKind, method: bytes) -> None:
        self.kind = kind
        self.method = method
        self.header: bytes | None = None
        self.missing = 0
        self.oversize = 0
        self.chunks: list[bytes] = []


class FrameParser:
    """Inbound bytes to events.

    *channels* are the lane's; the set is shared and may change between reads. A channel that closes leaves it, since
    its number may be another's from the next frame on. A frame of more than *frame_max* bytes is refused; a body above
    *max_body* bytes is skipped and its size told, since closing the connection would only have it delivered again. What
    is buffered is bounded by those two.
    """

    __slots__ = (
        "_assemblies",
        "_at_once",
        "_channels",
        "_frame_max",
        "_needed",
        "_partial",
        "_raw",
        "_started",
        "max_body",
    )

    def __init__(self, channels: set[int], max_body: int) -> None:
        self._channels = channels
        self._assemblies: dict[int, _Assembly] = {}
        self._partial = bytearray()
        self._needed = FRAME_OVERHEAD
        self._started = False
        self._raw = False
        self.max_body = max_body
        self.frame_max = _LARGEST_UNNEGOTIATED

    @property
    def frame_max(self) -> int:
        """Bytes of the largest frame."""
        return self._frame_max

    @frame_max.setter
    def frame_max(self, size: int) -> None:
        self._frame_max = size
        # What `_on_content` takes within this need not be checked further.
        self._at_once = min(size - FRAME_OVERHEAD, self.max_body)

    def feed(self, data: bytes) -> list[Event]:
        """Return what *data* completes.

        Raises:
            FrameError: the bytes are malformed; the connection is of no more use.
        """
        if not self._started:
            self._started = True
            self._raw = data.startswith(b"A")  # a protocol header in answer to ours: another version, no frames
        if self._raw:
            return [Event(EventKind.PASS, 0, data)]
        partial = self._partial
        if partial:
            partial += data
            if len(partial) < self._needed:
                return []
            data = bytes(partial)
            partial.clear()
        events: list[Event] = []
        position = self._parse(data, events)
        if position < len(data):
            partial += data[position:]
        return events

    def _parse(self, data: bytes, events: list[Event]) -> int:
        """Append the events of all whole frames in *data*; return where the rest begins.

        What passes through comes last: whoever keeps the connection reads it in a task of its own, later.
        """
        position, end = 0, len(data)
        channels, unpack = self._channels, _FRAME.unpack_from
        passed: list[bytes] = []
        self._needed = FRAME_OVERHEAD
        while end - position >= FRAME_OVERHEAD:
            kind, channel, size = unpack(data, position)
            stop = position + size + FRAME_OVERHEAD
            if size + FRAME_OVERHEAD > self._frame_max:
                raise FrameError(f"frame of {size + FRAME_OVERHEAD} bytes, negotiated are {self._frame_max}")
            if stop > end:
                self._needed = stop - position
                break
            if data[stop - 1] != _END:
                raise FrameError(f"frame of type {kind} on channel {channel} does not end with the end octet")
            if channel in channels:
                payload = data[position + 7 : stop - 1]
                if kind == _METHOD:
                    method = _method_id(payload, channel)
                    content = _CONTENT.get(method)
                    if content is not None and channel not in self._assemblies:
                        stop = self._on_content(content, channel, payload, data, stop, events)
                    elif not self._on_method(method, channel, payload, events):
                        passed.append(data[position:stop])
                else:
                    self._on_content_frame(kind, channel, payload, events)
            else:
                if channel == 0 and kind == _METHOD:
                    self._peek(_method_id(data[position + 7 : stop - 1], 0), data[position + 11 : stop - 1], events)
                passed.append(data[position:stop])
            position = stop
        if passed:
            events.append(Event(EventKind.PASS, 0, b"".join(passed)))
        return position

    def _on_content(
        self, kind: EventKind, channel: int, method: bytes, data: bytes, position: int, events: list[Event]
    ) -> int:
        """Handle a method that content follows; return how far *data* was read.

        Content that is all there, in one body frame at the most, is taken at once: nearly all of it is, and this
        halves the cost of a delivery.
        """
        end = len(data)
        if end - position >= FRAME_OVERHEAD + _CONTENT_HEADER_SIZE:
            frame, frame_channel, size = _FRAME.unpack_from(data, position)
            stop: int = position + size + FRAME_OVERHEAD
            if (
                frame == _HEADER
                and frame_channel == channel
                and size >= _CONTENT_HEADER_SIZE
                and stop <= end
                and data[stop - 1] == _END
            ):
                body_size = _BODY_SIZE.unpack_from(data, position + 11)[0]
                if size + body_size <= self._at_once:
                    header = data[position + 7 : stop - 1]
                    if not body_size:
                        events.append(_event(Event, (kind, channel, method, header, b"", 0, False)))
                        return stop
                    body_stop: int = stop + body_size + FRAME_OVERHEAD
                    if (
                        body_stop <= end
                        and data[body_stop - 1] == _END
                        and _FRAME.unpack_from(data, stop) == (_BODY, channel, body_size)
                    ):
                        body = data[stop + 7 : body_stop - 1]
                        events.append(_event(Event, (kind, channel, method, header, body, 0, False)))
                        return body_stop
        self._assemblies[channel] = _Assembly(kind, method)
        return position

    def _on_content_frame(self, kind: int, channel: int, payload: bytes, events: list[Event]) -> None:
        """Handle a header or body frame of content that did not come in one piece."""
        assembly = self._assemblies.get(channel)
        if assembly is None:
            raise FrameError(f"frame of type {kind} on channel {channel} without a method before it")
        if kind == _HEADER and assembly.header is None:
            if len(payload) < _CONTENT_HEADER_SIZE:
                raise FrameError(f"content header of {len(payload)} bytes on channel {channel}")
            assembly.header = payload
            assembly.missing = _BODY_SIZE.unpack_from(payload, 4)[0]
            if assembly.missing > self.max_body:
                assembly.oversize = assembly.missing
        elif kind == _BODY and assembly.header is not None:
            assembly.missing -= len(payload)
            if assembly.missing < 0:
                raise FrameError(f"body on channel {channel} is longer than its header says")
            if payload and not assembly.oversize:
                assembly.chunks.append(payload)
        else:
            raise FrameError(f"frame of type {kind} on channel {channel} is out of order")
        if not assembly.missing:
            del self._assemblies[channel]
            body = b"".join(assembly.chunks)
            events.append(Event(assembly.kind, channel, assembly.method, assembly.header, body, assembly.oversize))

    def _on_method(self, method: int, channel: int, payload: bytes, events: list[Event]) -> bool:
        """Handle a method without content on a lane channel; return False where it is to be passed through."""
        closing = method in _CHANNEL_CLOSING
        if channel in self._assemblies:
            if not closing:
                raise FrameError(f"method frame on channel {channel} in the midst of content")
            del self._assemblies[channel]
        if closing:
            self._channels.discard(channel)
            events.append(Event(EventKind.CHANNEL_CLOSED, channel, payload[4:]))
            return False
        kind = _CONFIRMS.get(method)
        if kind is not None:
            if len(payload) < _CONFIRM_SIZE:
                raise FrameError(f"confirm of {len(payload)} bytes on channel {channel}")
            tag, bits = _TAG.unpack_from(payload, 4)[0], payload[12]
            events.append(_event(Event, (kind, channel, b"", b"", b"", tag, bool(bits & 1))))
            return True
        kind = _CONSUMER.get(method)
        if kind is None:
            return False
        events.append(Event(kind, channel, payload[5 : 5 + payload[4]] if len(payload) > 4 else b""))
        # The broker's own cancel is passed through: aiormq answers it where the broker wants an answer.
        return kind is EventKind.CANCEL_OK

    def _peek(self, method: int, arguments: bytes, events: list[Event]) -> None:
        kind = _CONNECTION.get(method)
        if kind is not None:
            events.append(Event(kind, 0, arguments))


def _method_id(payload: bytes, channel: int) -> int:
    if len(payload) < 4:
        raise FrameError(f"method frame of {len(payload)} bytes on channel {channel}")
    number: int = _METHOD_ID.unpack_from(payload)[0]
    return number


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
        self._properties_max = self._payload_max - _CONTENT_HEADER_SIZE

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
        header = _CONTENT_HEADER.pack(_HEADER, channel, _CONTENT_HEADER_SIZE + len(properties), 60, 0, size, flags)
        if size + len(properties) <= self._properties_max:  # each fits a frame for certain
            if not size:
                return b"".join((method, header, properties, _END_BYTE))
            frame = _FRAME.pack(_BODY, channel, size)
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
            parts += (_FRAME.pack(_BODY, channel, len(chunk)), chunk, _END_BYTE)
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
        frame = _FRAME.pack(_METHOD, self._channel, len(payload)) + payload + _END_BYTE
        if len(self._methods) >= _KEPT_METHODS:
            self._methods.clear()
        self._methods[exchange, routing_key, mandatory] = frame
        return frame


def encode_ack(channel: int, tag: int, multiple: bool) -> bytes:
    """Return the frame that acknowledges delivery *tag*, and all before it where *multiple*."""
    return _SETTLE.pack(_METHOD, channel, 13, 60, 80, tag, multiple, _END)


def encode_nack(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return the frame that refuses delivery *tag*."""
    return _SETTLE.pack(_METHOD, channel, 13, 60, 120, tag, 2 if requeue else 0, _END)


def encode_cancel(channel: int, consumer_tag: str) -> bytes:
    """Return the frame that cancels a consumer and asks for CancelOk."""
    payload = b"\x00\x3c\x00\x1e" + encode_short_string(consumer_tag, "consumer tag") + b"\x00"
    return _FRAME.pack(_METHOD, channel, len(payload)) + payload + _END_BYTE


def encode_cancel_ok(channel: int, consumer_tag: bytes) -> bytes:
    """Return the frame that answers the broker's own cancel of a consumer."""
    payload = b"\x00\x3c\x00\x1f" + bytes((len(consumer_tag),)) + consumer_tag
    return _FRAME.pack(_METHOD, channel, len(payload)) + payload + _END_BYTE


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
