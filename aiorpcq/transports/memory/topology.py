"""The exchanges and queues of a broker, by name."""

from __future__ import annotations

from itertools import count

from ...errors import ConnectFailed
from ...protocol.topology import Binding, Exchange, Queue
from .exchange import MemoryExchange
from .queue import MemoryQueue, QueueOwner

__all__ = ["DIRECT_REPLY_TO", "MemoryTopology"]

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
"""What stands for a queue of replies that is not declared (RabbitMQ, "Direct Reply-to")."""

_RESERVED = "amq."


class MemoryTopology:
    """What has been declared. The default exchange and `amq.direct`, `amq.fanout`, `amq.topic` are always there."""

    def __init__(self) -> None:
        self.exchanges = {"": MemoryExchange(Exchange(""))}
        self.queues: dict[str, MemoryQueue] = {}
        self._reply_queues = count(1)
        for kind in ("direct", "fanout", "topic"):
            self.exchanges[f"{_RESERVED}{kind}"] = MemoryExchange(Exchange(f"{_RESERVED}{kind}", kind))

    def queue(self, name: str) -> MemoryQueue:
        """Return the queue of that name.

        Raises:
            ConnectFailed: there is none.
        """
        queue = self.queues.get(name)
        if queue is None:
            raise ConnectFailed(f"no queue {name!r}")
        return queue

    def declare_exchange(self, declared: Exchange) -> None:
        """Declare an exchange. Idempotent.

        Raises:
            TopologyMismatch: it exists with other properties.
            ConnectFailed: the name is not to be used, or the kind is unknown.
        """
        if not declared.name:
            raise ConnectFailed("operation not permitted on the default exchange")
        exchange = self.exchanges.get(declared.name)
        if exchange is not None:
            exchange.check_declared(declared)
            return
        _check_name("exchange", declared.name)
        self.exchanges[declared.name] = MemoryExchange(declared)

    def declare_queue(self, declared: Queue, owner: QueueOwner, now: float) -> MemoryQueue:
        """Declare a queue, which is *owner*'s where it is exclusive. Idempotent.

        Raises:
            TopologyMismatch: it exists with other properties or is another's, or an argument is impossible.
            ConnectFailed: the name is not to be used.
        """
        queue = self.queues.get(declared.name)
        if queue is not None:
            queue.check_access(owner)
            queue.check_declared(declared)
            if queue.unused_since is not None:
                queue.unused_since = now
            return queue
        if not declared.name:
            raise ConnectFailed("queue name '': the broker in memory makes no names")
        _check_name("queue", declared.name)
        queue = MemoryQueue(declared, owner if declared.exclusive else None)
        queue.unused_since = now
        self.queues[declared.name] = queue
        self.exchanges[""].bind(queue, declared.name)
        return queue

    def add_reply_queue(self, owner: QueueOwner) -> MemoryQueue:
        """Return a hidden queue for direct replies to *owner*, gone with its consumer."""
        name = f"{DIRECT_REPLY_TO}.{next(self._reply_queues)}"
        queue = MemoryQueue(Queue(name, durable=False, exclusive=True, auto_delete=True), owner, is_hidden=True)
        self.queues[name] = queue
        self.exchanges[""].bind(queue, name)
        return queue

    def bind(self, binding: Binding, owner: QueueOwner) -> None:
        """Bind a queue to an exchange. Idempotent.

        Raises:
            ConnectFailed: one of them is not there, or may not be bound.
        """
        if not binding.exchange:
            raise ConnectFailed("operation not permitted on the default exchange")
        exchange = self.exchanges.get(binding.exchange)
        if exchange is None:
            raise ConnectFailed(f"no exchange {binding.exchange!r} to bind queue {binding.queue!r} to")
        queue = self.queue(binding.queue)
        queue.check_access(owner)
        exchange.bind(queue, binding.routing_key)

    def remove_transient_exchanges(self) -> None:
        """Remove the exchanges that are not durable, with their bindings."""
        for exchange in tuple(self.exchanges.values()):
            if not exchange.declared.durable:
                del self.exchanges[exchange.name]

    def remove(self, queue: MemoryQueue) -> None:
        """Remove a queue with its bindings, and the auto-delete exchanges that had no other."""
        del self.queues[queue.name]
        for exchange in tuple(self.exchanges.values()):
            exchange.unbind(queue)
            if exchange.is_deleted:
                del self.exchanges[exchange.name]


def _check_name(kind: str, name: str) -> None:
    if name.startswith(_RESERVED):
        raise ConnectFailed(f"{kind} name {name!r} contains reserved prefix 'amq.*'")
