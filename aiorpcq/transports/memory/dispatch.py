"""What happens in the loop: from the outboxes of links by way of exchanges into queues, and on to consumers.

Whatever happens is noted and done by `_run`, at most once an iteration: dead letters are routed, then what links have
published, then every queue with something to deliver serves its consumers. Callbacks of users are called from there
and nowhere else, so none of them is ever called from inside another.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from ...errors import ConnectionLost, RPCError
from ...protocol.messages import Outcome, Publication
from .base import BrokerLink
from .exchange import MemoryExchange
from .message import Message, dead_letter, is_cycle
from .queue import MemoryQueue
from .topology import MemoryTopology

__all__ = ["Dispatcher"]

logger = logging.getLogger("aiorpcq.memory")

_DELIVERY_BATCH = 1_000  # deliveries of one queue in one iteration of the loop, so that a long queue cannot hold it up
_TIMER_RESOLUTION = 0.001  # seconds
_USER_ERRORS = (Exception, asyncio.CancelledError)


class Dispatcher:
    """Routes, delivers and lets go of what is in a topology, driven by one callback in the loop.

    It does not refer to its broker: no cycle keeps one alive that nobody holds.
    """

    def __init__(self, topology: MemoryTopology, clock: Callable[[], float] | None) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_blocked = False
        self.published = 0
        self.unroutable = 0
        self.refused = 0
        self.delivered = 0
        self.dead_lettered = 0
        self.dropped = 0
        self.lost_confirms: list[Callable[[Publication], bool] | None] = []
        self._clock = clock
        self._topology = topology
        self._exchanges = topology.exchanges
        self._queues = topology.queues
        self._is_scheduled = False
        self._posted: list[BrokerLink] = []
        self._awake: dict[MemoryQueue, None] = {}
        self._dead: deque[tuple[MemoryQueue, Message, str]] = deque()

    def now(self) -> float:
        """Return the time that expiry goes by, in seconds."""
        if self._clock is not None:
            return self._clock()
        loop = self.loop
        return time.monotonic() if loop is None or loop.is_closed() else loop.time()

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go over to *loop*; `wake_all` takes the queues along."""
        self.loop = loop
        self._is_scheduled = False

    def wake_all(self) -> None:
        """Have every queue served in the loop, which was entered just now, and set its timer there."""
        for queue in self._queues.values():
            queue.timer = None
            self.wake(queue)
        self.schedule()

    def post(self, link: BrokerLink) -> None:
        """Have the outbox of *link* routed in the next iteration of the loop."""
        self._posted.append(link)
        if not self._is_scheduled:
            self.schedule()

    def withdraw(self, link: BrokerLink) -> None:
        """Leave the outbox of *link* alone after all."""
        self._posted = [other for other in self._posted if other is not link]

    def schedule(self) -> None:
        """Have what is noted done in the next iteration of the loop."""
        if not self._is_scheduled and self.loop is not None and not self.loop.is_closed():
            self._is_scheduled = True
            self.loop.call_soon(self._run, self.loop)

    def wake(self, queue: MemoryQueue) -> None:
        """Have *queue* served in the next iteration of the loop."""
        self._awake[queue] = None
        if not self._is_scheduled:
            self.schedule()

    def give_back(self, queue: MemoryQueue, message: Message, requeue: bool) -> None:
        """Put a delivered message back to its place in *queue*, or let it go."""
        if queue.is_deleted:
            return
        if not requeue:
            self._bury(queue, message, "rejected")
            return
        message.redelivered = True
        message.deliveries += 1
        if queue.delivery_limit is not None and message.deliveries > queue.delivery_limit:
            self._bury(queue, message, "delivery_limit")
            return
        queue.put_back(message)
        self.wake(queue)

    def expire(self, queue: MemoryQueue, now: float) -> None:
        """Let expired messages go from the head, and only from there; delete a queue unused for too long."""
        if queue.is_unused(now):
            self.delete(queue)
            return
        while queue.depth:
            head = queue.head()
            if head is None or head.expires_at is None or head.expires_at > now:
                return
            self._bury(queue, queue.take(), "expired")

    def delete(self, queue: MemoryQueue) -> None:
        """Delete *queue* with its messages, and end its consumers. Idempotent."""
        if queue.is_deleted:
            return
        queue.is_deleted = True
        self._topology.remove(queue)
        self.dropped += queue.clear()
        if queue.timer is not None:
            queue.timer.cancel()
        self.cancel_consumers(queue, ConnectionLost(f"queue {queue.name!r} was deleted"))

    def cancel_consumers(self, queue: MemoryQueue, reason: RPCError) -> int:
        """End the consumers of *queue*, which stays even where it is auto-delete; return how many there were."""
        consumers, now = tuple(queue.consumers), self.now()
        for consumer in consumers:
            queue.unsubscribe(consumer, now)
        for consumer in consumers:
            consumer.link.end(consumer, reason)
        return len(consumers)

    def drop_transient(self, queue: MemoryQueue) -> int:
        """Drop what a restart would from *queue*; return how many messages."""
        dropped = queue.drop_transient()
        self.dropped += dropped
        return dropped

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self.loop:
            return
        self._is_scheduled = False
        now = self.now()
        if self._dead:
            self._route_dead_letters(now)
        if self._posted and not self.is_blocked:
            links, self._posted = self._posted, []
            for link in links:
                self._route_outbox(link, now)
        queues, self._awake = self._awake, {}
        for queue in queues:
            self._serve(queue, now)

    def _route_outbox(self, link: BrokerLink, now: float) -> None:
        """Route what *link* has published so far, and settle it in order.

        What is left when the link or its channel is lost on the way is the link's to settle as LOST.
        """
        link.is_posted = False
        outbox = link.outbox
        exchanges = self._exchanges
        for _ in range(len(outbox)):
            if link.is_lost or link.is_reopening:
                return
            if link.is_frozen:
                link.is_posted = True  # so that nothing more is posted
                return
            publication, message = outbox[0]
            exchange = exchanges.get(message.exchange)
            if exchange is None:
                link.close_channel(ConnectionLost(f"no exchange {message.exchange!r} to publish to"))
                return
            self.published += 1
            outcome = self._route(exchange, message, now)
            if self.lost_confirms and self._loses_confirm(publication):
                link.lose(ConnectionLost("the link was lost before a confirm"))
                return
            outbox.popleft()
            if outcome is Outcome.RETURNED:
                self.unroutable += 1
                if not publication.mandatory:
                    outcome = Outcome.CONFIRMED
                elif publication.settled is None:
                    self._tell_returned(link, publication)
            settled = publication.settled
            if settled is not None:
                try:
                    settled(publication, outcome)
                except _USER_ERRORS:
                    logger.exception("settled callback of link %s raised", link.name)
        if not self.is_blocked:
            link.resume()

    def _loses_confirm(self, publication: Publication) -> bool:
        for matching in self.lost_confirms:
            if matching is None or matching(publication):
                self.lost_confirms.remove(matching)
                return True
        return False

    def _tell_returned(self, link: BrokerLink, publication: Publication) -> None:
        if link.on_returned is None:
            return
        try:
            link.on_returned(publication.routing_key, publication.properties)
        except _USER_ERRORS:
            logger.exception("return callback of link %s raised", link.name)

    def _route(self, exchange: MemoryExchange, message: Message, now: float) -> Outcome:
        keys = message.keys
        queues = exchange.route(message.routing_key) if keys is None else exchange.route_all(keys)
        if not queues:
            return Outcome.RETURNED
        outcome = Outcome.CONFIRMED
        for index, queue in enumerate(queues):
            if not self._put(queue, message.copy() if index else message, now):
                self.refused += 1
                outcome = Outcome.REFUSED
        if queues[0].is_hidden and all(queue.is_hidden for queue in queues):
            return Outcome.RETURNED  # delivered, and yet not routed to any queue (RabbitMQ, "Direct Reply-to")
        return outcome

    def _put(self, queue: MemoryQueue, message: Message, now: float) -> bool:
        """Put a new message into *queue*; return whether the queue took it.

        A queue with a length limit serves its consumers first: RabbitMQ counts only what nobody takes at once.
        """
        if queue.is_deleted:
            return True
        limit = queue.length_limit
        if limit is not None and queue.overflow != "drop-head" and queue.depth >= limit:
            self._deliver(queue, now)
            if queue.depth >= limit:
                if queue.overflow == "reject-publish-dlx":
                    self._bury(queue, message.copy(), "maxlen")
                return False
        queue.put(message, now)
        self._awake[queue] = None
        if limit is not None and queue.depth > limit:
            self._deliver(queue, now)
            self._trim(queue)
        return True

    def _serve(self, queue: MemoryQueue, now: float) -> None:
        """Deliver what can be, then let go of what has expired or is too much."""
        if queue.is_deleted:
            return
        if queue.depth:
            self._deliver(queue, now)
            self._trim(queue)
        self.expire(queue, now)
        if queue.depth and queue.waiting:
            self.wake(queue)
        if not queue.is_deleted:
            self._set_timer(queue, now)

    def _deliver(self, queue: MemoryQueue, now: float) -> None:
        waiting = queue.waiting
        for _ in range(min(queue.depth, _DELIVERY_BATCH)):
            if not waiting or not queue.depth:
                return
            message = queue.take()
            # one that expires at this very moment may still be taken: with a TTL of 0 it goes to whoever waits for it
            if message.expires_at is not None and message.expires_at < now:
                self._bury(queue, message, "expired")
                continue
            consumer = waiting.popleft()
            delivery = consumer.deliver(message)
            self.delivered += 1
            if consumer.link.is_frozen:
                continue
            try:
                consumer.on_delivery(delivery)
            except _USER_ERRORS:
                logger.exception("delivery callback of link %s raised, queue %r", consumer.link.name, queue.name)

    def _trim(self, queue: MemoryQueue) -> None:
        """Drop from the head what is more than the length limit, unless the queue refuses at the other end."""
        if queue.length_limit is not None and queue.overflow == "drop-head":
            while queue.depth > queue.length_limit:
                self._bury(queue, queue.take(), "maxlen")

    def _set_timer(self, queue: MemoryQueue, now: float) -> None:
        """Wake up when something expires; a timer that is set for earlier stays, and sets the next."""
        if self.loop is None or (not queue.depth and queue.expires is None):
            return
        due = queue.due()
        if due is None or (queue.timer is not None and queue.timer_due <= due):
            return
        if queue.timer is not None:
            queue.timer.cancel()
        queue.timer_due = due
        delay = max(due - now, _TIMER_RESOLUTION)
        queue.timer = self.loop.call_later(delay, _wake_later, weakref.ref(self), weakref.ref(queue))

    def _bury(self, queue: MemoryQueue, message: Message, reason: str) -> None:
        """Note that *message* has left *queue*; it is routed in the next iteration of the loop."""
        if queue.dead_letter_exchange is None:
            self.dropped += 1
        else:
            self._dead.append((queue, message, reason))
            self.schedule()

    def _route_dead_letters(self, now: float) -> None:
        today = datetime.now(UTC).replace(microsecond=0)  # x-death has whole seconds
        for _ in range(len(self._dead)):
            queue, message, reason = self._dead.popleft()
            exchange_name = queue.dead_letter_exchange or ""
            exchange = self._exchanges.get(exchange_name)
            if exchange is None:
                self.dropped += 1
                continue
            letter = dead_letter(
                message,
                reason,
                queue.name,
                exchange=exchange_name,
                routing_key=queue.dead_letter_routing_key,
                time=today,
            )
            keys = letter.keys or (letter.routing_key,)
            targets = [target for target in exchange.route_all(keys) if not is_cycle(letter, target.name)]
            taken = [self._put(target, letter.copy(), now) for target in targets]
            if any(taken):
                self.dead_lettered += 1
            else:
                self.dropped += 1


def _wake_later(dispatcher: weakref.ref[Dispatcher], queue: weakref.ref[MemoryQueue]) -> None:
    """Serve a queue when its timer is due; the timer keeps neither alive."""
    served, by = queue(), dispatcher()
    if served is not None and by is not None:
        served.timer = None
        by.wake(served)
