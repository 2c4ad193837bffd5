"""ReplyConsumer: declares and consumes the reply queue of a router, and consumes it again if the broker ends that."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from ..errors import ConnectFailed, RPCError
from ..protocol.messages import Outcome, Properties, Publication
from ..protocol.topology import Queue
from ..transports.base import Delivery, Link
from .options import RouterOptions

__all__ = ["ReplyConsumer"]

logger = logging.getLogger("aiorpcq.client")

_SECRET_BYTES: Final = 16
_DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
"""Not a queue: the broker replaces it by a name that leads to the channel (RabbitMQ, "Direct Reply-to")."""

_DURABLE_PREFETCH: Final = 1_000

_PROBE_TIMEOUT: Final = 1.0
"""Seconds that the broker has to answer the probe; one that has run out of memory does not, and calls wait for it."""


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
        self._ended: asyncio.Future[RPCError] | None = None
        self.name = ""
        self.origin: str | None = None
        self.is_consumed = False

    async def open(self, link: Link, generation: int) -> None:
        """Declare what requests need, and consume the reply queue of a new connection.

        Raises:
            ConnectFailed: something is refused, to publish requests for instance; for a durable queue, by another
                client of that identity perhaps.
            TopologyMismatch: something exists with other properties.
            ConnectionLost: the link was lost meanwhile.
        """
        names, queue = self._options.names, self._queue(generation)
        await link.declare(names.requests, names.control, *(() if queue is None else (queue,)))
        self.name = _DIRECT_REPLY_TO if queue is None else queue.name
        self.origin = None if queue is None else queue.name
        self._link = link
        await self._consume(link)
        await self._probe(link)

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

    async def _probe(self, link: Link) -> None:
        """Publish a request that leads nowhere; raise where the broker does not let us publish requests.

        It would close the channel for each (RabbitMQ, "Access Control"), and calls would wait for their deadlines.
        After the consumer and not before, since a broker under an alarm hears nothing more once something is published.
        """
        if not link.writable:
            return
        exchange, outcome = self._options.names.requests.name, self._loop.create_future()

        def settled(_: Publication, told: Outcome) -> None:
            if not outcome.done():
                outcome.set_result(told)

        # Where an alternate exchange keeps what is unroutable, it does not keep this.
        routing_key, properties = f"probe.{secrets.token_hex(_SECRET_BYTES)}", Properties(expiration=0)
        ended = self._ended = self._loop.create_future()
        try:
            link.publish(Publication(exchange, routing_key, properties, b"", True, settled))
            await asyncio.wait((outcome, link.lost), timeout=_PROBE_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            is_closed = outcome.done() and outcome.result() is Outcome.LOST
            if is_closed:  # the consumer is told why, once there is another channel
                await asyncio.wait((ended, link.lost), timeout=_PROBE_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ended = None
        if link.lost.done():
            raise link.lost.result()
        if is_closed:
            reason = ended.result() if ended.done() else "the broker closed the channel"
            raise ConnectFailed(f"nothing can be published to exchange {exchange!r}: {reason}")
        if ended.done():
            raise ended.result()

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
        if self._ended is not None:
            if not self._ended.done():
                self._ended.set_result(error)
            return
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
        names = self._options.names
        try:
            # The channel may have been closed because an exchange was deleted.
            await link.declare(names.requests, names.control)
            await self._consume(link)
        except RPCError as error:  # where the link is lost, the next one has a reply queue of its own
            if link is self._link and not link.lost.done():
                self._on_useless(error)
