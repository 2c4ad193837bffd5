"""The fast lane: the messages of one channel, on a connection that aiormq keeps.

aiormq opens and closes the connection and its channels; publishes, deliveries, confirms, returns and acknowledgements
of a lane channel never reach it. `LaneProtocol` stands between the socket and aiormq's reader, `Lane` is one channel
of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from ...errors import ConnectionLost, PayloadTooLarge, RPCError
from ...protocol.messages import Outcome, Properties, Publication
from ..base import Delivery
from .frames import (
    HEARTBEAT,
    Event,
    EventKind,
    FrameError,
    FrameParser,
    PublishEncoder,
    close_reason,
    delivery_route,
    encode_ack,
    encode_cancel,
    encode_nack,
    return_route,
    split_delivery,
)
from .properties import PropertyError, decode_properties

__all__ = ["Lane", "LaneDelivery", "LaneProtocol"]

logger = logging.getLogger("aiorpcq.amqp")

_HEARTBEAT_FEED_INTERVAL: Final = 1.0
"""Seconds between the heartbeats that are fed to aiormq while lane frames flow: it thinks a link without frames
dead."""

_SILENT_HEARTBEATS: Final = 2
_LOOKS_PER_HEARTBEAT: Final = 4


# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_DELIVER: Final = EventKind.DELIVER
_ACK: Final = EventKind.ACK
_PASS: Final = EventKind.PASS
_CONFIRMED: Final = Outcome.CONFIRMED


class LaneDelivery:
    """A message of a lane channel. Exchange and routing key are read from the frame when somebody asks."""

    __slots__ = ("_lane", "_method", "_tag", "body", "oversize", "properties", "redelivered")

    def __init__(
        self,
        lane: Lane | None,
        method: bytes,
        tag: int,
        properties: Properties,
        body: bytes,
        redelivered: bool,
        oversize: int = 0,
    ) -> None:
        self._lane = lane
        self._method = method
        self._tag = tag
        self.properties = properties
        self.body = body
        self.redelivered = redelivered
        self.oversize = oversize

    @property
    def exchange(self) -> str:
        """The exchange it was published to."""
        return delivery_route(self._method)[0]

    @property
    def routing_key(self) -> str:
        """The routing key it was published with."""
        return delivery_route(self._method)[1]

    def ack(self) -> None:
        """See `Delivery`."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.ack(self._tag)

    def nack(self, *, requeue: bool) -> None:
        """See `Delivery`."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.nack(self._tag, requeue=requeue)


class _Consumer:
    __slots__ = ("cancelled", "no_ack", "on_delivery")

    def __init__(self, on_delivery: Callable[[Delivery], None], no_ack: bool) -> None:
        self.on_delivery = on_delivery
        self.no_ack = no_ack
        self.cancelled: asyncio.Future[None] | None = None


class Lane:
    """One channel in confirm mode: what is unconfirmed, what is unacknowledged, who consumes.

    The unconfirmed are bounded by what callers and workers have under way, the unacknowledged by prefetch.
    """

    __slots__ = (
        "_acks",
        "_confirm_floor",
        "_consumers",
        "_encoder",
        "_max_body",
        "_next_tag",
        "_protocol",
        "_unconfirmed",
        "_unsettled",
        "channel",
        "closed",
    )

    def __init__(self, protocol: LaneProtocol, channel: int, frame_max: int, max_body: int) -> None:
        self.channel = channel
        self.closed: ConnectionLost | None = None
        self._protocol = protocol
        self._encoder = PublishEncoder(channel, frame_max)
        self._max_body = max_body
        self._next_tag = 1
        self._confirm_floor = 1
        self._unconfirmed: dict[int, Publication] = {}
        self._consumers: dict[bytes, _Consumer] = {}
        self._acks: set[int] = set()
        self._unsettled: dict[int, None] = {}  # delivery tags in order

    @property
    def unconfirmed(self) -> int:
        """Publications whose outcome somebody waits for."""
        return len(self._unconfirmed)

    def publish(self, publication: Publication) -> None:
        """See `Link.publish`."""
        if len(publication.body) > self._max_body:
            size = len(publication.body)
            raise PayloadTooLarge(f"body of {size} bytes, the limit max_size is {self._max_body}")
        if self.closed is not None:
            if publication.settled is not None:
                self._protocol.loop.call_soon(publication.settled, publication, Outcome.LOST)
            return
        frames = self._encoder.encode(publication)
        if self._unconfirmed or publication.settled is None:  # of the unconfirmed it cannot tell how many are under way
            self._protocol.write(frames)
        else:
            self._protocol.write_at_once(frames)
        tag = self._next_tag
        self._next_tag = tag + 1
        if publication.settled is not None:
            self._unconfirmed[tag] = publication

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery, together with all others of this iteration of the event loop."""
        if self.closed is None:
            if not self._acks:
                self._protocol.flush_soon(self)
            self._acks.add(tag)

    def nack(self, tag: int, *, requeue: bool) -> None:
        """Refuse a delivery at once."""
        if self.closed is None:
            self._unsettled.pop(tag, None)
            self._protocol.write(encode_nack(self.channel, tag, requeue=requeue))

    def pending_acks(self) -> bytes:
        """Return the frames of the acknowledgements that wait: one frame where they are all that came before the
        last."""
        acks, self._acks = self._acks, set()
        unsettled, last, covered = self._unsettled, 0, 0
        for tag in unsettled:
            if tag not in acks:
                break
            last = tag
            covered += 1
        if covered == len(acks):
            frames = encode_ack(self.channel, last, covered > 1) if covered else b""
        else:
            frames = b"".join([encode_ack(self.channel, tag, False) for tag in acks])
        for tag in acks:
            unsettled.pop(tag, None)
        return frames

    def add_consumer(self, tag: str, on_delivery: Callable[[Delivery], None], *, no_ack: bool) -> None:
        """Route deliveries for consumer *tag*; to be called before the broker is asked to consume."""
        self._consumers[tag.encode()] = _Consumer(on_delivery, no_ack)

    async def cancel_consumer(self, tag: str) -> None:
        """Cancel a consumer and wait until nothing more comes for it, or the lane is closed."""
        consumer = self._consumers.get(tag.encode())
        if consumer is None or self.closed is not None:
            return
        if consumer.cancelled is None:
            consumer.cancelled = self._protocol.loop.create_future()
            self._protocol.write(encode_cancel(self.channel, tag))
        await asyncio.shield(consumer.cancelled)

    def handle(self, event: Event) -> None:
        """Handle one event of this channel."""
        kind = event.kind
        if kind is _DELIVER:
            self._deliver(event)
        elif kind is _ACK:
            self._confirm(event.tag, event.multiple, _CONFIRMED)
        elif kind is EventKind.NACK:
            self._confirm(event.tag, event.multiple, Outcome.REFUSED)
        elif kind is EventKind.RETURN:
            self._return(event)
        elif kind is EventKind.CANCEL_OK:
            consumer = self._consumers.pop(event.payload, None)
            if consumer is not None and consumer.cancelled is not None:
                _wake(consumer.cancelled)
        elif kind is EventKind.CANCEL:
            self._protocol.fail(ConnectionLost("the broker cancelled a consumer: its queue was deleted or moved"))
        else:
            self._protocol.fail(ConnectionLost(f"the broker closed the channel: {close_reason(event.payload)}"))

    def close(self, error: ConnectionLost) -> None:
        """Settle everything as lost."""
        if self.closed is not None:
            return
        self.closed = error
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        consumers, self._consumers = self._consumers, {}
        self._acks.clear()
        for publication in unconfirmed.values():
            _settle(publication, Outcome.LOST)
        for consumer in consumers.values():
            if consumer.cancelled is not None:
                _wake(consumer.cancelled)

    def _deliver(self, event: Event) -> None:
        consumer_tag, tag, redelivered = split_delivery(event.payload)
        consumer = self._consumers.get(consumer_tag)
        if consumer is None:
            self.nack(tag, requeue=True)
            return
        try:
            properties = decode_properties(event.header)
        except PropertyError as error:
            logger.warning("a message on channel %d has malformed properties: %s", self.channel, error)
            properties = Properties()
        if not consumer.no_ack:
            self._unsettled[tag] = None
        delivery = LaneDelivery(
            None if consumer.no_ack else self, event.payload, tag, properties, event.body, redelivered, event.tag
        )
        try:
            consumer.on_delivery(delivery)
        except Exception:
            logger.exception("a delivery handler failed")

    def _confirm(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        unconfirmed = self._unconfirmed
        if not multiple:
            publication = unconfirmed.pop(tag, None)
            if publication is not None:
                _settle(publication, outcome)
            return
        stop = min(tag + 1, self._next_tag)
        for covered in range(self._confirm_floor, stop):
            publication = unconfirmed.pop(covered, None)
            if publication is not None:
                _settle(publication, outcome)
        self._confirm_floor = max(self._confirm_floor, stop)

    def _return(self, event: Event) -> None:
        """Settle the oldest unconfirmed publication that the returned message can be.

        A return names no delivery tag; RabbitMQ sends it before the confirm of the same message ("Publisher Confirms").
        """
        try:
            properties = decode_properties(event.header)
        except PropertyError:
            properties = Properties()
        _, exchange, routing_key = return_route(event.payload)
        for tag, publication in self._unconfirmed.items():
            sent = publication.properties
            if (
                sent.correlation_id == properties.correlation_id
                and sent.type == properties.type
                and publication.routing_key == routing_key
                and publication.exchange == exchange
            ):
                del self._unconfirmed[tag]
                _settle(publication, Outcome.RETURNED)
                return


class LaneProtocol(asyncio.StreamReaderProtocol):
    """The protocol of one connection: splits what comes in, joins what goes out, and listens for silence.

    *on_lost* is called once, with the reason.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
        max_body: int,
        on_lost: Callable[[RPCError], None],
        on_writable: Callable[[bool], None],
    ) -> None:
        super().__init__(reader, loop=loop)
        self.loop = loop
        self.blocked = False
        self._channels: set[int] = set()
        self._parser = FrameParser(self._channels, max_body)
        self._max_body = max_body
        self._lanes: dict[int, Lane] = {}
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._out: list[bytes] = []
        self._acking: list[Lane] = []
        self._flush_scheduled = False
        self._frame_max = 0
        self._paused = False
        self._lost = False
        self._heard = True
        self._silences = 0
        self._fed_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._socket: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; aiormq gets it through its own writer."""
        self._socket = cast(asyncio.Transport, transport)  # uvloop's do not inherit from asyncio's
        super().connection_made(transport)

    def negotiated(self, frame_max: int, heartbeat: float) -> None:
        """Take the tuned parameters: bytes of the largest frame, seconds between heartbeats (0 is none)."""
        self._frame_max = self._parser.frame_max = frame_max
        if heartbeat > 0:
            self._watch(heartbeat)

    def open_lane(self, channel: int) -> Lane:
        """Take over a channel that aiormq has opened in confirm mode."""
        lane = self._lanes[channel] = Lane(self, channel, self._frame_max, self._max_body)
        self._channels.add(channel)
        return lane

    def write(self, frames: bytes) -> None:
        """Send whole frames with everything else of this iteration of the event loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
        self._out.append(frames)

    def write_at_once(self, frames: bytes) -> None:
        """Send whole frames now, unless others wait already: where nothing else is under way nothing will join them,
        and an iteration of the event loop is a third of the caller's part in a call made alone.
        """
        if self._flush_scheduled or self._lost or self._socket is None:
            self.write(frames)
        else:
            self._socket.write(frames)

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
        if out and not self._lost and self._socket is not None:
            self._socket.write(b"".join(out))

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
        self._on_writable(not self.blocked)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        super().connection_lost(exc)
        self._lose(ConnectionLost("the connection to the broker was closed" + (f": {exc}" if exc else "")))

    def fail(self, error: ConnectionLost) -> None:
        """Give up on the connection: nothing more can be done with it in order."""
        self._lose(error)
        if self._socket is not None:
            self._socket.abort()

    def abort(self) -> None:
        """Close the socket without a word to the broker."""
        if self._socket is not None:
            self._socket.abort()

    def _lose(self, error: ConnectionLost) -> None:
        if self._lost:
            return
        self._lost = True  # what waits is not sent: after a CloseOk it would cost the whole connection (504)
        if self._watchdog is not None:
            self._watchdog.cancel()
        for lane in self._lanes.values():
            lane.close(error)
        self._on_writable(False)
        self._on_lost(error)

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        self._on_writable(not blocked and not self._paused)

    def _watch(self, heartbeat: float) -> None:
        """Give up after two silent heartbeats (AMQP 0-9-1, section 4.2.7), counted in quarters of one."""
        self._silences = 0 if self._heard else self._silences + 1
        self._heard = False
        if self._silences >= _SILENT_HEARTBEATS * _LOOKS_PER_HEARTBEAT - 1:
            self.fail(ConnectionLost(f"the broker was silent for {_SILENT_HEARTBEATS} heartbeats of {heartbeat:g} s"))
            return
        self._watchdog = self.loop.call_later(heartbeat / _LOOKS_PER_HEARTBEAT, self._watch, heartbeat)


def _settle(publication: Publication, outcome: Outcome) -> None:
    assert publication.settled is not None
    try:
        publication.settled(publication, outcome)
    except Exception:
        logger.exception("a confirm handler failed")


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
