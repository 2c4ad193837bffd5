"""A link to the broker in the process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ...errors import ConnectionLost, PayloadTooLarge, RPCError
from ...protocol.messages import Outcome, Publication
from ...protocol.topology import Binding, Exchange, Queue
from ..base import Delivery
from .broker import MemoryBroker
from .message import Message
from .queue import Consumer

__all__ = ["MemoryLink", "MemorySubscription"]

logger = logging.getLogger("aiorpcq.memory")

_HIGH_WATER = 4_096  # publications that wait for the broker


class MemorySubscription:
    """A consumer on a queue of the broker in the process."""

    def __init__(self, broker: MemoryBroker, consumer: Consumer) -> None:
        self._broker = broker
        self._consumer = consumer

    async def cancel(self) -> None:
        """Stop it. Once this returns nothing more is delivered; what was delivered can still be settled."""
        self._broker.unsubscribe(self._consumer)


class MemoryLink:
    """A connection to a `MemoryBroker`, for use in the event loop it was made in.

    Publications wait in *outbox* until the next iteration of the loop, or for the end of the broker's alarm. It is
    bounded by publishers that stop while the link is not `writable`: from 4,096 of them on it is not. A link that is
    lost is writable, so that nobody waits for it; what is published there ends as LOST.

    Raises:
        ConnectFailed: the broker refuses.
    """

    def __init__(self, broker: MemoryBroker, name: str, max_size: int) -> None:
        self.name = name
        self.is_lost = False
        self.outbox: deque[tuple[Publication, Message]] = deque()
        self.consumers: dict[Consumer, None] = {}
        self.writable = True
        self._broker = broker
        self.max_size = max_size
        self.is_posted = False
        self._resumed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[RPCError] = self._loop.create_future()
        broker.attach(self, self._loop)

    def __repr__(self) -> str:
        return f"<MemoryLink {self.name!r} to {self._broker.name!r}, {'lost' if self.is_lost else 'open'}>"

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues it consumes from."""
        return tuple(consumer.queue.name for consumer in self.consumers if not consumer.is_cancelled)

    def publish(self, publication: Publication) -> None:
        """Send *publication*; what it says now is what arrives.

        Raises:
            PayloadTooLarge: the body is larger than the size limit.
            ValueError: a property does not fit its field; nothing was sent.
        """
        size = len(publication.body)
        if size > self.max_size:
            raise PayloadTooLarge(f"body of {size} bytes is larger than the limit of {self.max_size}")
        outbox = self.outbox
        outbox.append((publication, Message.of(publication)))
        if not self.is_posted:
            self._post()
        if len(outbox) >= _HIGH_WATER and self.writable and not self.is_lost:
            self.hold()

    async def wait_writable(self) -> None:
        """Wait until `writable`. Returns at once when the link is lost."""
        while not self.writable:
            await self._resumed.wait()

    async def declare(self, *entities: Exchange | Queue | Binding) -> None:
        """Declare exchanges, queues and bindings, in order; after an error the rest is not declared.

        Raises:
            TopologyMismatch: one exists with other properties.
            ConnectFailed: it cannot be declared.
            ConnectionLost: the link is lost.
        """
        self._check_open()
        for entity in entities:
            self._broker.declare(self, entity)

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int = 0,
        no_ack: bool = False,
        exclusive: bool = False,
    ) -> MemorySubscription:
        """Consume from *queue*.

        Raises:
            ConnectFailed: the queue is not there, is another link's, or is in exclusive use.
            ConnectionLost: the link is lost.
        """
        self._check_open()
        if any(consumer.is_cancelled for consumer in self.consumers):
            self._forget_cancelled()
        consumer = self._broker.subscribe(
            self, queue, on_delivery, prefetch=prefetch, no_ack=no_ack, exclusive=exclusive
        )
        self.consumers[consumer] = None
        return MemorySubscription(self._broker, consumer)

    async def close(self) -> None:
        """Close the link. What is unsettled has ended as LOST when this returns. Idempotent."""
        self.lose(ConnectionLost("closed"))
        await asyncio.sleep(0)

    def lose(self, reason: RPCError) -> None:
        """End the link; `lost` gets *reason*. Idempotent."""
        if self.is_lost:
            return
        self.is_lost = True
        self._broker.detach(self)
        if self._loop.is_closed():
            return
        self.resume()
        if self.outbox:
            self._post()
        if not self.lost.done():
            self.lost.set_result(reason)

    def hold(self) -> None:
        """Be not writable."""
        self.writable = False
        self._resumed.clear()

    def resume(self) -> None:
        """Be writable again."""
        if not self.writable:
            self.writable = True
            self._resumed.set()

    def _post(self) -> None:
        self.is_posted = True
        if self.is_lost:
            self._loop.call_soon(self._lose_outbox)
        else:
            self._broker.post(self)

    def _lose_outbox(self) -> None:
        """Settle as LOST what the broker has not routed."""
        self.is_posted = False
        for _ in range(len(self.outbox)):
            publication, _message = self.outbox.popleft()
            if publication.settled is not None:
                try:
                    publication.settled(publication, Outcome.LOST)
                except (Exception, asyncio.CancelledError):
                    logger.exception("settled callback of link %s raised", self.name)

    def _check_open(self) -> None:
        if self.is_lost:
            raise ConnectionLost(f"link {self.name} is lost")

    def _forget_cancelled(self) -> None:
        self.consumers = {
            consumer: None for consumer in self.consumers if consumer.unsettled or not consumer.is_cancelled
        }
