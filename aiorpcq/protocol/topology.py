"""Exchanges, queues and bindings as values, and the ones that RPC stands on.

The arguments of a queue can never be changed on an existing one (RabbitMQ refuses with 406), so the defaults here are
final.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Binding", "Exchange", "Names", "Queue", "split_method"]

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
            exclusive=True,
            auto_delete=True,
            arguments={"x-queue-type": "classic"},
        )


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
