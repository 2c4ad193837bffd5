"""What clients must have in common to share a router."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..deadline import check_timeout
from ..protocol.outofband import OutOfBandLimits
from ..protocol.topology import Names

__all__ = ["ReplyQueueMode", "RouterOptions"]

ReplyQueueMode = Literal["exclusive", "durable", "direct"]
"""What answers come through: a queue that goes with its connection, one that outlives the client and belongs to its
identity, or RabbitMQ's pseudo-queue for direct replies."""


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What clients must have in common to share a router. The URLs have passwords.

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    urls: tuple[str, ...] = field(repr=False)
    names: Names
    max_size: int
    out_of_band: OutOfBandLimits
    reply_queue: ReplyQueueMode = "exclusive"
    identity: str | None = None
    reply_queue_ttl: float = 86_400.0

    def __post_init__(self) -> None:
        if self.reply_queue not in get_args(ReplyQueueMode):
            raise ValueError(f"reply_queue: {self.reply_queue!r} is none of {', '.join(get_args(ReplyQueueMode))}")
        if self.reply_queue_ttl is None or not check_timeout(self.reply_queue_ttl, "reply_queue_ttl"):
            raise ValueError(f"reply_queue_ttl: {self.reply_queue_ttl!r} is not a number of seconds above 0")
        if self.reply_queue == "durable":
            if self.identity is None:
                raise ValueError("identity: a durable reply queue needs one")
            self.names.durable_reply_queue(self.identity, self.reply_queue_ttl)
        elif self.identity is not None:
            raise ValueError(f"identity: a reply queue that is {self.reply_queue} belongs to none")
