"""ReplyConsumer: declares and consumes the reply queue of a router, and consumes it again if the broker ends that."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from ..errors import ConnectFailed, ConnectionLost, RPCError
from ..protocol.topology import Queue
from ..transports.base import Delivery, Link
from .options import RouterOptions

__all__ = ["ReplyConsumer"]

logger = logging.getLogger("aiorpcq.client")

_SECRET_BYTES: Final = 16
_DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
"""Not a queue: the broker replaces it by a name that leads to the channel (RabbitMQ, "Direct Reply-to")."""

_DURABLE_PREFETCH: Final = 1_000


class ReplyConsumer:
    """The consuming end of the reply queue, in the mode that was asked for.

    An exclusive queue has a fresh, unguessable name for each connection and goes with it, and so does what it holds:
    it is consumed without acknowledgements. A durable one stays; what comes through it is acknowledged when
    *on_reply* has handled it. *on_gap* is called where answers may have been lost with the channel they came over,
    *on_useless* where the queue is gone while the connection stands.

    Attributes:
        name: what requests say in `reply_to`.
        origin: what calls can be claimed by once the connection is lost; None where they cannot.
        is_consumed: whether answers come in.
    """

    def __init__(
        self,
        options: RouterOptions,
        router_id: str,
        on_reply: Callable[[Delivery], None],
        on_gap: Callable[[RPCError], None],
        on_useless: Callable[[RPCError], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._options = options
        self._router_id = router_id
        self._on_reply = on_reply
        self._on_gap = on_gap
        self._on_useless = on_useless
        self._loop = loop
        self._link: Link | None = None
        self._consuming: set[asyncio.Task[None]] = set()
        self.name = ""
        self.origin: str | None = None
        self.is_consumed = False

    async def open(self, link: Link, generation: int) -> None:
        """Declare what requests need, and consume the reply queue of a new connection.

        Raises:
            ConnectFailed: something is refused; for a durable queue, by another client of that identity perhaps.
            TopologyMismatch: something exists with other properties.
            ConnectionLost: the link was lost meanwhile.
        """
        names, queue = self._options.names, self._queue(generation)
        await link.declare(names.requests, names.control, *(() if queue is None else (queue,)))
        self.name = _DIRECT_REPLY_TO if queue is None else queue.name
        self.origin = None if queue is None else queue.name
        self._link = link
        await self._consume(link)

    def lost(self) -> None:
        """Take in that the link is lost."""
        self._link = None
        self.is_consumed = False

    async def close(self) -> None:
        """Stop consuming again."""
        self.lost()
        for task in self._consuming:
            task.cancel()
        await asyncio.gather(*self._consuming, return_exceptions=True)

    def _queue(self, generation: int) -> Queue | None:
        options = self._options
        if options.reply_queue == "direct":
            return None
        if options.reply_queue == "durable":
            assert options.identity is not None
            return options.names.durable_reply_queue(options.identity, options.reply_queue_ttl)
        return options.names.reply_queue(self._router_id[:8], generation, secrets.token_hex(_SECRET_BYTES))

    async def _consume(self, link: Link) -> None:
        def on_cancelled(error: RPCError) -> None:
            self._on_cancelled(link, error)

        mode = self._options.reply_queue
        if mode != "durable":
            await link.consume(
                self.name, self._on_reply, no_ack=True, exclusive=mode == "exclusive", on_cancelled=on_cancelled
            )
        else:
            try:
                await link.consume(
                    self.name,
                    self._on_durable_reply,
                    prefetch=_DURABLE_PREFETCH,
                    exclusive=True,
                    on_cancelled=on_cancelled,
                )
            except ConnectFailed as error:
                text = f"identity {self._options.identity!r} is in use, or its reply queue {self.name!r} cannot be read"
                raise ConnectFailed(f"{text}: {error}") from error
        self.is_consumed = True

    def _on_durable_reply(self, delivery: Delivery) -> None:
        try:
            self._on_reply(delivery)
        finally:
            delivery.ack()

    def _on_cancelled(self, link: Link, error: RPCError) -> None:
        """Consume the same queue again, where it is still there: its messages are."""
        if link is not self._link:
            return
        self.is_consumed = False
        if self._options.reply_queue == "direct":
            self._on_useless(error)  # answers under way were for the channel that is gone
            return
        logger.warning("the reply queue is no longer consumed: %s", error)
        if self._options.reply_queue == "exclusive":
            self._on_gap(error)  # the broker forgets what it delivers here before it is written to the socket
        task = self._loop.create_task(self._consume_again(link), name="aiorpcq client consume")
        self._consuming.add(task)
        task.add_done_callback(self._consuming.discard)

    async def _consume_again(self, link: Link) -> None:
        try:
            await self._consume(link)
        except ConnectionLost:
            return  # the next connection has a reply queue of its own
        except RPCError as error:
            if link is self._link:
                self._on_useless(error)
