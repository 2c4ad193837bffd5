"""What the broker needs of its links."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from ...errors import RPCError
from ...protocol.messages import Properties, Publication
from .message import Message
from .queue import Consumer

__all__ = ["BrokerLink"]


class BrokerLink(Protocol):
    """A link as its broker sees it, and as the predicates of `MemoryBroker`'s faults do.

    Nothing that its owner does reaches the broker while it *is_frozen*, and nothing of the broker's reaches its owner.
    """

    name: str
    max_size: int
    is_lost: bool
    is_frozen: bool
    is_reopening: bool
    is_posted: bool
    on_returned: Callable[[str, Properties], None] | None
    outbox: deque[tuple[Publication, Message]]
    consumers: dict[Consumer, None]

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues it consumes from."""

    def lose(self, reason: RPCError) -> None:
        """End the link; `lost` gets *reason*."""

    def end(self, consumer: Consumer, reason: RPCError) -> None:
        """Have *consumer* told that the broker ended it, or be lost where it cannot be told."""

    def close_channel(self, reason: RPCError) -> None:
        """Give up what is under way and every consumer, and go on with another channel."""

    def hold(self) -> None:
        """Be not writable."""

    def resume(self) -> None:
        """Be writable again."""
