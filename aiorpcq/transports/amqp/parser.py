"""FrameParser: cuts inbound bytes at the boundaries of AMQP 0-9-1 frames.

Content of the channels it is told of, and the methods that decide whether a lane may go on, become events; every other
frame is passed through in order, and unchanged but for a Tune that sets no limit to frames.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from .frames import BODY, CONTENT_HEADER_SIZE, END, FRAME_OVERHEAD, HEADER, METHOD, FrameError

__all__ = ["Event", "EventKind", "FrameParser"]

_LARGEST_UNNEGOTIATED: Final = 1 << 20
_LARGEST_WITHOUT_LIMIT: Final = 131_072  # RabbitMQ's own default
_CONFIRM_SIZE: Final = 13  # of its payload: class, method, delivery tag, bits

_CONFIRM: Final = Struct(">QB")  # delivery tag, bits
_BODY_SIZE: Final = Struct(">Q")


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
_TUNE: Final = (10 << 16) + 30
_FRAME_MAX: Final = 6  # in a Tune's payload: behind the method and the largest channel number
_CONNECTION: Final = {
    (10 << 16) + 50: EventKind.CONNECTION_CLOSED,
    (10 << 16) + 60: EventKind.BLOCKED,
    (10 << 16) + 61: EventKind.UNBLOCKED,
}


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
        "_needed",
        "_partial",
        "_payload_max",
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
        return self._payload_max + FRAME_OVERHEAD

    @frame_max.setter
    def frame_max(self, size: int) -> None:
        self._payload_max = size - FRAME_OVERHEAD
        # What `_on_content` takes within this need not be checked further.
        self._at_once = min(self._payload_max, self.max_body)

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

        What passes through comes last: whoever keeps the connection reads it in a task of its own, later. Confirms, and
        content that is all there, are read in place: they are nearly all that comes.
        """
        position, end = 0, len(data)
        channels, assemblies, limit = self._channels, self._assemblies, self._payload_max
        passed: list[bytes] = []
        self._needed = FRAME_OVERHEAD
        while end - position >= FRAME_OVERHEAD:
            kind, channel, size = data[position], _short(data, position + 1), _long(data, position + 3)
            stop = position + size + FRAME_OVERHEAD
            if size > limit:
                raise FrameError(f"frame of {size + FRAME_OVERHEAD} bytes, negotiated are {limit + FRAME_OVERHEAD}")
            if stop > end:
                self._needed = stop - position
                break
            if data[stop - 1] != END:
                raise FrameError(f"frame of type {kind} on channel {channel} does not end with the end octet")
            if channel not in channels:
                frame = data[position:stop]
                passed.append(self._on_connection(frame, events) if channel == 0 and kind == METHOD else frame)
            elif kind != METHOD:
                self._on_content_frame(kind, channel, data[position + 7 : stop - 1], events)
            elif channel in assemblies or size < _CONFIRM_SIZE:
                if not self._on_method(channel, data[position + 7 : stop - 1], events):
                    passed.append(data[position:stop])
            else:
                method = _long(data, position + 7)
                event = _CONFIRMS.get(method)
                if event is not None:
                    tag, bits = _CONFIRM.unpack_from(data, position + 11)
                    events.append(_event(Event, (event, channel, b"", b"", b"", tag, bits & 1 == 1)))
                elif (event := _CONTENT.get(method)) is not None:
                    stop = self._on_content(event, channel, data[position + 7 : stop - 1], data, stop, events)
                elif not self._on_method(channel, data[position + 7 : stop - 1], events):
                    passed.append(data[position:stop])
            position = stop
        if passed:
            events.append(Event(EventKind.PASS, 0, b"".join(passed)))
        return position

    def _on_content(
        self, kind: EventKind, channel: int, method: bytes, data: bytes, position: int, events: list[Event]
    ) -> int:
        """Handle a method that content follows; return how far *data* was read."""
        end = len(data)
        if end - position >= FRAME_OVERHEAD + CONTENT_HEADER_SIZE:
            size = _long(data, position + 3)
            body_size: int = _BODY_SIZE.unpack_from(data, position + 11)[0]
            stop = position + size + FRAME_OVERHEAD
            body_stop = stop + body_size + FRAME_OVERHEAD if body_size else stop
            if (
                body_stop <= end
                and data[position] == HEADER
                and _short(data, position + 1) == channel
                and size >= CONTENT_HEADER_SIZE
                and size + body_size <= self._at_once
                and data[stop - 1] == END
                and data[body_stop - 1] == END
                and (not body_size or _is_body(data, stop, channel, body_size))
            ):
                body = data[stop + 7 : body_stop - 1] if body_size else b""
                events.append(_event(Event, (kind, channel, method, data[position + 7 : stop - 1], body, 0, False)))
                return body_stop
        self._assemblies[channel] = _Assembly(kind, method)
        return position

    def _on_content_frame(self, kind: int, channel: int, payload: bytes, events: list[Event]) -> None:
        """Handle a header or body frame of content that did not come in one piece."""
        assembly = self._assemblies.get(channel)
        if assembly is None:
            raise FrameError(f"frame of type {kind} on channel {channel} without a method before it")
        if kind == HEADER and assembly.header is None:
            if len(payload) < CONTENT_HEADER_SIZE:
                raise FrameError(f"content header of {len(payload)} bytes on channel {channel}")
            assembly.header = payload
            assembly.missing = _BODY_SIZE.unpack_from(payload, 4)[0]
            if assembly.missing > self.max_body:
                assembly.oversize = assembly.missing
        elif kind == BODY and assembly.header is not None:
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

    def _on_method(self, channel: int, payload: bytes, events: list[Event]) -> bool:
        """Handle any method of a lane channel; return False where it is to be passed through."""
        method = _method_id(payload, channel)
        closing = method in _CHANNEL_CLOSING
        if channel in self._assemblies:
            if not closing:
                raise FrameError(f"method frame on channel {channel} in the midst of content")
            del self._assemblies[channel]
        if closing:
            self._channels.discard(channel)
            events.append(Event(EventKind.CHANNEL_CLOSED, channel, payload[4:]))
            return False
        if method in _CONFIRMS:
            raise FrameError(f"confirm of {len(payload)} bytes on channel {channel}")
        content = _CONTENT.get(method)
        if content is not None:
            self._assemblies[channel] = _Assembly(content, payload)
            return True
        kind = _CONSUMER.get(method)
        if kind is None:
            return False
        events.append(Event(kind, channel, payload[5 : 5 + payload[4]] if len(payload) > 4 else b""))
        # The broker's own cancel is passed through: aiormq answers it where the broker wants an answer.
        return kind is EventKind.CANCEL_OK

    def _on_connection(self, frame: bytes, events: list[Event]) -> bytes:
        """Handle a method of the connection itself; return the frame to pass through."""
        payload = frame[7:-1]
        method = _method_id(payload, 0)
        kind = _CONNECTION.get(method)
        if kind is not None:
            events.append(Event(kind, 0, payload[4:]))
        elif method == _TUNE and payload[_FRAME_MAX : _FRAME_MAX + 4] == bytes(4):
            # 0 sets no limit, and whoever keeps the connection would answer with the same: a body would come in one
            # frame, to be buffered whole whatever its size. The client may ask for less (AMQP 0-9-1, tune-ok).
            limit = _LARGEST_WITHOUT_LIMIT.to_bytes(4, "big")
            return frame[:7] + payload[:_FRAME_MAX] + limit + payload[_FRAME_MAX + 4 :] + frame[-1:]
        return frame


def _is_body(data: bytes, at: int, channel: int, size: int) -> bool:
    return data[at] == BODY and _short(data, at + 1) == channel and _long(data, at + 3) == size


# Compiled, these take half the time of a `Struct`, whose tuples and numbers are objects.


def _short(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _long(data: bytes, at: int) -> int:
    return data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]


def _method_id(payload: bytes, channel: int) -> int:
    if len(payload) < 4:
        raise FrameError(f"method frame of {len(payload)} bytes on channel {channel}")
    return _long(payload, 0)
