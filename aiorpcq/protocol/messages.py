"""The messages of the protocol, and the envelope they travel in.

`Properties` and `Publication` are the AMQP 0-9-1 envelope (section 4.2.6.1 of the specification); `Request` and
`StateMessage` are what callers and workers say with it. They are made once or more for every call, so they are plain
slotted classes: a frozen dataclass takes four times as long to construct, measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

__all__ = ["PROPERTY_NAMES", "History", "Outcome", "Properties", "Publication", "Request", "StateMessage"]

# Where the classes below are compiled they have no `__slots__` to read their fields from.
PROPERTY_NAMES: Final = (
    "app_id",
    "content_encoding",
    "content_type",
    "correlation_id",
    "delivery_mode",
    "expiration",
    "headers",
    "message_id",
    "priority",
    "reply_to",
    "timestamp",
    "type",
    "user_id",
)
_REQUEST: Final = (
    "attempt",
    "body",
    "content_encoding",
    "content_type",
    "deadline",
    "expiration",
    "history",
    "metadata",
    "method",
    "parent_id",
    "priority",
    "reply_to",
    "root_id",
    "states",
    "task_id",
)
_STATE: Final = ("attempt", "body", "content_encoding", "content_type", "name", "sequence", "task_id", "worker_id")


class Outcome(Enum):
    """What became of a publication."""

    CONFIRMED = "confirmed"
    """The broker has taken responsibility for it."""
    RETURNED = "returned"
    """It was mandatory, and no queue is bound for its routing key."""
    REFUSED = "refused"
    """The broker answered with a nack: a queue is full, or something failed inside it."""
    LOST = "lost"
    """The link closed before any answer; the broker may have it or not."""


class Properties:
    """The basic properties of a message. *expiration* is in milliseconds; headers read by others stay in order."""

    __slots__ = PROPERTY_NAMES

    def __init__(
        self,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        delivery_mode: int | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expiration: int | None = None,
        message_id: str | None = None,
        timestamp: int | None = None,
        type: str | None = None,
        user_id: str | None = None,
        app_id: str | None = None,
    ) -> None:
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = headers
        self.delivery_mode = delivery_mode
        self.priority = priority
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self.expiration = expiration
        self.message_id = message_id
        self.timestamp = timestamp
        self.type = type
        self.user_id = user_id
        self.app_id = app_id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Properties):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in PROPERTY_NAMES)

    __hash__ = None  # type: ignore[assignment]  # equality by value, and the headers are a mapping

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name in PROPERTY_NAMES if (value := getattr(self, name)) is not None]
        return f"Properties({', '.join(given)})"


class Publication:
    """A message on its way to an exchange.

    *settled* is called once with the publication and its `Outcome`, in the event loop, after `publish` has returned;
    None where nobody waits for it.
    """

    __slots__ = ("body", "exchange", "mandatory", "properties", "routing_key", "settled")

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        properties: Properties,
        body: bytes,
        mandatory: bool = True,
        settled: Callable[[Publication, Outcome], None] | None = None,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.mandatory = mandatory
        self.settled = settled

    def __repr__(self) -> str:
        return f"Publication({self.exchange!r}, {self.routing_key!r}, {self.properties!r}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class History:
    """What happened to a request before it was published this time; most requests have none.

    Attributes:
        origin: the reply queue it was first sent with, where its caller has moved to another since. Whoever knows that
            name, which nobody can guess, is the caller.
        losses: runs of it that ended without an answer: their workers died.
        replay: id of the dead letter it was replayed from.
        republished: whether a worker published it, to hand it back, to have it wait, or to count a loss.
    """

    origin: str | None = None
    losses: int = 0
    replay: str | None = None
    republished: bool = False


class Request:
    """A call on its way to a worker.

    *deadline* is the wall clock's time in seconds, None for a call without one; *expiration* is what was left of it, in
    seconds, when the request was sent. *states* tells whether the caller wants the states before the terminal one.
    *reply_to* is None for a cast. *attempt* counts the runs, lost and retried ones alike. *history* is None for a
    request that was published once, and for a cast that its client sent again.
    """

    __slots__ = _REQUEST

    def __init__(
        self,
        task_id: str,
        method: str,
        body: bytes,
        content_type: str,
        content_encoding: str | None = None,
        reply_to: str | None = None,
        deadline: float | None = None,
        expiration: float | None = None,
        states: bool = False,
        attempt: int = 1,
        priority: int | None = None,
        parent_id: str | None = None,
        root_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        history: History | None = None,
    ) -> None:
        self.task_id = task_id
        self.method = method
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.reply_to = reply_to
        self.deadline = deadline
        self.expiration = expiration
        self.states = states
        self.attempt = attempt
        self.priority = priority
        self.parent_id = parent_id
        self.root_id = root_id
        self.metadata = metadata
        self.history = history

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _REQUEST)

    __hash__ = None  # type: ignore[assignment]  # equality by value, and the metadata are a mapping

    def __repr__(self) -> str:
        return f"Request({self.task_id!r}, {self.method!r}, attempt={self.attempt}, {len(self.body)} bytes)"


class StateMessage:
    """A state of a task on its way to the caller.

    *sequence* counts the states of one attempt from 1; 0 on a terminal state that no other state preceded.
    """

    __slots__ = _STATE

    def __init__(
        self,
        task_id: str,
        name: str,
        body: bytes,
        content_type: str,
        content_encoding: str | None = None,
        attempt: int = 1,
        sequence: int = 0,
        worker_id: str | None = None,
    ) -> None:
        self.task_id = task_id
        self.name = name
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.attempt = attempt
        self.sequence = sequence
        self.worker_id = worker_id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StateMessage):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _STATE)

    __hash__ = None  # type: ignore[assignment]  # mutable value, compared and never a key

    def __repr__(self) -> str:
        return f"StateMessage({self.task_id!r}, {self.name!r}, attempt={self.attempt}, {len(self.body)} bytes)"
