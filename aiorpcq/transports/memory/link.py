"""A link to the broker in the process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ...errors import ConnectFailed, ConnectionLost, PayloadTooLarge, RPCError
from ...protocol.messages import Outcome, Properties, Publication
from ...protocol.topology import Binding, Exchange, Queue
from ..base import Delivery, QueueStatus
from ..replacements import Replacements
from .broker import MemoryBroker
from .message import Message
from .queue import Consumer
from .topology import DIRECT_REPLY_TO

__all__ = ["MemoryLink", "MemorySubscription"]

logger = logging.getLogger("aiorpcq.memory")

_HIGH_WATER = 4_096  # publications that wait for the broker


class MemorySubscription:
    """A consumer on a queue of the broker in the process."""

    def __init__(self, link: MemoryLink, consumer: Consumer) -> None:
        self._link = link
        self._consumer = consumer

    async def cancel(self) -> None:
        """Stop it. Once this returns nothing more is delivered; what was delivered can still be settled."""
        await self._link.unsubscribe(self._consumer)


class MemoryLink:
    """A connection to a `MemoryBroker`, for use in the event loop it was made in.

    Publications wait in *outbox* until the next iteration of the loop, or for the end of the broker's alarm. It is
    bounded by publishers that stop while the link is not `writable`: from 4,096 of them on it is not. What is published
    on a link that is lost ends as LOST.

    Where its channel is closed it goes on with another in the next iteration of the loop.

    Raises:
        ConnectFailed: the broker refuses.
    """

    def __init__(self, broker: MemoryBroker, name: str, max_size: int) -> None:
        self.name = name
        self.is_lost = False
        self.is_frozen = False
        self.is_reopening = False
        self.on_returned: Callable[[str, Properties], None] | None = None
        self.outbox: deque[tuple[Publication, Message]] = deque()
        self.consumers: dict[Consumer, None] = {}
        self.writable = True
        self._broker = broker
        self.max_size = max_size
        self.is_posted = False
        self._direct_reply_queue: str | None = None
        self._replacements = Replacements()
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
        message = Message.of(publication)
        if message.properties.reply_to == DIRECT_REPLY_TO:
            self._reply_directly(message)
        outbox.append((publication, message))
        if not self.is_posted:
            self._post()
        if len(outbox) >= _HIGH_WATER and self.writable and not self.is_lost:
            self.hold()

    async def wait_writable(self) -> None:
        """Wait until `writable`. Returns at once when the link is lost."""
        while not self.writable and not self.is_lost:
            await self._resumed.wait()

    async def declare(self, *entities: Exchange | Queue | Binding) -> None:
        """Declare exchanges, queues and bindings, in order; after an error the rest is not declared.

        Raises:
            TopologyMismatch: one exists with other properties.
            ConnectFailed: it cannot be declared.
            ConnectionLost: the link is lost.
        """
        await self._check_open()
        for entity in entities:
            self._broker.declare(self, entity)

    async def inspect(self, queue: str) -> QueueStatus | None:
        """Ask about *queue*; None where there is no queue of that name.

        Raises:
            TopologyMismatch: it is exclusive to another link.
            ConnectionLost: the link is lost.
        """
        await self._check_open()
        return self._broker.inspect(self, queue)

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int = 0,
        no_ack: bool = False,
        exclusive: bool = False,
        on_cancelled: Callable[[RPCError], None] | None = None,
    ) -> MemorySubscription:
        """Consume from *queue*; where that is refused the channel is closed.

        Raises:
            ConnectFailed: the queue is not there, is another link's, or is in exclusive use.
            ConnectionLost: the link is lost.
        """
        await self._check_open()
        if any(consumer.is_cancelled for consumer in self.consumers):
            self._forget_cancelled()
        try:
            if queue == DIRECT_REPLY_TO:
                queue = self._direct_reply_queue = self._broker.direct_reply_queue(self, no_ack=no_ack)
            consumer = self._broker.subscribe(
                self,
                queue,
                on_delivery,
                prefetch=prefetch,
                no_ack=no_ack,
                exclusive=exclusive,
                on_cancelled=on_cancelled,
            )
        except ConnectFailed as error:
            self.close_channel(ConnectionLost(f"the broker closed the channel: {error}"))
            raise
        self.consumers[consumer] = None
        return MemorySubscription(self, consumer)

    async def unsubscribe(self, consumer: Consumer) -> None:
        """Cancel *consumer*; it is not told that it has ended. Idempotent."""
        consumer.on_cancelled = _ignore
        if self.is_frozen and not self.is_lost:
            await asyncio.wait((self.lost,))
        if consumer.queue.name == self._direct_reply_queue:
            self._direct_reply_queue = None
        self._broker.unsubscribe(consumer)

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
        self.is_posted = self.is_reopening = False
        self.writable = False
        if self._loop.is_closed():
            return
        self._resumed.set()
        if self.outbox:
            self._post()
        if not self.lost.done():
            self.lost.set_result(reason)

    def end(self, consumer: Consumer, reason: RPCError) -> None:
        """Have *consumer* told that the broker ended it, or be lost where it cannot be told."""
        if consumer.on_cancelled is None:
            self.lose(reason)
        elif not self._loop.is_closed():
            self._loop.call_soon(self._tell, consumer, reason)

    def close_channel(self, reason: RPCError) -> None:
        """Give up what is under way and every consumer, and go on with another channel."""
        if self.is_lost or self.is_reopening:
            return
        if not self._replacements.may_replace(self._loop.time()):
            self.lose(ConnectionLost(f"{reason}; {self._replacements}"))
            return
        ended = self._broker.release(self)
        self._direct_reply_queue = None
        if any(consumer.on_cancelled is None for consumer in ended):
            self.lose(reason)
            return
        self.is_reopening = self.is_posted = True  # so that what is published meanwhile is lost as well
        self.hold()
        self._loop.call_soon(self._reopen, ended, reason)

    def hold(self) -> None:
        """Be not writable."""
        self.writable = False
        self._resumed.clear()

    def resume(self) -> None:
        """Be writable again, unless it is lost or its channel is being replaced."""
        if not self.writable and not self.is_reopening and not self.is_lost:
            self.writable = True
            self._resumed.set()

    def _reopen(self, ended: list[Consumer], reason: RPCError) -> None:
        if self.is_lost:
            return
        self.is_reopening = False
        self._lose_outbox()
        for consumer in ended:
            self._tell(consumer, reason)
        if not self._broker.is_blocked:
            self.resume()

    def _tell(self, consumer: Consumer, reason: RPCError) -> None:
        if self.is_lost or self.is_frozen or consumer.on_cancelled is None:
            return
        try:
            consumer.on_cancelled(reason)
        except (Exception, asyncio.CancelledError):
            logger.exception("callback of a cancelled consumer of link %s raised", self.name)

    def _reply_directly(self, message: Message) -> None:
        """Have the reply to *message* sent to the consumer of `DIRECT_REPLY_TO`, which there has to be."""
        if self._direct_reply_queue is None:
            self.close_channel(ConnectionLost("the broker closed the channel: no consumer of direct replies"))
        else:
            message.reply_to(self._direct_reply_queue)

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

    async def _check_open(self) -> None:
        """Raise `ConnectionLost` where the link is lost; while it is frozen no answer comes."""
        if self.is_frozen and not self.is_lost:
            await asyncio.wait((self.lost,))
        if self.is_lost:
            raise ConnectionLost(f"link {self.name} is lost")

    def _forget_cancelled(self) -> None:
        self.consumers = {
            consumer: None for consumer in self.consumers if consumer.unsettled or not consumer.is_cancelled
        }


def _ignore(_reason: RPCError) -> None:
    """Stand in for the callback of a consumer that its owner cancelled."""
