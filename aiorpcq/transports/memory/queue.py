"""A queue: its messages in order, and its consumers in turn. Nothing here does I/O or knows the time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from ...errors import ConnectFailed, RPCError, TopologyMismatch
from ...protocol.messages import Properties
from ...protocol.topology import Queue
from ..base import Delivery
from .message import Message

__all__ = ["Consumer", "MemoryDelivery", "MemoryQueue", "QueueOwner"]

_COMPARED = (  # what RabbitMQ 3.10 compares; other arguments may differ (seen)
    "x-queue-type",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-message-ttl",
    "x-expires",
    "x-max-length",
    "x-overflow",
    "x-max-priority",
    "x-delivery-limit",
)
_OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")
_PRIORITY_LIMIT = 255


class QueueOwner(Protocol):
    """The link that a consumer or an exclusive queue belongs to, as queues see it."""

    name: str
    max_size: int
    is_lost: bool
    is_frozen: bool

    def end(self, consumer: Consumer, reason: RPCError) -> None:
        """Have *consumer* told that the broker ended it, or be lost where it cannot be told."""


class MemoryDelivery:
    """A message in a consumer's hands. It is void once settled, given back by a lost link, or sent without ack."""

    __slots__ = (
        "_consumer",
        "_taken_from",
        "body",
        "exchange",
        "message",
        "oversize",
        "properties",
        "redelivered",
        "routing_key",
    )

    def __init__(self, message: Message, consumer: Consumer | None, properties: Properties, max_size: int) -> None:
        self._consumer = consumer
        self.message = message
        self.properties = properties
        size = len(message.body)
        self.oversize = size if size > max_size else 0
        self.body = b"" if self.oversize else message.body
        self.redelivered = message.redelivered
        self._taken_from: QueueOwner | None = None
        self.exchange = message.exchange
        self.routing_key = message.routing_key

    def ack(self) -> None:
        """Tell the broker to forget the message. Idempotent."""
        consumer = self._consumer
        if consumer is not None:
            self._consumer = None
            consumer.release(self)

    def nack(self, *, requeue: bool) -> None:
        """Give the message back to its queue, or have it dead-lettered. Idempotent."""
        consumer = self._consumer
        if consumer is not None:
            self._consumer = None
            consumer.give_back(self, requeue)

    @property
    def is_void(self) -> bool:
        """See `Delivery`."""
        return self._taken_from is not None

    @property
    def requeued(self) -> bool:
        """See `Delivery`."""
        return self._taken_from is not None and not self._taken_from.is_lost

    def void(self, link: QueueOwner) -> None:
        """Take note that the broker has taken it back from *link*: `ack` and `nack` do nothing from now on."""
        if self._consumer is not None:
            self._taken_from = link
        self._consumer = None

    def __repr__(self) -> str:
        return f"MemoryDelivery({self.exchange!r}, {self.routing_key!r}, {self.properties!r}, {len(self.body)} bytes)"


class Consumer:
    """A consumer on a queue. Its unsettled deliveries are bounded by *prefetch*, or not at all where that is 0.

    *wake* and *give_back* are the broker's: the queue has something to deliver again; take a delivery back.
    """

    __slots__ = (
        "_give_back",
        "_wake",
        "exclusive",
        "is_cancelled",
        "is_waiting",
        "link",
        "no_ack",
        "on_cancelled",
        "on_delivery",
        "prefetch",
        "queue",
        "unsettled",
    )

    def __init__(
        self,
        link: QueueOwner,
        queue: MemoryQueue,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int,
        no_ack: bool,
        exclusive: bool,
        on_cancelled: Callable[[RPCError], None] | None,
        wake: Callable[[MemoryQueue], None],
        give_back: Callable[[MemoryQueue, Message, bool], None],
    ) -> None:
        self.link = link
        self.queue = queue
        self.on_delivery = on_delivery
        self.prefetch = prefetch
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.on_cancelled = on_cancelled
        self.unsettled: set[MemoryDelivery] = set()
        self.is_cancelled = False
        self.is_waiting = False
        self._wake = wake
        self._give_back = give_back

    def deliver(self, message: Message) -> MemoryDelivery:
        """Return the delivery of *message*, and wait for the next in turn if there is credit left."""
        queue = self.queue
        properties = message.properties
        if message.deliveries and queue.is_quorum:
            properties = message.with_delivery_count()
        if self.no_ack:
            queue.waiting.append(self)
            return MemoryDelivery(message, None, properties, self.link.max_size)
        delivery = MemoryDelivery(message, self, properties, self.link.max_size)
        unsettled = self.unsettled
        unsettled.add(delivery)
        if self.prefetch and len(unsettled) >= self.prefetch:
            self.is_waiting = False
        else:
            queue.waiting.append(self)
        return delivery

    def release(self, delivery: MemoryDelivery) -> None:
        """Forget *delivery* and take its credit back; a broker that hears nothing of a frozen link does neither."""
        if self.link.is_frozen:
            return
        self.unsettled.discard(delivery)
        if not self.is_waiting and not self.is_cancelled:
            self.is_waiting = True
            self.queue.waiting.append(self)
            if self.queue.depth:
                self._wake(self.queue)

    def give_back(self, delivery: MemoryDelivery, requeue: bool) -> None:
        """Take *delivery* back into the queue, or have it dead-lettered."""
        if self.link.is_frozen:
            return
        self.release(delivery)
        self._give_back(self.queue, delivery.message, requeue)


class _Lane:
    """The messages of one priority.

    What is given back was delivered before anything still in *fresh*, so two parts keep the order: a heap of the given
    back by sequence, and then the others.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Message] = deque()
        self.returned: list[tuple[int, Message]] = []


class MemoryQueue:
    """The messages and consumers of a declared queue.

    One that *is_hidden* stands behind direct replies (`topology.DIRECT_REPLY_TO`): nobody has declared it.

    It holds as many messages as x-max-length says, without that argument as many as are published, like RabbitMQ.

    Raises:
        TopologyMismatch: an argument has a value it cannot have.
    """

    def __init__(self, declared: Queue, owner: QueueOwner | None, *, is_hidden: bool = False) -> None:
        arguments = _Arguments(declared)
        self.is_hidden = is_hidden
        self.declared = declared
        self.name = declared.name
        self.owner = owner
        self.is_deleted = False
        self.is_quorum = arguments.text("x-queue-type", "classic", ("classic", "quorum")) == "quorum"
        self.dead_letter_exchange = arguments.text("x-dead-letter-exchange")
        self.dead_letter_routing_key = arguments.text("x-dead-letter-routing-key")
        if self.dead_letter_routing_key is not None and self.dead_letter_exchange is None:
            raise arguments.invalid("x-dead-letter-routing-key", "needs x-dead-letter-exchange")
        self.ttl = _seconds(arguments.number("x-message-ttl"))
        self.expires = _seconds(arguments.number("x-expires", least=1))
        self.length_limit = arguments.number("x-max-length")
        self.overflow = arguments.text("x-overflow", "drop-head", _OVERFLOWS)
        self.delivery_limit = arguments.number("x-delivery-limit")
        self.priority_limit = arguments.number("x-max-priority", most=_PRIORITY_LIMIT) or 0
        arguments.check_kind(self.is_quorum)

        self.depth = 0
        self.waiting: deque[Consumer] = deque()  # those with credit, in turn
        self.consumers: dict[Consumer, None] = {}
        self.unused_since: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.timer_due = 0.0
        self._sequence = 0
        self._lanes = [_Lane() for _ in range(self.priority_limit + 1)]
        self._lanes_by_priority = self._lanes[::-1]

    def check_access(self, link: QueueOwner) -> None:
        """Raise `TopologyMismatch` where the queue is another link's."""
        if self.owner is not None and self.owner is not link:
            raise TopologyMismatch(f"queue {self.name!r} is locked: it is exclusive to another connection")

    def check_declared(self, other: Queue) -> None:
        """Raise `TopologyMismatch` where *other* declares this queue with other properties."""
        mine = self.declared
        differences: list[tuple[str, Any, Any]] = [
            ("durable", other.durable, mine.durable),
            ("exclusive", other.exclusive, mine.exclusive),
            ("auto_delete", other.auto_delete, mine.auto_delete),
        ]
        for argument in _COMPARED:
            default = "classic" if argument == "x-queue-type" else None
            received = other.arguments.get(argument, default)
            differences.append((argument, received, mine.arguments.get(argument, default)))
        for argument, received, current in differences:
            if received != current:
                raise TopologyMismatch(
                    f"inequivalent arg {argument!r} for queue {self.name!r}: "
                    f"received {_show(received)} but current is {_show(current)}"
                )

    def put(self, message: Message, now: float) -> None:
        """Add a new message at the end of its priority."""
        expiration = message.properties.expiration
        ttl = self.ttl
        if expiration is not None:
            seconds = expiration / 1000
            message.expires_at = now + (seconds if ttl is None or seconds < ttl else ttl)
        elif ttl is not None:
            message.expires_at = now + ttl
        self._sequence += 1
        message.sequence = self._sequence
        self._lane(message).fresh.append(message)
        self.depth += 1

    def put_back(self, message: Message) -> None:
        """Return a delivered message to its old position."""
        heappush(self._lane(message).returned, (message.sequence, message))
        self.depth += 1

    def head(self) -> Message | None:
        """Return the message that is next."""
        for lane in self._lanes_by_priority:
            if lane.returned:
                return lane.returned[0][1]
            if lane.fresh:
                return lane.fresh[0]
        return None

    def take(self) -> Message:
        """Remove the message that is next; there must be one."""
        self.depth -= 1
        for lane in self._lanes_by_priority:
            if lane.returned:
                return heappop(lane.returned)[1]
            if lane.fresh:
                return lane.fresh.popleft()
        raise IndexError(f"queue {self.name!r} is empty")

    def clear(self) -> int:
        """Drop all messages; return how many there were."""
        dropped, self.depth = self.depth, 0
        for lane in self._lanes:
            lane.fresh.clear()
            lane.returned.clear()
        return dropped

    def drop_transient(self) -> int:
        """Drop the messages that a restart of the broker would; return how many. A quorum queue has none."""
        if self.is_quorum:
            return 0
        kept = 0
        for lane in self._lanes:
            lane.fresh = deque(message for message in lane.fresh if message.is_persistent)
            lane.returned = [entry for entry in lane.returned if entry[1].is_persistent]
            heapify(lane.returned)
            kept += len(lane.fresh) + len(lane.returned)
        dropped, self.depth = self.depth - kept, kept
        return dropped

    def subscribe(self, consumer: Consumer) -> None:
        """Add *consumer* at the end of the round.

        Raises:
            ConnectFailed: it or another one wants the queue for itself.
        """
        if self.consumers and (consumer.exclusive or any(other.exclusive for other in self.consumers)):
            raise ConnectFailed(f"queue {self.name!r} is in exclusive use")
        self.consumers[consumer] = None
        self.unused_since = None
        consumer.is_waiting = True
        self.waiting.append(consumer)

    def unsubscribe(self, consumer: Consumer, now: float) -> bool:
        """Remove *consumer*; return whether the queue is to be deleted with it."""
        consumer.is_cancelled = True
        if consumer not in self.consumers:
            return False
        del self.consumers[consumer]
        if consumer.is_waiting:
            self.waiting.remove(consumer)
            consumer.is_waiting = False
        if self.consumers:
            return False
        self.unused_since = now
        return self.declared.auto_delete

    def due(self) -> float | None:
        """Return when the next thing happens by itself: the head expires, or the queue does."""
        head = self.head() if self.depth else None
        due = None if head is None else head.expires_at
        if self.expires is not None and self.unused_since is not None:
            expiry = self.unused_since + self.expires
            due = expiry if due is None else min(due, expiry)
        return due

    def is_unused(self, now: float) -> bool:
        """Tell whether x-expires has passed without a consumer."""
        return self.expires is not None and self.unused_since is not None and now >= self.unused_since + self.expires

    def _lane(self, message: Message) -> _Lane:
        if not self.priority_limit:
            return self._lanes[0]
        return self._lanes[min(message.properties.priority or 0, self.priority_limit)]


class _Arguments:
    """The arguments of a queue, checked as RabbitMQ checks them; those it does not know are kept as they are."""

    def __init__(self, declared: Queue) -> None:
        self._declared = declared
        self._values: Mapping[str, Any] = declared.arguments

    def invalid(self, name: str, reason: str) -> TopologyMismatch:
        return TopologyMismatch(f"invalid arg {name!r} for queue {self._declared.name!r}: {reason}")

    def text(self, name: str, default: str | None = None, allowed: tuple[str, ...] | None = None) -> str | None:
        value = self._values.get(name, default)
        if value is not None and not isinstance(value, str):
            raise self.invalid(name, f"{value!r} is not text")
        if allowed is not None and value not in allowed:
            raise self.invalid(name, f"{value!r} is not one of {', '.join(allowed)}")
        return value

    def number(self, name: str, *, least: int = 0, most: int | None = None) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.invalid(name, f"{value!r} is not an integer of at least {least}")
        if most is not None and value > most:
            raise self.invalid(name, f"{value} is more than {most}")
        return value

    def check_kind(self, is_quorum: bool) -> None:
        """Refuse what this kind of queue cannot be (RabbitMQ 3.10, seen)."""
        if not is_quorum:
            if "x-delivery-limit" in self._values:
                raise self.invalid("x-delivery-limit", "a classic queue has none")
            return
        if "x-max-priority" in self._values:
            raise self.invalid("x-max-priority", "a quorum queue has none")
        declared = self._declared
        if not declared.durable or declared.exclusive or declared.auto_delete:
            raise self.invalid("x-queue-type", "a quorum queue is durable, not exclusive and not auto-delete")


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _show(value: Any) -> str:
    return "none" if value is None else repr(value)
