"""Exchanges, queues and bindings as values, and the ones that RPC stands on.

The arguments of a queue can never be changed on an existing one (RabbitMQ refuses with 406), so the defaults here are
final.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["TO_ALL", "Binding", "Exchange", "Names", "Queue", "split_method", "to_service", "to_worker"]

TO_ALL: Final = "all"
"""Routing key of control messages for every worker."""

_CONTROL_LENGTH: Final = 100_000
_DEAD_LENGTH: Final = 10_000
_DEAD_AGE: Final = 7 * 24 * 3600

_SERVICE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
_METHOD_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,50}\Z")
_METHOD_LENGTH_LIMIT = 255  # `type` is a short string (AMQP 0-9-1, section 4.2.5.3)
DEFAULT_SERVICE = "default"


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare. *kind* is direct, topic, fanout or headers."""

    name: str
    kind: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare."""

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of *queue* to *exchange* by *routing_key*."""

    queue: str
    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Names:
    """The names of everything RPC declares, all of them beginning with *prefix*."""

    prefix: str = "rpc"

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str) or not _PREFIX.match(self.prefix):
            raise ValueError(f"prefix: {self.prefix!r} does not match [A-Za-z0-9_-]{{1,50}}")

    @property
    def requests(self) -> Exchange:
        """The direct exchange that requests go to."""
        return Exchange(self.prefix)

    @property
    def control(self) -> Exchange:
        """The topic exchange that control messages go to."""
        return Exchange(f"{self.prefix}.control", "topic")

    def control_queue(self, worker_id: str, generation: int) -> Queue:
        """Return the queue that a worker hears control messages on, for the time of one connection."""
        return Queue(
            f"{self.prefix}.control.{worker_id}.{generation}",
            durable=False,
            exclusive=True,
            arguments={"x-queue-type": "classic", "x-max-length": _CONTROL_LENGTH},
        )

    def control_bindings(self, worker_id: str, generation: int, services: Iterable[str]) -> tuple[Binding, ...]:
        """Return the bindings of a worker's control queue: to what is said to all, to its services, to it alone."""
        queue, exchange = self.control_queue(worker_id, generation).name, self.control.name
        keys = (TO_ALL, to_worker(worker_id), *map(to_service, services))
        return tuple(Binding(queue, exchange, key) for key in keys)

    def delay(self, step: float) -> tuple[Exchange, Queue, Binding]:
        """Return what holds a request for *step* seconds and then publishes it to the request exchange.

        One queue for each step, so that a time to live at its head never blocks another; behind an exchange of its own,
        which leaves the routing key to be the service's. The queue has no dead-letter routing key: that one stays, and
        so does CC, for which the request exchange has no binding.
        """
        milliseconds = int(step * 1000)
        name = f"{self.prefix}.retry.{milliseconds}"
        arguments = {
            "x-queue-type": "classic",
            "x-message-ttl": milliseconds,
            "x-dead-letter-exchange": self.prefix,
        }
        return Exchange(name, "fanout"), Queue(name, arguments=arguments), Binding(name, name, "")

    def dead_queue(self, service: str) -> Queue:
        """Return the queue of the dead letters of *service*: the last 10,000, for seven days."""
        return Queue(
            f"{self.prefix}.{check_service(service)}.dead",
            arguments={"x-queue-type": "classic", "x-max-length": _DEAD_LENGTH, "x-message-ttl": _DEAD_AGE * 1000},
        )

    def durable_reply_queue(self, identity: str, expires: float) -> Queue:
        """Return the reply queue of a client with an identity; it goes *expires* seconds after its last consumer."""
        if not isinstance(identity, str) or not _SERVICE_NAME.match(identity):
            raise ValueError(f"identity: {identity!r} does not match [A-Za-z0-9_-]{{1,100}}")
        return Queue(
            f"{self.prefix}.reply.{identity}.durable",
            arguments={"x-queue-type": "classic", "x-expires": int(expires * 1000)},
        )

    def routing_key(self, service: str) -> str:
        """Return the key that binds the queue of *service* to the request exchange."""
        return f"{self.prefix}:{check_service(service)}"

    def service_queue(self, service: str, arguments: Mapping[str, Any] | None = None) -> Queue:
        """Return the queue of *service*.

        It dead-letters to the default exchange without a dead-letter routing key, so what expires or is rejected goes
        to the queues named in its CC header: back to its caller (RabbitMQ, "Dead Letter Exchanges" and "Sender-selected
        Distribution").
        """
        return Queue(
            f"{self.prefix}.{check_service(service)}",
            arguments={"x-queue-type": "classic", "x-dead-letter-exchange": "", **(arguments or {})},
        )

    def binding(self, service: str) -> Binding:
        """Return the binding of the queue of *service* to the request exchange."""
        return Binding(f"{self.prefix}.{check_service(service)}", self.prefix, self.routing_key(service))

    def reply_queue(self, router_id: str, generation: int, secret: str) -> Queue:
        """Return the reply queue of one generation of a router; *secret* makes its name unguessable."""
        return Queue(
            f"{self.prefix}.reply.{router_id}.{generation}.{secret}",
            durable=False,
            exclusive=True,  # it goes with its connection; auto-delete would end it with its channel
            arguments={"x-queue-type": "classic"},
        )


def to_service(name: str) -> str:
    """Return the routing key of control messages for the workers of a service."""
    return f"service.{name}"


def to_worker(worker_id: str) -> str:
    """Return the routing key of control messages for one worker."""
    return f"worker.{worker_id}"


def check_service(name: str) -> str:
    """Return *name*, or raise `ValueError` where it cannot name a service."""
    if not isinstance(name, str) or not _SERVICE_NAME.match(name):
        raise ValueError(f"service name {name!r} does not match [A-Za-z0-9_-]{{1,100}}")
    return name


def check_method(name: str) -> str:
    """Return *name*, or raise `ValueError` where it cannot name a method."""
    if not isinstance(name, str) or len(name) > _METHOD_LENGTH_LIMIT or not _METHOD_NAME.match(name):
        raise ValueError(f"method name {name!r} is not made of dotted [A-Za-z0-9_-]+ of at most 255 characters")
    return name


def split_method(name: str) -> tuple[str, str]:
    """Split what a caller names into service and method: "add" is ("default", "add"), "math.add" ("math", "add")."""
    check_method(name)
    service, dot, method = name.partition(".")
    if not dot:
        return DEFAULT_SERVICE, name
    return check_service(service), method
