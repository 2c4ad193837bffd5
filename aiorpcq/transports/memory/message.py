"""A message inside the broker: what a publication becomes, and what dead-lettering makes of it.

Properties are treated as frozen by everyone: publisher, broker and consumers may hold the same object. Headers are the
exception that publishers do mutate, so they are copied when published, and copied again for every further queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...protocol.messages import Properties, Publication

__all__ = ["Message", "dead_letter", "is_cycle"]

_ROUTING_HEADERS = ("CC", "BCC")
_EXPIRATION_LIMIT = 2**32 - 1  # milliseconds; the largest timer of Erlang, RabbitMQ's own limit
_SHORT_STRING_LIMIT = 255  # AMQP 0-9-1, section 4.2.5.3
_OCTET_LIMIT = 255
_PERSISTENT = 2  # delivery mode (AMQP 0-9-1, section 4.2.6.1 and the XML's "basic" class)


class Message:
    """A message as one queue keeps it; every queue has its own.

    *keys* are all the routing keys, the CC and BCC ones included, or None where *routing_key* is the only one.
    *deliveries* counts how often it was given back. A plain slotted class: one is made for every publication.
    """

    __slots__ = (
        "body",
        "deliveries",
        "exchange",
        "expires_at",
        "keys",
        "properties",
        "redelivered",
        "routing_key",
        "sequence",
    )

    def __init__(
        self, properties: Properties, body: bytes, exchange: str, routing_key: str, keys: tuple[str, ...] | None = None
    ) -> None:
        self.properties = properties
        self.body = body
        self.exchange = exchange
        self.routing_key = routing_key
        self.keys = keys
        self.sequence = 0
        self.expires_at: float | None = None
        self.redelivered = False
        self.deliveries = 0

    @classmethod
    def of(cls, publication: Publication) -> Message:
        """Take what *publication* says now; its publisher may change its headers afterwards.

        Raises:
            ValueError: a property does not fit its field.
        """
        properties = publication.properties
        _check(publication, properties)
        headers = properties.headers
        keys = None
        if headers is not None:
            keys, headers = _split_routing_headers(publication.routing_key, _copy_table(headers))
            properties = _replaced(properties, headers, properties.expiration)
        return cls(
            properties,
            publication.body,
            publication.exchange,
            publication.routing_key,
            keys,
        )

    @property
    def is_persistent(self) -> bool:
        """Whether it survives a restart of the broker in a durable queue."""
        return self.properties.delivery_mode == _PERSISTENT

    def reply_to(self, queue: str) -> None:
        """Replace the queue that its reply is to go to."""
        properties = self.properties
        self.properties = _replaced(properties, properties.headers, properties.expiration)
        self.properties.reply_to = queue

    def copy(self) -> Message:
        """Return the same message for another queue, with headers of its own."""
        properties = self.properties
        if properties.headers is not None:
            properties = _replaced(properties, _copy_table(properties.headers), properties.expiration)
        return Message(properties, self.body, self.exchange, self.routing_key, self.keys)

    def with_delivery_count(self) -> Properties:
        """Return the properties with the header that a quorum queue adds when it delivers again."""
        properties = self.properties
        headers = {**(properties.headers or {}), "x-delivery-count": self.deliveries}
        return _replaced(properties, headers, properties.expiration)


def dead_letter(
    message: Message, reason: str, queue: str, *, exchange: str, routing_key: str | None, time: datetime
) -> Message:
    """Return what *message* becomes when it leaves *queue* for the dead-letter exchange *exchange*.

    Without a dead-letter routing key it keeps all of its keys, the CC and BCC ones too; with one it loses its CC
    header. Entries of x-death are as RabbitMQ 3.10 writes them (seen on the wire): the newest first, one for each pair
    of queue and reason.
    """
    properties = message.properties
    headers: dict[str, Any] = dict(properties.headers) if properties.headers is not None else {}
    copied = headers.get("CC")
    routing_keys = [message.routing_key, *(key for key in copied or () if isinstance(key, str))]
    deaths = headers.get("x-death")
    if not isinstance(deaths, list):
        deaths = []
        headers.update({"x-first-death-reason": reason, "x-first-death-queue": queue})
        headers["x-first-death-exchange"] = message.exchange
    entry: dict[str, Any] = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": time,
        "exchange": message.exchange,
        "routing-keys": routing_keys,
    }
    if properties.expiration is not None:
        entry["original-expiration"] = str(properties.expiration)
    others = []
    for death in deaths:
        if isinstance(death, Mapping) and death.get("queue") == queue and death.get("reason") == reason:
            entry = {**death, "count": death.get("count", 0) + 1}
        else:
            others.append(death)
    headers["x-death"] = [entry, *others]
    keys = message.keys
    if routing_key is None:
        routing_key = message.routing_key
    else:
        headers.pop("CC", None)
        keys = None
    return Message(_replaced(properties, headers, None), message.body, exchange, routing_key, keys)


def is_cycle(message: Message, queue: str) -> bool:
    """Tell whether *message* has died in *queue* before and nobody has rejected it since (RabbitMQ drops it then)."""
    headers = message.properties.headers
    for death in headers["x-death"] if headers else ():
        if isinstance(death, Mapping):
            if death.get("reason") == "rejected":
                return False
            if death.get("queue") == queue:
                return True
    return False


def _check(publication: Publication, properties: Properties) -> None:
    expiration = properties.expiration
    if expiration is not None and not 0 <= expiration <= _EXPIRATION_LIMIT:
        raise ValueError(f"expiration: {expiration} is not between 0 and {_EXPIRATION_LIMIT} milliseconds")
    priority = properties.priority
    if priority is not None and not 0 <= priority <= _OCTET_LIMIT:
        raise ValueError(f"priority: {priority} is not between 0 and {_OCTET_LIMIT}")
    for text in (
        publication.routing_key,
        properties.correlation_id,
        properties.reply_to,
        properties.type,
        properties.message_id,
    ):
        if text is not None and len(text) * 4 > _SHORT_STRING_LIMIT and len(text.encode()) > _SHORT_STRING_LIMIT:
            raise ValueError(f"{text[:40]!r}... is longer than {_SHORT_STRING_LIMIT} bytes")


def _split_routing_headers(routing_key: str, headers: dict[str, Any]) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """Return all routing keys of a message, and its headers without BCC."""
    keys: list[str] | None = None
    for name in _ROUTING_HEADERS:
        if name in headers:
            value = headers[name]
            if not isinstance(value, list):
                raise ValueError(f"header {name}: {type(value).__name__} is not a list of routing keys")
            keys = keys or [routing_key]
            keys.extend(key for key in value if isinstance(key, str))
    if keys is None:
        return None, headers
    headers.pop("BCC", None)
    return tuple(keys), headers


def _copy_table(table: Mapping[str, Any]) -> dict[str, Any]:
    copy = dict(table)
    for name, value in copy.items():
        if isinstance(value, list | tuple | Mapping):
            copy[name] = _copy_value(value)
    return copy


def _copy_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_copy_value(item) for item in value]
    if isinstance(value, Mapping):
        return _copy_table(value)
    return value


def _replaced(properties: Properties, headers: Mapping[str, Any] | None, expiration: int | None) -> Properties:
    return Properties(
        properties.content_type,
        properties.content_encoding,
        headers,
        properties.delivery_mode,
        properties.priority,
        properties.correlation_id,
        properties.reply_to,
        expiration,
        properties.message_id,
        properties.timestamp,
        properties.type,
        properties.user_id,
        properties.app_id,
    )
