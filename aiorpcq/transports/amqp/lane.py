"""The fast lane: the messages of one channel, on a connection that aiormq keeps.

aiormq opens and closes the connection and its channels; publishes, deliveries, confirms, returns and acknowledgements
of a lane channel never reach it. `stream.LaneProtocol` stands between the socket and aiormq's reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import takewhile
from typing import Final, Protocol

from ...errors import ConnectionLost, PayloadTooLarge, RPCError
from ...protocol.messages import Outcome, Properties, Publication
from ..base import Delivery
from .consumer import Consumer, Standing
from .frames import (
    PublishEncoder,
    close_cause,
    close_reason,
    delivery_route,
    encode_ack,
    encode_cancel,
    encode_cancel_ok,
    encode_nack,
    return_route,
    split_delivery,
)
from .parser import Event, EventKind
from .properties import PropertyError, decode_properties

__all__ = ["Lane", "LaneConnection", "LaneDelivery"]

logger = logging.getLogger("aiorpcq.amqp")

# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_DELIVER: Final = EventKind.DELIVER
_ACK: Final = EventKind.ACK
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

    @property
    def is_void(self) -> bool:
        """See `Delivery`."""
        lane = self._lane
        return lane is not None and lane.closed is not None

    @property
    def requeued(self) -> bool:
        """See `Delivery`."""
        lane = self._lane
        return lane is not None and lane.is_closed_alone

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


class LaneConnection(Protocol):
    """What a lane needs of its connection."""

    loop: asyncio.AbstractEventLoop

    @property
    def is_lost(self) -> bool:
        """Whether the connection is of no more use."""

    def write(self, frames: bytes) -> None:
        """Send whole frames with everything else of this iteration of the event loop."""

    def write_at_once(self, frames: bytes) -> None:
        """Send whole frames now, unless others wait already."""

    def flush_soon(self, lane: Lane) -> None:
        """Have the acknowledgements of *lane* sent with everything else of this iteration."""

    def fail(self, error: ConnectionLost) -> None:
        """Give up on the connection."""

    def lane_closed(self, lane: Lane, error: ConnectionLost) -> None:
        """Let *lane* go, whose channel the broker closed, and have it closed."""


class Lane:
    """One channel in confirm mode: what is unconfirmed, what is unacknowledged, who consumes.

    The unconfirmed are bounded by what callers and workers have under way, the unacknowledged by prefetch.
    *on_returned* gets routing key and properties of what was returned and nobody waits for.
    """

    __slots__ = (
        "_acks",
        "_connection",
        "_consumers",
        "_encoder",
        "_max_body",
        "_next_tag",
        "_on_returned",
        "_unconfirmed",
        "_unsettled",
        "channel",
        "close_cause",
        "closed",
    )

    def __init__(
        self,
        connection: LaneConnection,
        channel: int,
        frame_max: int,
        max_body: int,
        on_returned: Callable[[str, Properties], None] | None = None,
    ) -> None:
        self.channel = channel
        self.closed: ConnectionLost | None = None
        self.close_cause = (0, 0)
        self._on_returned = on_returned
        self._connection = connection
        self._encoder = PublishEncoder(channel, frame_max)
        self._max_body = max_body
        self._next_tag = 1
        self._unconfirmed: dict[int, Publication] = {}
        self._consumers: dict[bytes, Consumer] = {}
        self._acks: set[int] = set()
        self._unsettled: dict[int, None] = {}  # delivery tags in order

    @property
    def unconfirmed(self) -> int:
        """Publications whose outcome somebody waits for."""
        return len(self._unconfirmed)

    @property
    def is_closed_alone(self) -> bool:
        """Whether the channel is closed and the connection stands."""
        return self.closed is not None and not self._connection.is_lost

    def publish(self, publication: Publication) -> None:
        """See `Link.publish`."""
        if len(publication.body) > self._max_body:
            size = len(publication.body)
            raise PayloadTooLarge(f"body of {size} bytes, the limit max_size is {self._max_body}")
        if self.closed is not None:
            if publication.settled is not None:
                self._connection.loop.call_soon(publication.settled, publication, Outcome.LOST)
            return
        frames = self._encoder.encode(publication)
        if self._unconfirmed or publication.settled is None:  # of the unconfirmed it cannot tell how many are under way
            self._connection.write(frames)
        else:
            self._connection.write_at_once(frames)
        tag = self._next_tag
        self._next_tag = tag + 1
        if publication.settled is not None:
            self._unconfirmed[tag] = publication

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery, together with all others of this iteration of the event loop."""
        if self.closed is None:
            if not self._acks:
                self._connection.flush_soon(self)
            self._acks.add(tag)

    def nack(self, tag: int, *, requeue: bool) -> None:
        """Refuse a delivery at once."""
        if self.closed is None:
            self._unsettled.pop(tag, None)
            self._connection.write(encode_nack(self.channel, tag, requeue=requeue))

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

    def add_consumer(
        self,
        tag: str,
        on_delivery: Callable[[Delivery], None],
        *,
        no_ack: bool,
        on_cancelled: Callable[[RPCError], None] | None = None,
    ) -> Consumer:
        """Route deliveries for consumer *tag*; to be called before the broker is asked to consume."""
        consumer = self._consumers[tag.encode()] = Consumer(tag, on_delivery, no_ack, on_cancelled)
        return consumer

    def consuming(self, consumer: Consumer) -> None:
        """Take the broker's word that *consumer* consumes; where the broker has ended it since, its owner is told."""
        if consumer.standing is Standing.ENDED:
            self._connection.loop.call_soon(consumer.tell, _consumer_ended())
        else:
            consumer.standing = Standing.CONSUMING

    def forget_consumer(self, consumer: Consumer) -> None:
        """Drop a consumer that the broker did not take."""
        self._consumers.pop(consumer.tag.encode(), None)

    def cancel_consumer(self, consumer: Consumer) -> asyncio.Future[None] | None:
        """Cancel a consumer; return what is done when nothing more comes for it, or the lane is closed.

        None where that is so already. The future is shared by all who cancel it: it is awaited shielded.
        """
        consumer.standing = Standing.UNWANTED
        if self.closed is not None or consumer.tag.encode() not in self._consumers:
            return None
        if consumer.cancelled is None:
            consumer.cancelled = self._connection.loop.create_future()
            self._connection.write(encode_cancel(self.channel, consumer.tag))
        return consumer.cancelled

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
            self._end_consumer(event.payload)
        else:
            self.close_cause = close_cause(event.payload)
            error = ConnectionLost(f"the broker closed the channel: {close_reason(event.payload)}")
            self._connection.lane_closed(self, error)

    def close(self, error: ConnectionLost) -> list[Consumer]:
        """Settle everything as lost, and make deliveries in hand void; return the consumers that ended with it.

        Those that the broker has not taken yet are not among them: who asked for them is told by what it asked.
        """
        if self.closed is not None:
            return []
        self.closed = error
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        consumers, self._consumers = self._consumers, {}
        self._acks.clear()
        self._unsettled.clear()
        for publication in unconfirmed.values():
            _settle(publication, Outcome.LOST)
        for consumer in consumers.values():
            if consumer.cancelled is not None:
                _wake(consumer.cancelled)
        return [consumer for consumer in consumers.values() if consumer.standing is Standing.CONSUMING]

    def answer_cancel(self, tag: str) -> None:
        """Tell the broker that its end of a consumer was heard."""
        if self.closed is None:
            self._connection.write(encode_cancel_ok(self.channel, tag.encode()))

    def _end_consumer(self, tag: bytes) -> None:
        """Take note that the broker cancelled a consumer."""
        consumer = self._consumers.pop(tag, None)
        if consumer is None:
            return
        if consumer.cancelled is not None:
            _wake(consumer.cancelled)
        if consumer.standing is Standing.UNWANTED:
            return
        if consumer.on_cancelled is None:
            self._connection.fail(_consumer_ended())
        elif consumer.standing is Standing.ASKED:
            consumer.standing = Standing.ENDED
        else:
            consumer.tell(_consumer_ended())

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
        for covered in list(takewhile(tag.__ge__, unconfirmed)):  # in the order of their tags
            publication = unconfirmed.pop(covered, None)
            if publication is not None:  # a handler may have closed the lane
                _settle(publication, outcome)

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
        if self._on_returned is not None:
            self._on_returned(routing_key, properties)


def _consumer_ended() -> ConnectionLost:
    reasons = "its queue was deleted or moved, or it held a message for too long"
    return ConnectionLost(f"the broker cancelled a consumer: {reasons}")


def _settle(publication: Publication, outcome: Outcome) -> None:
    assert publication.settled is not None
    try:
        publication.settled(publication, outcome)
    except Exception:
        logger.exception("a confirm handler failed")


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
