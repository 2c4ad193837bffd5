"""The broker: state that belongs to no event loop, used from the loop of its links.

The broker keeps its links and makes faults; what they publish and consume is its `Dispatcher`'s.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from ...errors import ConnectFailed, ConnectionLost, RPCError
from ...protocol.messages import Publication
from ...protocol.topology import Binding, Exchange, Queue
from ..base import Delivery, QueueStatus
from .base import BrokerLink
from .dispatch import Dispatcher
from .queue import Consumer
from .statistics import BrokerStatistics, QueueStatistics
from .topology import MemoryTopology

__all__ = ["MemoryBroker"]


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
        self.link_numbers = itertools.count(1)
        self._links: dict[BrokerLink, None] = {}
        self._refusal: str | None = None
        self._topology = MemoryTopology()
        self._exchanges = self._topology.exchanges
        self._queues = self._topology.queues
        self._dispatcher = Dispatcher(self._topology, now)
        self.post = self._dispatcher.post  # links post to it once an iteration: no call in between

    def __repr__(self) -> str:
        return f"<MemoryBroker {self.name!r}: {len(self._links)} links, {len(self._queues)} queues>"

    # faults and observation

    def now(self) -> float:
        """Return the time that expiry goes by, in seconds."""
        return self._dispatcher.now()

    def expire(self) -> None:
        """Drop or dead-letter what has expired by now, and delete queues that were unused for too long."""
        now = self.now()
        for queue in tuple(self._queues.values()):
            self._dispatcher.expire(queue, now)

    def drop_links(
        self,
        matching: Callable[[BrokerLink], bool] | None = None,
        *,
        reason: str = "connection to the broker was dropped",
    ) -> int:
        """Take the links that *matching* picks, or all, their connection away; return how many."""
        picked = self._pick(matching)
        for link in picked:
            link.lose(ConnectionLost(reason))
        return len(picked)

    def close_channels(
        self,
        matching: Callable[[BrokerLink], bool] | None = None,
        *,
        reason: str = "406 PRECONDITION_FAILED",
    ) -> int:
        """Close the channel of the links that *matching* picks, or of all; return how many.

        The links stand, and go on with another channel; one with a consumer that cannot be told is lost.
        """
        picked = self._pick(matching)
        for link in picked:
            link.close_channel(ConnectionLost(f"the broker closed the channel: {reason}"))
        return len(picked)

    def freeze_links(self, matching: Callable[[BrokerLink], bool] | None = None) -> int:
        """Have the links that *matching* picks, or all, go silent, as where a network swallows every packet.

        Nothing that their owners do reaches the broker, and nothing of the broker's reaches them, until they are
        dropped; the broker hands them messages, which come back then. Return how many.
        """
        picked = self._pick(matching)
        for link in picked:
            link.is_frozen = True
        return len(picked)

    def lose_confirms(self, matching: Callable[[Publication], bool] | None = None) -> None:
        """Drop the link of the next publication that *matching* picks, after it was routed and before its confirm.

        Each call is for one publication; those of several calls add up.
        """
        self._dispatcher.lost_confirms.append(matching)

    def restart(self) -> None:
        """Do to links, queues and messages what a restart of the broker does; new links may be made at once.

        All links are dropped. Durable queues stay with their persistent messages (delivery mode 2), quorum queues with
        all of them; every other message is dropped, and every queue and exchange that is not durable.
        """
        self.drop_links(reason="the broker was restarted")
        for queue in tuple(self._queues.values()):
            if queue.declared.durable:
                self._dispatcher.drop_transient(queue)
            else:
                self._dispatcher.delete(queue)
        self._topology.remove_transient_exchanges()

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
        self._dispatcher.is_blocked = True
        for link in self._links:
            link.hold()

    def unblock(self) -> None:
        """Clear the alarm."""
        self._dispatcher.is_blocked = False
        for link in self._links:
            link.resume()
        self._dispatcher.schedule()

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its messages, and end its consumers; a link with one that cannot be told is lost.

        Raises:
            KeyError: there is no queue of that name.
        """
        self._dispatcher.delete(self._queues[name])

    def cancel_consumers(self, name: str) -> int:
        """End the consumers of a queue that stays, as where it moves to another node; return how many there were.

        What they have in hand can still be settled. A link with one that cannot be told is lost.

        Raises:
            KeyError: there is no queue of that name.
        """
        reason = ConnectionLost(f"the broker cancelled a consumer of queue {name!r}")
        return self._dispatcher.cancel_consumers(self._queues[name], reason)

    def drop_messages(self, name: str) -> int:
        """Drop the messages that are ready in a queue and not persistent, as a restart does; return how many.

        Raises:
            KeyError: there is no queue of that name.
        """
        return self._dispatcher.drop_transient(self._queues[name])

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
            if not queue.is_hidden
        }
        return BrokerStatistics(
            links=len(self._links),
            exchanges=len(self._exchanges),
            queues=queues,
            blocked=self._dispatcher.is_blocked,
            published=self._dispatcher.published,
            unroutable=self._dispatcher.unroutable,
            refused=self._dispatcher.refused,
            delivered=self._dispatcher.delivered,
            dead_lettered=self._dispatcher.dead_lettered,
            dropped=self._dispatcher.dropped,
        )

    # for links

    @property
    def is_blocked(self) -> bool:
        """Whether the alarm is raised."""
        return self._dispatcher.is_blocked

    def attach(self, link: BrokerLink, loop: asyncio.AbstractEventLoop) -> None:
        """Take *link* in, which lives in *loop*.

        Raises:
            ConnectFailed: connections are refused, or links of another event loop are open.
        """
        if self._refusal is not None:
            raise ConnectFailed(f"broker {self.name!r}: {self._refusal}")
        if loop is not self._dispatcher.loop:
            self._move(loop)
        self._links[link] = None
        if self._dispatcher.is_blocked:
            link.hold()

    def detach(self, link: BrokerLink) -> None:
        """Let *link* go, with its channel and its exclusive queues."""
        self._links.pop(link, None)
        self.release(link)
        for queue in tuple(self._queues.values()):
            if queue.owner is link:
                self._dispatcher.delete(queue)

    def release(self, link: BrokerLink) -> list[Consumer]:
        """Give back what *link* has not settled, and cancel its consumers, which are returned."""
        if link.is_posted:
            self._dispatcher.withdraw(link)
        consumers = tuple(link.consumers)
        ended = [consumer for consumer in consumers if not consumer.is_cancelled]
        now = self.now()
        emptied = [consumer.queue for consumer in consumers if consumer.queue.unsubscribe(consumer, now)]
        for consumer in consumers:
            unsettled = sorted(consumer.unsettled, key=lambda delivery: delivery.message.sequence)
            consumer.unsettled.clear()
            for delivery in unsettled:
                delivery.void(link)
                self._dispatcher.give_back(consumer.queue, delivery.message, True)
            self._dispatcher.wake(consumer.queue)
        link.consumers.clear()
        for queue in emptied:
            self._dispatcher.delete(queue)
        return ended

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
                self._dispatcher.wake(self._topology.declare_queue(entity, link, self.now()))
            case Binding():
                self._topology.bind(entity, link)

    def inspect(self, link: BrokerLink, name: str) -> QueueStatus | None:
        """Tell *link* about a queue; None where there is none of that name.

        Raises:
            TopologyMismatch: it is exclusive to another link.
        """
        queue = self._queues.get(name)
        if queue is None:
            return None
        if not queue.is_hidden:
            queue.check_access(link)
        return QueueStatus(messages=queue.depth, consumers=len(queue.consumers))

    def direct_reply_queue(self, link: BrokerLink, *, no_ack: bool) -> str:
        """Make the queue that *link* gets direct replies in, and return its name.

        Raises:
            ConnectFailed: it has one, or wants to acknowledge (RabbitMQ answers both with 406).
        """
        if not no_ack:
            raise ConnectFailed("direct replies cannot be acknowledged")
        if any(consumer.queue.is_hidden for consumer in link.consumers if not consumer.is_cancelled):
            raise ConnectFailed("direct replies are consumed already")
        return self._topology.add_reply_queue(link).name

    def subscribe(
        self,
        link: BrokerLink,
        queue_name: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int,
        no_ack: bool,
        exclusive: bool,
        on_cancelled: Callable[[RPCError], None] | None,
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
            on_cancelled=on_cancelled,
            wake=self._dispatcher.wake,
            give_back=self._dispatcher.give_back,
        )
        queue.subscribe(consumer)
        self._dispatcher.wake(queue)
        return consumer

    def unsubscribe(self, consumer: Consumer) -> None:
        """Cancel *consumer*; what was delivered to it can still be settled. Idempotent."""
        if consumer.queue.unsubscribe(consumer, self.now()):
            self._dispatcher.delete(consumer.queue)
        else:
            self._dispatcher.wake(consumer.queue)

    def _pick(self, matching: Callable[[BrokerLink], bool] | None) -> list[BrokerLink]:
        return [link for link in self._links if matching is None or matching(link)]

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go over to *loop*, with the timers of every queue."""
        former = self._dispatcher.loop
        if former is not None and self._links and not former.is_closed():
            raise ConnectFailed(
                f"broker {self.name!r} is in use by another event loop; close its {len(self._links)} links first"
            )
        self._dispatcher.enter(loop)
        for link in tuple(self._links):
            link.lose(ConnectionLost("the event loop of the link was closed"))
        self._dispatcher.wake_all()
