"""A consumer of a lane: who gets its deliveries, and who is told when the broker ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum

from ...errors import RPCError
from ..base import Delivery

__all__ = ["Consumer", "Standing"]

logger = logging.getLogger("aiorpcq.amqp")


class Standing(Enum):
    """How a consumer stands with the broker."""

    ASKED = "asked"
    """The broker has not answered yet."""
    CONSUMING = "consuming"
    ENDED = "ended"
    """The broker ended it, and its owner is to be told."""
    UNWANTED = "unwanted"
    """Its owner cancelled it, or was told that it has ended."""


class Consumer:
    """A consumer of a lane."""

    __slots__ = ("cancelled", "no_ack", "on_cancelled", "on_delivery", "standing", "tag")

    def __init__(
        self,
        tag: str,
        on_delivery: Callable[[Delivery], None],
        no_ack: bool,
        on_cancelled: Callable[[RPCError], None] | None,
    ) -> None:
        self.tag = tag
        self.on_delivery = on_delivery
        self.no_ack = no_ack
        self.on_cancelled = on_cancelled
        self.standing = Standing.ASKED
        self.cancelled: asyncio.Future[None] | None = None

    def tell(self, error: RPCError) -> None:
        """Tell its owner that it has ended, unless it does not want it any more."""
        if self.standing is Standing.UNWANTED or self.on_cancelled is None:
            return
        self.standing = Standing.UNWANTED
        try:
            self.on_cancelled(error)
        except Exception:
            logger.exception("a handler of a cancelled consumer failed")
