"""LaneProtocol: what stands between the socket and aiormq's reader.

It cuts the inbound bytes at frame boundaries, hands the frames of lane channels to their `Lane`, and feeds all others
to aiormq unchanged. Outbound it joins what one iteration of the event loop has to send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from ...errors import ConnectionLost, RPCError
from ...protocol.messages import Properties
from .frames import HEARTBEAT, FrameError, close_reason
from .lane import Lane
from .parser import EventKind, FrameParser

__all__ = ["LaneProtocol"]

_HEARTBEAT_FEED_INTERVAL: Final = 1.0
"""Seconds between the heartbeats that are fed to aiormq while lane frames flow: it thinks a link without frames
dead."""

_SILENT_HEARTBEATS: Final = 2
_LOOKS_PER_HEARTBEAT: Final = 4


_OUT_LIMIT: Final = 1024 * 1024
"""Bytes that one iteration of the event loop may have to send before publishers wait: the transport's own high-water
mark counts only what was handed to it."""

_PASS: Final = EventKind.PASS  # a global: in Python 3.11 a member costs four times as much to look up on its class


class LaneProtocol(asyncio.StreamReaderProtocol):
    """The protocol of one connection: splits what comes in, joins what goes out, and listens for silence.

    *on_lost* is called once, with the reason; *on_lane_closed* with each lane whose channel the broker closed, which it
    has to close.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
        max_body: int,
        on_lost: Callable[[RPCError], None],
        on_writable: Callable[[bool], None],
        on_lane_closed: Callable[[Lane, ConnectionLost], None] | None = None,
    ) -> None:
        super().__init__(reader, loop=loop)
        self.loop = loop
        self.blocked = False
        self.blocks = 0  # how often it was, so far
        self._channels: set[int] = set()
        self._parser = FrameParser(self._channels, max_body)
        self._max_body = max_body
        self._lanes: dict[int, Lane] = {}
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._on_lane_closed = on_lane_closed
        self._out: list[bytes] = []
        self._acking: list[Lane] = []
        self._flush_scheduled = False
        self._frame_max = 0
        self._out_size = 0
        self._full = False
        self._paused = False
        self._lost: ConnectionLost | None = None
        self._heard = True
        self._silences = 0
        self._fed_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._socket: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; aiormq gets it through its own writer."""
        self._socket = cast(asyncio.Transport, transport)  # uvloop's do not inherit from asyncio's
        super().connection_made(transport)
        if self._lost is not None:
            self._socket.abort()

    def negotiated(self, frame_max: int, heartbeat: float) -> None:
        """Take the tuned parameters: bytes of the largest frame, seconds between heartbeats (0 is none)."""
        self._frame_max = self._parser.frame_max = frame_max
        if heartbeat > 0:
            self._watch(heartbeat)

    @property
    def writable(self) -> bool:
        """Whether the broker has not blocked us and the output buffer is below its high-water mark."""
        return not self._paused and not self.blocked and not self._full

    def open_lane(self, channel: int, on_returned: Callable[[str, Properties], None] | None = None) -> Lane:
        """Take over a channel that aiormq has opened in confirm mode."""
        lane = self._lanes[channel] = Lane(self, channel, self._frame_max, self._max_body, on_returned)
        self._channels.add(channel)
        if self._lost is not None:
            lane.close(self._lost)
        return lane

    def lane_closed(self, lane: Lane, error: ConnectionLost) -> None:
        """Let *lane* go, whose channel the broker closed: what waits to be sent on it is not.

        After aiormq's CloseOk it would cost the whole connection (504).
        """
        if self._on_lane_closed is None:
            self.fail(error)
            return
        del self._lanes[lane.channel]
        channel = lane.channel.to_bytes(2, "big")
        self._out = [frames for frames in self._out if frames[1:3] != channel]
        self._acking = [other for other in self._acking if other is not lane]
        self._on_lane_closed(lane, error)

    def write(self, frames: bytes) -> None:
        """Send whole frames with everything else of this iteration of the event loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
        self._out.append(frames)
        self._out_size += len(frames)
        if self._out_size > _OUT_LIMIT and not self._full:
            self._full = True
            self._on_writable(False)

    def write_at_once(self, frames: bytes) -> None:
        """Send whole frames now, unless others wait already: where nothing else is under way nothing will join them,
        and an iteration of the event loop is a third of the caller's part in a call made alone.
        """
        if self._flush_scheduled or self._lost is not None or self._socket is None:
            self.write(frames)
        else:
            self._send(self._socket, frames)

    def _send(self, transport: asyncio.Transport, frames: bytes) -> None:
        try:
            transport.write(frames)
        except RuntimeError:
            # aiormq has heard the end of the connection first, and has ended its own side. Later: who publishes
            # has not registered yet what is lost now.
            self.loop.call_soon(self.fail, ConnectionLost("the connection to the broker is closed"))

    def flush_soon(self, lane: Lane) -> None:
        """Have the acknowledgements of *lane* sent with everything else of this iteration."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
        self._acking.append(lane)

    def _flush(self) -> None:
        """Send what waits; nothing, where it was sent at the end of a read."""
        self._flush_scheduled = False
        out, self._out = self._out, []
        if self._acking:
            acking, self._acking = self._acking, []
            out.extend(lane.pending_acks() for lane in acking)
        if out and self._lost is None and self._socket is not None:
            self._send(self._socket, b"".join(out))
        self._out_size = 0
        if self._full:
            self._full = False
            self._on_writable(self.writable)

    def data_received(self, data: bytes) -> None:
        """Handle lane events on the spot, and feed the rest to aiormq's reader."""
        self._heard = True
        scheduled, self._flush_scheduled = self._flush_scheduled, True  # what the handlers send goes out below
        lane_events = False
        try:
            for event in self._parser.feed(data):
                kind = event.kind
                if kind is _PASS:
                    super().data_received(event.payload)
                elif event.channel:
                    lane_events = True
                    self._lanes[event.channel].handle(event)
                elif kind is EventKind.CONNECTION_CLOSED:
                    self._lose(ConnectionLost(f"the broker closed the connection: {close_reason(event.payload)}"))
                else:
                    self._set_blocked(kind is EventKind.BLOCKED)
        except FrameError as error:
            self.fail(ConnectionLost(f"the broker sent a malformed frame: {error}"))
            return
        finally:
            self._flush_scheduled = scheduled
        if not scheduled and (self._out or self._acking):
            self._flush()
        if lane_events:
            now = self.loop.time()
            if now - self._fed_at >= _HEARTBEAT_FEED_INTERVAL:
                self._fed_at = now
                super().data_received(HEARTBEAT)

    def pause_writing(self) -> None:
        """Past the transport's high-water mark: publishers wait."""
        super().pause_writing()
        self._paused = True
        self._on_writable(False)

    def resume_writing(self) -> None:
        """Below the low-water mark again."""
        super().resume_writing()
        self._paused = False
        self._on_writable(self.writable)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        super().connection_lost(exc)
        self._lose(ConnectionLost("the connection to the broker was closed" + (f": {exc}" if exc else "")))

    @property
    def is_lost(self) -> bool:
        """See `LaneConnection`."""
        return self._lost is not None

    def fail(self, error: ConnectionLost) -> None:
        """Give up on the connection: nothing more can be done with it in order."""
        self._lose(error)
        if self._socket is not None:
            self._socket.abort()

    def _lose(self, error: ConnectionLost) -> None:
        if self._lost is not None:
            return
        self._lost = error  # what waits is not sent: after a CloseOk it would cost the whole connection (504)
        if self._watchdog is not None:
            self._watchdog.cancel()
        for lane in self._lanes.values():
            lane.close(error)
        self._on_writable(False)
        self._on_lost(error)

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        self.blocks += blocked
        self._on_writable(self.writable)

    def _watch(self, heartbeat: float) -> None:
        """Give up after two silent heartbeats (AMQP 0-9-1, section 4.2.7), counted in quarters of one."""
        self._silences = 0 if self._heard else self._silences + 1
        self._heard = False
        if self._silences >= _SILENT_HEARTBEATS * _LOOKS_PER_HEARTBEAT - 1:
            self.fail(ConnectionLost(f"the broker was silent for {_SILENT_HEARTBEATS} heartbeats of {heartbeat:g} s"))
            return
        self._watchdog = self.loop.call_later(heartbeat / _LOOKS_PER_HEARTBEAT, self._watch, heartbeat)
