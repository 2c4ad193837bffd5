"""One link to RabbitMQ: a connection with a lane channel for messages and a control channel for declarations.

`aio_pika.Connection` knows URLs and TLS and how to shake hands; aiormq keeps what it opened. The transport factory that
is put under it gives the connection our own protocol (`stream.LaneProtocol`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar, cast

import aio_pika
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from yarl import URL

from ...errors import ConnectFailed, ConnectionLost, RPCError
from ...protocol.messages import Properties, Publication
from ...protocol.topology import Binding, Exchange, Queue
from ..base import Delivery, QueueStatus
from ..replacements import Replacements
from .consumer import Consumer
from .factory import LaneFactory
from .frames import BASIC_CONSUME, BASIC_QOS
from .lane import Lane
from .stream import LaneProtocol
from .topology import declare_entity, describe, inspect_queue, refusal
from .versions import recovers_consumers, wants_cancel_ok

__all__ = ["AMQPLink"]

logger = logging.getLogger("aiorpcq.amqp")

_OPERATION_TIMEOUT: Final = 15.0
_CLOSE_TIMEOUT: Final = 3.0
_LOST_GRACE: Final = 0.5
_RECOVERY_PAUSE: Final = 0.5
"""Seconds from the end of a quorum queue's consumer until that queue is declared again; see `recovers_consumers`."""

_A = TypeVar("_A")
_T = TypeVar("_T")


class _Subscription:
    def __init__(self, lane: Lane, channel: Channel, consumer: Consumer) -> None:
        self._lane = lane
        self._channel = channel
        self._consumer = consumer

    async def cancel(self) -> None:
        cancelled = self._lane.cancel_consumer(self._consumer)
        if cancelled is not None:
            await asyncio.shield(cancelled)
        # aiormq does not see the broker's answer, and would keep the consumer as long as the channel.
        self._channel.consumers.pop(self._consumer.tag, None)


class AMQPLink:
    """See `Link`. `AMQPTransport.connect` makes it."""

    def __init__(self, address: str, max_size: int) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[RPCError] = self._loop.create_future()
        self.writable = False
        self.publish: Callable[[Publication], None] = _not_open
        self.on_returned: Callable[[str, Properties], None] | None = None
        self._writable_waiters: dict[asyncio.Future[None], None] = {}  # in the order they came
        self._max_size = max_size
        self._connection: aio_pika.Connection | None = None
        self._under: AbstractConnection
        self._protocol: LaneProtocol | None = None
        self._lane: Lane
        self._lane_channel: Channel
        self._lane_prefetch = 0
        self._lane_stands = False
        self._replacement: asyncio.Task[None] | None = None
        self._replacements = Replacements()
        self._control: AbstractChannel | None = None
        self._control_lock = asyncio.Lock()
        self._consume_lock = asyncio.Lock()
        self._consumer_tags = count(1)
        self._operations: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._queue_types: dict[str, Any] = {}  # of the queues that were declared here
        self._resting: dict[str, float] = {}  # quorum queues that have ended, and when they may be declared again
        self._wants_cancel_ok = self._recovers_consumers = False

    async def open(self, url: URL, client_name: str) -> None:
        """Connect, open both channels, take over the lane's."""
        factory = LaneFactory(self._make_protocol)
        connection = aio_pika.Connection(url, client_properties={"connection_name": client_name})
        connection.kwargs["transport_factory"] = factory
        self._connection = connection
        await connection.connect()
        assert connection.transport is not None
        assert factory.protocol is not None
        self._under = connection.transport.connection
        tune = self._under.connection_tune
        factory.protocol.negotiated(tune.frame_max, tune.heartbeat or 0)
        self._wants_cancel_ok = wants_cancel_ok(self._under.server_properties)
        self._recovers_consumers = recovers_consumers(self._under.server_properties)
        await self._open_control()
        await self._open_lane()
        self._set_writable(factory.protocol.writable)

    def _make_protocol(self, reader: asyncio.StreamReader) -> LaneProtocol:
        # Kept from its beginning: whatever interrupts the opening has to close the socket that there may be by then.
        self._protocol = LaneProtocol(
            reader, self._loop, self._max_size, self._on_lost, self._set_writable, self._on_lane_closed
        )
        return self._protocol

    async def wait_writable(self) -> None:
        """See `Link`."""
        while not self.writable and not self.lost.done():
            waiter = self._loop.create_future()
            self._writable_waiters[waiter] = None
            try:
                await waiter
            finally:
                self._writable_waiters.pop(waiter, None)

    async def declare(self, *entities: Exchange | Queue | Binding) -> None:
        """See `Link`."""
        for entity in entities:
            remaining = self._resting.get(entity.name, 0.0) - self._loop.time() if isinstance(entity, Queue) else 0.0
            if remaining > 0:
                await asyncio.wait((self.lost,), timeout=remaining)
                if self.lost.done():
                    raise self._lost_at(describe(entity))
            await self._ask(declare_entity, entity, describe(entity))
            if isinstance(entity, Queue):
                self._queue_types[entity.name] = entity.arguments.get("x-queue-type")

    async def inspect(self, queue: str) -> QueueStatus | None:
        """See `Link`."""
        try:
            return await self._ask(inspect_queue, queue, f"queue {queue!r}")
        except ConnectFailed as error:
            if isinstance(error.__cause__, ChannelNotFoundEntity):
                return None
            raise

    async def _ask(self, ask: Callable[[AbstractChannel, _A], Awaitable[_T]], about: _A, subject: str) -> _T:
        """Ask the broker on the control channel, one question at a time: a refusal closes the channel for all.

        Whoever waits for the turn is cancelled like any other; a question that was asked is not.
        """
        await self._control_lock.acquire()
        if self.lost.done():
            self._control_lock.release()
            raise self._lost_at(subject)
        asking = self._own(self._loop.create_task(self._on_control(ask, about)))
        asking.add_done_callback(lambda _: self._control_lock.release())
        return await self._result(asking, subject)

    async def _on_control(self, ask: Callable[[AbstractChannel, _A], Awaitable[_T]], about: _A) -> _T:
        if self._control is None or self._control.is_closed:
            await self._open_control()
        control = self._control
        assert control is not None
        try:
            return await ask(control, about)
        except BaseException:
            self._control = None  # the broker closes the channel of what it refuses, aiormq that of what it cancels
            raise

    async def _open_control(self) -> None:
        self._control = await self._under.channel(publisher_confirms=False)

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int = 0,
        no_ack: bool = False,
        exclusive: bool = False,
        on_cancelled: Callable[[RPCError], None] | None = None,
    ) -> _Subscription:
        """See `Link`. Where the channel is closed by an error that is not this consumer's, it goes on with the next."""
        subject = f"queue {queue!r}"
        while True:
            await self._wait_lane(subject)
            lane, channel, tag = self._lane, self._lane_channel, f"aiorpcq.{next(self._consumer_tags)}"
            on_end = on_cancelled
            if on_cancelled is not None and self._queue_types.get(queue) == "quorum":
                on_end = partial(self._on_quorum_cancel, lane, queue, tag, on_cancelled)
            consumer = lane.add_consumer(tag, on_delivery, no_ack=no_ack, on_cancelled=on_end)
            asking = self._consume(channel, queue, tag, prefetch=prefetch, no_ack=no_ack, exclusive=exclusive)
            try:
                await self._operate(asking, subject)
            except RPCError:
                lane.forget_consumer(consumer)
                if self.lost.done() or lane.closed is None or lane.close_cause in (BASIC_CONSUME, BASIC_QOS):
                    raise
            else:
                if lane.closed is None:
                    lane.consuming(consumer)
                    return _Subscription(lane, channel, consumer)

    def _on_quorum_cancel(
        self, lane: Lane, queue: str, tag: str, on_cancelled: Callable[[RPCError], None], error: RPCError
    ) -> None:
        """Answer the broker before the consumer's owner hears of its end, or have the queue rest; see `versions`."""
        if lane.closed is None and self._wants_cancel_ok:
            self._own(self._loop.create_task(self._answer_cancel(lane, queue, tag, on_cancelled, error)))
            return
        if lane.closed is None and self._recovers_consumers:  # else it is the channel that was closed
            self._resting[queue] = self._loop.time() + _RECOVERY_PAUSE
        on_cancelled(error)

    async def _answer_cancel(
        self, lane: Lane, queue: str, tag: str, on_cancelled: Callable[[RPCError], None], error: RPCError
    ) -> None:
        try:
            stands = await self.inspect(queue) is not None
        except RPCError:
            stands = False
        if stands:  # the answer about a queue that was deleted crashes the broker's channel (541, seen in 4.3.6)
            lane.answer_cancel(tag)
        if not self.lost.done():
            on_cancelled(error)

    async def _consume(
        self, channel: AbstractChannel, queue: str, tag: str, *, prefetch: int, no_ack: bool, exclusive: bool
    ) -> None:
        arguments: dict[str, Any] | None = None
        if self._recovers_consumers and self._queue_types.get(queue) == "classic":  # a quorum queue refuses it
            arguments = {"x-cancel-on-ha-failover": True}
        # What Basic.Qos says is for the consumers that come after it (RabbitMQ, "Consumer Prefetch").
        async with self._consume_lock:
            if prefetch != self._lane_prefetch:
                await channel.basic_qos(prefetch_count=prefetch)
                self._lane_prefetch = prefetch
            await channel.basic_consume(
                queue, _never_called, no_ack=no_ack, exclusive=exclusive, arguments=arguments, consumer_tag=tag
            )

    async def _open_lane(self) -> None:
        channel = cast(Channel, await self._under.channel(publisher_confirms=True))  # what it is, with its consumers
        assert self._protocol is not None
        self._lane_channel = channel
        self._lane_prefetch = 0
        self._lane = self._protocol.open_lane(channel.number, self._on_return)
        self.publish = self._lane.publish  # directly: this is called for every message
        self._lane_stands = True

    async def _wait_lane(self, subject: str) -> None:
        """Wait until the lane has a channel; raises `ConnectionLost`."""
        while not self._lane_stands and not self.lost.done():
            awaited: set[asyncio.Future[Any]] = {self.lost}
            if self._replacement is not None and not self._replacement.done():
                awaited.add(self._replacement)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if self.lost.done():
            raise self._lost_at(subject)

    def _on_lane_closed(self, lane: Lane, error: ConnectionLost) -> None:
        """Give up what the lane had under way, and have its channel replaced."""
        self._lane_stands = False
        self._set_writable(False)
        ended = lane.close(error)
        if self.lost.done() or self._closing is not None:
            return
        assert self._protocol is not None
        if any(consumer.on_cancelled is None for consumer in ended):
            self._protocol.fail(error)
        elif not self._replacements.may_replace(self._loop.time()):
            self._protocol.fail(ConnectionLost(f"{error}; {self._replacements}"))
        else:
            self._replacement = self._own(self._loop.create_task(self._replace_lane(ended, error)))

    async def _replace_lane(self, ended: list[Consumer], error: ConnectionLost) -> None:
        assert self._protocol is not None
        # Once aiormq has let the former channel go its CloseOk is in front of whatever opens the next one, which may
        # get the same number.
        closing = self._lane_channel.closing
        await asyncio.wait((closing, self.lost), timeout=_OPERATION_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        try:
            await self._operate(self._open_lane(), "another channel")
        except RPCError as failure:
            self._protocol.fail(ConnectionLost(f"{error}; {failure}"))
            return
        logger.warning("%s; its %d consumers go on with another", error, len(ended))
        for consumer in ended:
            consumer.tell(error)
        self._set_writable(self._protocol.writable)

    def _on_return(self, routing_key: str, properties: Properties) -> None:
        if self.on_returned is None:
            return
        try:
            self.on_returned(routing_key, properties)
        except Exception:
            logger.exception("a return handler failed")

    async def close(self) -> None:
        """See `Link`."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        protocol, connection = self._protocol, self._connection
        closed = ConnectionLost("the link was closed")
        if connection is not None:
            # aio-pika's close goes on waiting when it is cancelled; what ends it is the end of the socket.
            closing = self._loop.create_task(connection.close())
            closing.add_done_callback(_retrieve)
            await asyncio.wait((closing,), timeout=_CLOSE_TIMEOUT)
            if protocol is not None:
                protocol.fail(closed)
            if not closing.done():
                await asyncio.wait((closing,), timeout=_CLOSE_TIMEOUT)
                closing.cancel()
        self._on_lost(closed)
        for operation in list(self._operations):
            operation.cancel()
        await asyncio.gather(*self._operations, return_exceptions=True)

    async def _operate(self, operation: Coroutine[Any, Any, _T], subject: str) -> _T:
        """Run a call of aiormq to its end, whatever becomes of the caller.

        Cancelling or timing out such a call closes its channel, so it runs in a task of its own, bounded in time and
        ended by the loss of the link.
        """
        return await self._result(self._own(self._loop.create_task(operation)), subject)

    async def _result(self, task: asyncio.Task[_T], subject: str) -> _T:
        """Return what *task*, a call of aiormq, comes to; a broker that has blocked us may take its time.

        Where the wait is cancelled, another goes on in its place: without an answer the link is of no use to anybody.
        """
        done: set[Any] = set()
        was_blocked = True
        try:
            while not done and was_blocked:
                blocked, blocks = self._blocked
                done, _ = await asyncio.wait(
                    (task, self.lost), timeout=_OPERATION_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
                )
                was_blocked = blocked or blocks != self._blocked[1]
        except asyncio.CancelledError:
            if not task.done() and not self.lost.done():
                self._own(self._loop.create_task(self._result(task, subject)))
            raise
        if not task.done() and self.lost.done():
            # The lane saw the broker's refusal first; aiormq, which knows whose it is, has it in its reader.
            await asyncio.wait((task,), timeout=_LOST_GRACE)
        if task.done():
            cause = ConnectionError("cancelled") if task.cancelled() else task.exception()
            if cause is not None:
                raise refusal(cause, subject) from cause
            return task.result()
        if self.lost.done():
            task.cancel()
            raise self._lost_at(subject)
        error = ConnectionLost(f"the broker did not answer about {subject} within {_OPERATION_TIMEOUT:g} s")
        if self._protocol is not None:
            self._protocol.fail(error)
        task.cancel()
        raise error

    @property
    def _blocked(self) -> tuple[bool, int]:
        """Whether the broker blocks us, and how often it has."""
        return (False, 0) if self._protocol is None else (self._protocol.blocked, self._protocol.blocks)

    def _lost_at(self, subject: str) -> ConnectionLost:
        return ConnectionLost(f"the connection was lost at {subject}: {self.lost.result()}")

    def _own(self, task: asyncio.Task[_T]) -> asyncio.Task[_T]:
        """Have *task* end with the link at the latest."""
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)
        task.add_done_callback(_retrieve)
        return task

    def _on_lost(self, error: RPCError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        self._set_writable(False)
        self._wake_writers()

    def _set_writable(self, writable: bool) -> None:
        self.writable = writable and self._lane_stands and not self.lost.done()
        if self.writable:
            self._wake_writers()

    def _wake_writers(self) -> None:
        for waiter in self._writable_waiters:
            if not waiter.done():
                waiter.set_result(None)


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _not_open(publication: Publication) -> None:
    raise ConnectionLost("the link is not open")


async def _never_called(message: DeliveredMessage) -> None:
    """Stand in for a consumer: aiormq wants one, and never sees a delivery of a lane channel."""
    raise AssertionError("a delivery passed the lane by")
