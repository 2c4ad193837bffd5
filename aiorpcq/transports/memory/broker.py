"""The broker: state that belongs to no event loop, driven by one callback in the loop of its links.

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
from typing import Protocol

from ...errors import ConnectFailed, ConnectionLost, RPCError
from ...protocol.messages import Outcome, Publication
from ...protocol.topology import Binding, Exchange, Queue
from ..base import Delivery
from .exchange import MemoryExchange
from .message import Message, dead_letter, is_cycle
from .queue import Consumer, MemoryQueue
from .statistics import BrokerStatistics, QueueStatistics
from .topology import MemoryTopology

__all__ = ["BrokerLink", "MemoryBroker"]

logger = logging.getLogger("aiorpcq.memory")

_DELIVERY_BATCH = 1_000  # deliveries of one queue in one iteration of the loop, so that a long queue cannot hold it up
_TIMER_RESOLUTION = 0.001  # seconds
_USER_ERRORS = (Exception, asyncio.CancelledError)


class BrokerLink(Protocol):
    """A link as its broker sees it, and as predicates of `MemoryBroker.drop_links` do."""

    name: str
    max_size: int
    is_lost: bool
    is_posted: bool
    outbox: deque[tuple[Publication, Message]]
    consumers: dict[Consumer, None]

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues it consumes from."""

    def lose(self, reason: RPCError) -> None:
        """End the link; `lost` gets *reason*."""

    def hold(self) -> None:
        """Be not writable."""

    def resume(self) -> None:
        """Be writable again."""


class MemoryBroker:
    """A broker in the process, with RabbitMQ's semantics as far as RPC relies on them.

    It may be used from one event loop at a time: another one can connect once the links of the former are closed, or
    their loop is. *now* is the clock that expiry goes by, in seconds, by default the loop's; a clock that is moved by
    hand needs `expire` after each move.

    What it holds is bounded by the arguments of its queues (x-max-length, x-message-ttl, x-expires) and by publishers
    that wait while their link is not writable. Between two iterations of the loop it also holds what was
    dead-lettered in the former.
    """

    def __init__(self, name: str = "default", now: Callable[[], float] | None = None) -> None:
        self.name = name
        self._clock = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[BrokerLink, None] = {}
        self._link_count = 0
        self._topology = MemoryTopology()
        self._exchanges = self._topology.exchanges
        self._queues = self._topology.queues
        self._is_scheduled = False
        self._posted: list[BrokerLink] = []
        self._awake: dict[MemoryQueue, None] = {}
        self._dead: deque[tuple[MemoryQueue, Message, str]] = deque()
        self._refusal: str | None = None
        self._is_blocked = False
        self._published = 0
        self._unroutable = 0
        self._refused = 0
        self._delivered = 0
        self._dead_lettered = 0
        self._dropped = 0

    def __repr__(self) -> str:
        return f"<MemoryBroker {self.name!r}: {len(self._links)} links, {len(self._queues)} queues>"

    # faults and observation

    def now(self) -> float:
        """Return the time that expiry goes by, in seconds."""
        if self._clock is not None:
            return self._clock()
        loop = self._loop
        return time.monotonic() if loop is None or loop.is_closed() else loop.time()

    def expire(self) -> None:
        """Drop or dead-letter what has expired by now, and delete queues that were unused for too long."""
        now = self.now()
        for queue in tuple(self._queues.values()):
            self._expire(queue, now)

    def drop_links(
        self,
        matching: Callable[[BrokerLink], bool] | None = None,
        *,
        reason: str = "connection to the broker was dropped",
    ) -> int:
        """Take the links that *matching* picks, or all, their connection away; return how many."""
        picked = [link for link in self._links if matching is None or matching(link)]
        for link in picked:
            link.lose(ConnectionLost(reason))
        return len(picked)

    def refuse_connections(self, reason: str = "connection refused") -> None:
        """Refuse new links with *reason*, until `accept_connections`."""
        self._refusal = reason

    def accept_connections(self) -> None:
        """Accept new links again."""
        self._refusal = None

    def block(self) -> None:
        """Raise the alarm: no link is writable, and what is published anyway is held until `unblock`.

        Deliveries, settlements and declarations go on.
        """
        self._is_blocked = True
        for link in self._links:
            link.hold()

    def unblock(self) -> None:
        """Clear the alarm."""
        self._is_blocked = False
        for link in self._links:
            link.resume()
        self._schedule()

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its messages; the links that consume from it are lost.

        Raises:
            KeyError: there is no queue of that name.
        """
        self._delete(self._queues[name])

    def queue_depth(self, name: str) -> int:
        """Return how many messages are ready in a queue, those in consumers' hands not counted.

        Raises:
            KeyError: there is no queue of that name.
        """
        return self._queues[name].depth

    def statistics(self) -> BrokerStatistics:
        """Return a snapshot."""
        unsettled = dict.fromkeys(self._queues, 0)
        for link in self._links:
            for consumer in link.consumers:
                if not consumer.queue.is_deleted:
                    unsettled[consumer.queue.name] += len(consumer.unsettled)
        queues = {
            name: QueueStatistics(queue.depth, unsettled[name], len(queue.consumers))
            for name, queue in self._queues.items()
        }
        return BrokerStatistics(
            links=len(self._links),
            exchanges=len(self._exchanges),
            queues=queues,
            blocked=self._is_blocked,
            published=self._published,
            unroutable=self._unroutable,
            refused=self._refused,
            delivered=self._delivered,
            dead_lettered=self._dead_lettered,
            dropped=self._dropped,
        )

    # for links

    @property
    def is_blocked(self) -> bool:
        """Whether the alarm is raised."""
        return self._is_blocked

    def attach(self, link: BrokerLink, loop: asyncio.AbstractEventLoop) -> None:
        """Take *link* in, which lives in *loop*.

        Raises:
            ConnectFailed: connections are refused, or links of another event loop are open.
        """
        if self._refusal is not None:
            raise ConnectFailed(f"broker {self.name!r}: {self._refusal}")
        if loop is not self._loop:
            self._move(loop)
        self._links[link] = None
        if self._is_blocked:
            link.hold()

    def detach(self, link: BrokerLink) -> None:
        """Let *link* go: give back what it has not settled, cancel its consumers, delete its exclusive queues."""
        self._links.pop(link, None)
        if link.is_posted:
            self._posted = [other for other in self._posted if other is not link]
        consumers = tuple(link.consumers)
        now = self.now()
        emptied = [consumer.queue for consumer in consumers if consumer.queue.unsubscribe(consumer, now)]
        for consumer in consumers:
            unsettled = sorted(consumer.unsettled, key=lambda delivery: delivery.message.sequence)
            consumer.unsettled.clear()
            for delivery in unsettled:
                delivery.void()
                self._give_back(consumer.queue, delivery.message, True)
            self._wake(consumer.queue)
        link.consumers.clear()
        for queue in (*emptied, *(queue for queue in self._queues.values() if queue.owner is link)):
            self._delete(queue)

    def declare(self, link: BrokerLink, entity: Exchange | Queue | Binding) -> None:
        """Declare *entity* for *link*. Idempotent.

        Raises:
            TopologyMismatch: it exists with other properties, or is exclusive to another link.
            ConnectFailed: it cannot be declared.
        """
        match entity:
            case Exchange():
                self._topology.declare_exchange(entity)
            case Queue():
                self._wake(self._topology.declare_queue(entity, link, self.now()))
            case Binding():
                self._topology.bind(entity, link)

    def subscribe(
        self,
        link: BrokerLink,
        queue_name: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int,
        no_ack: bool,
        exclusive: bool,
    ) -> Consumer:
        """Add a consumer for *link*.

        Raises:
            ConnectFailed: the queue is not there, another link's, or in exclusive use.
        """
        queue = self._topology.queue(queue_name)
        queue.check_access(link)
        consumer = Consumer(
            link,
            queue,
            on_delivery,
            prefetch=prefetch,
            no_ack=no_ack,
            exclusive=exclusive,
            wake=self._wake,
            give_back=self._give_back,
        )
        queue.subscribe(consumer)
        self._wake(queue)
        return consumer

    def unsubscribe(self, consumer: Consumer) -> None:
        """Cancel *consumer*; what was delivered to it can still be settled. Idempotent."""
        if consumer.queue.unsubscribe(consumer, self.now()):
            self._delete(consumer.queue)
        else:
            self._wake(consumer.queue)

    def post(self, link: BrokerLink) -> None:
        """Have the outbox of *link* routed in the next iteration of the loop."""
        self._posted.append(link)
        if not self._is_scheduled:
            self._schedule()

    # the loop's callback

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go over to *loop*, with the timers of every queue."""
        if self._loop is not None and self._links and not self._loop.is_closed():
            raise ConnectFailed(
                f"broker {self.name!r} is in use by another event loop; close its {len(self._links)} links first"
            )
        self._loop = loop
        self._is_scheduled = False
        for link in tuple(self._links):
            link.lose(ConnectionLost("the event loop of the link was closed"))
        for queue in self._queues.values():
            queue.timer = None
            self._wake(queue)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._loop is not None and not self._loop.is_closed():
            self._is_scheduled = True
            self._loop.call_soon(self._run, self._loop)

    def _wake(self, queue: MemoryQueue) -> None:
        """Have *queue* served in the next iteration of the loop."""
        self._awake[queue] = None
        if not self._is_scheduled:
            self._schedule()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        self._is_scheduled = False
        now = self.now()
        if self._dead:
            self._route_dead_letters(now)
        if self._posted and not self._is_blocked:
            links, self._posted = self._posted, []
            for link in links:
                self._route_outbox(link, now)
        queues, self._awake = self._awake, {}
        for queue in queues:
            self._serve(queue, now)

    def _route_outbox(self, link: BrokerLink, now: float) -> None:
        """Route what *link* has published so far, and settle it in order.

        What is left when the link is lost on the way is the link's to settle as LOST.
        """
        link.is_posted = False
        outbox = link.outbox
        exchanges = self._exchanges
        for _ in range(len(outbox)):
            if link.is_lost:
                return
            publication, message = outbox[0]
            exchange = exchanges.get(message.exchange)
            if exchange is None:
                link.lose(ConnectionLost(f"no exchange {message.exchange!r} to publish to"))
                return
            outbox.popleft()
            self._published += 1
            outcome = self._route(exchange, message, now)
            if outcome is Outcome.RETURNED:
                self._unroutable += 1
                if not publication.mandatory:
                    outcome = Outcome.CONFIRMED
            settled = publication.settled
            if settled is not None:
                try:
                    settled(publication, outcome)
                except _USER_ERRORS:
                    logger.exception("settled callback of link %s raised", link.name)
        if not self._is_blocked:
            link.resume()

    def _route(self, exchange: MemoryExchange, message: Message, now: float) -> Outcome:
        keys = message.keys
        queues = exchange.route(message.routing_key) if keys is None else exchange.route_all(keys)
        if not queues:
            return Outcome.RETURNED
        outcome = Outcome.CONFIRMED
        for index, queue in enumerate(queues):
            if not self._put(queue, message.copy() if index else message, now):
                self._refused += 1
                outcome = Outcome.REFUSED
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
        self._expire(queue, now)
        if queue.depth and queue.waiting:
            self._wake(queue)
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
            self._delivered += 1
            try:
                consumer.on_delivery(delivery)
            except _USER_ERRORS:
                logger.exception("delivery callback of link %s raised, queue %r", consumer.link.name, queue.name)

    def _expire(self, queue: MemoryQueue, now: float) -> None:
        """Let expired messages go from the head, and only from there; delete a queue unused for too long."""
        if queue.is_unused(now):
            self._delete(queue)
            return
        while queue.depth:
            head = queue.head()
            if head is None or head.expires_at is None or head.expires_at > now:
                return
            self._bury(queue, queue.take(), "expired")

    def _trim(self, queue: MemoryQueue) -> None:
        """Drop from the head what is more than the length limit, unless the queue refuses at the other end."""
        if queue.length_limit is not None and queue.overflow == "drop-head":
            while queue.depth > queue.length_limit:
                self._bury(queue, queue.take(), "maxlen")

    def _give_back(self, queue: MemoryQueue, message: Message, requeue: bool) -> None:
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
        self._wake(queue)

    def _set_timer(self, queue: MemoryQueue, now: float) -> None:
        """Wake up when something expires; a timer that is set for earlier stays, and sets the next."""
        if self._loop is None or (not queue.depth and queue.expires is None):
            return
        due = queue.due()
        if due is None or (queue.timer is not None and queue.timer_due <= due):
            return
        if queue.timer is not None:
            queue.timer.cancel()
        queue.timer_due = due
        delay = max(due - now, _TIMER_RESOLUTION)
        queue.timer = self._loop.call_later(delay, _wake_later, weakref.ref(self), weakref.ref(queue))

    # dead letters

    def _bury(self, queue: MemoryQueue, message: Message, reason: str) -> None:
        """Note that *message* has left *queue*; it is routed in the next iteration of the loop."""
        if queue.dead_letter_exchange is None:
            self._dropped += 1
        else:
            self._dead.append((queue, message, reason))
            self._schedule()

    def _route_dead_letters(self, now: float) -> None:
        today = datetime.now(UTC).replace(microsecond=0)  # x-death has whole seconds
        for _ in range(len(self._dead)):
            queue, message, reason = self._dead.popleft()
            exchange_name = queue.dead_letter_exchange or ""
            exchange = self._exchanges.get(exchange_name)
            if exchange is None:
                self._dropped += 1
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
                self._dead_lettered += 1
            else:
                self._dropped += 1

    def _delete(self, queue: MemoryQueue) -> None:
        if queue.is_deleted:
            return
        queue.is_deleted = True
        self._topology.remove(queue)
        self._dropped += queue.clear()
        if queue.timer is not None:
            queue.timer.cancel()
        for consumer in tuple(queue.consumers):
            consumer.link.lose(ConnectionLost(f"queue {queue.name!r} was deleted"))


def _wake_later(broker: weakref.ref[MemoryBroker], queue: weakref.ref[MemoryQueue]) -> None:
    """Serve a queue when its timer is due; the timer keeps neither alive."""
    served, by = queue(), broker()
    if served is not None and by is not None:
        served.timer = None
        by._wake(served)
