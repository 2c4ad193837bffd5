"""What the broker needs of its links."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ...errors import RPCError
from ...protocol.messages import Publication
from .message import Message
from .queue import Consumer

__all__ = ["BrokerLink"]


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
