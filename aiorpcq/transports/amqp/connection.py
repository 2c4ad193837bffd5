"""Links to RabbitMQ: one connection with a lane channel for messages and a control channel for declarations.

`aio_pika.Connection` knows URLs and TLS and how to shake hands; aiormq keeps what it opened. The transport factory that
is put under it gives the connection our own protocol (`lane.LaneProtocol`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.connection import TransportFactory
from aiormq.exceptions import (
    AMQPConnectionError,
    AuthenticationError,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)
from yarl import URL

from ...errors import ConnectFailed, ConnectionLost, RPCError
from ...protocol.messages import Publication
from ...protocol.topology import Binding, Exchange, Queue
from ..base import Delivery
from .lane import Lane
from .stream import LaneProtocol
from .topology import declare_entity, describe, refusal

__all__ = ["AMQPLink", "AMQPTransport"]

# What aiormq has to say about a failed or lost connection we raise or log ourselves; where a program has not configured
# logging, it must not appear on stderr beside that.
logging.getLogger("aiormq").addHandler(logging.NullHandler())

_HEARTBEAT: Final = 10
"""Seconds; a dead link is noticed within two of them."""

_DEFAULT_FRAME_MAX: Final = 131_072
_OPERATION_TIMEOUT: Final = 15.0
_CLOSE_TIMEOUT: Final = 3.0
_LOST_GRACE: Final = 0.5


class _LaneFactory(TransportFactory):
    """Opens the socket with a `LaneProtocol` on it, and gives aiormq a reader and writer as it expects them."""

    def __init__(self, make_protocol: Callable[[asyncio.StreamReader], LaneProtocol]) -> None:
        self._make_protocol = make_protocol
        self.protocol: LaneProtocol | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to *url*; called by aiormq."""
        loop = asyncio.get_running_loop()
        provider = kwargs.pop("ssl_context_provider", None)
        context = await provider.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        protocol = self.protocol = self._make_protocol(reader)
        if url.host is None or url.port is None:
            raise AMQPConnectionError("the URL names no host")
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, host=url.host, port=url.port, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Subscription:
    def __init__(self, lane: Lane, tag: str) -> None:
        self._lane = lane
        self._tag = tag

    async def cancel(self) -> None:
        await self._lane.cancel_consumer(self._tag)


class AMQPLink:
    """See `Link`. `AMQPTransport.connect` makes it."""

    def __init__(self, address: str, max_size: int) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[RPCError] = self._loop.create_future()
        self.writable = False
        self.publish: Callable[[Publication], None] = _not_open
        self._writable_waiters: dict[asyncio.Future[None], None] = {}  # in the order they came
        self._max_size = max_size
        self._connection: aio_pika.Connection | None = None
        self._protocol: LaneProtocol | None = None
        self._lane_channel: AbstractChannel | None = None
        self._control: AbstractChannel | None = None
        self._consumer_tags = count(1)
        self._operations: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def open(self, url: URL, client_name: str) -> None:
        """Connect, open both channels, take over the lane's."""
        factory = _LaneFactory(self._make_protocol)
        connection = aio_pika.Connection(url, client_properties={"connection_name": client_name})
        connection.kwargs["transport_factory"] = factory
        self._connection = connection
        await connection.connect()
        assert connection.transport is not None
        assert factory.protocol is not None
        under = connection.transport.connection
        protocol = factory.protocol
        tune = under.connection_tune
        protocol.negotiated(tune.frame_max or _DEFAULT_FRAME_MAX, tune.heartbeat or 0)
        self._lane_channel = await under.channel(publisher_confirms=True)
        await self._open_control()
        self._lane = protocol.open_lane(self._lane_channel.number)
        self.publish = self._lane.publish  # directly: this is called for every message
        self._set_writable(not protocol.blocked)

    def _make_protocol(self, reader: asyncio.StreamReader) -> LaneProtocol:
        # Kept from its beginning: whatever interrupts the opening has to close the socket that there may be by then.
        self._protocol = LaneProtocol(reader, self._loop, self._max_size, self._on_lost, self._set_writable)
        return self._protocol

    async def wait_writable(self) -> None:
        """See `Link`."""
        while not self.writable and not self.lost.done():
            waiter = self._loop.create_future()
            self._writable_waiters[waiter] = None
            try:
                await waiter
            finally:
                self._writable_waiters.pop(waiter, None)

    async def declare(self, *entities: Exchange | Queue | Binding) -> None:
        """See `Link`."""
        for entity in entities:
            if self._control is None:
                await self._operate(self._open_control(), "the channel for declarations")
            control = self._control
            assert control is not None
            try:
                await self._operate(declare_entity(control, entity), describe(entity))
            except ConnectFailed:
                if self._control is control:
                    self._control = None  # the broker closes the channel of what it refuses
                raise

    async def _open_control(self) -> None:
        assert self._connection is not None
        assert self._connection.transport is not None
        self._control = await self._connection.transport.connection.channel(publisher_confirms=False)

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        prefetch: int = 0,
        no_ack: bool = False,
        exclusive: bool = False,
    ) -> _Subscription:
        """See `Link`."""
        channel, tag = self._lane_channel, f"aiorpcq.{next(self._consumer_tags)}"
        assert channel is not None
        self._lane.add_consumer(tag, on_delivery, no_ack=no_ack)
        subject = f"queue {queue!r}"
        if prefetch:
            await self._operate(channel.basic_qos(prefetch_count=prefetch), subject)
        await self._operate(
            channel.basic_consume(queue, _never_called, no_ack=no_ack, exclusive=exclusive, consumer_tag=tag), subject
        )
        return _Subscription(self._lane, tag)

    async def close(self) -> None:
        """See `Link`."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        protocol, connection = self._protocol, self._connection
        closed = ConnectionLost("the link was closed")
        if connection is not None:
            # aio-pika's close goes on waiting when it is cancelled; what ends it is the end of the socket.
            closing = self._loop.create_task(connection.close())
            closing.add_done_callback(_retrieve)
            await asyncio.wait((closing,), timeout=_CLOSE_TIMEOUT)
            if protocol is not None:
                protocol.fail(closed)
            if not closing.done():
                await asyncio.wait((closing,), timeout=_CLOSE_TIMEOUT)
                closing.cancel()
        self._on_lost(closed)
        for operation in list(self._operations):
            operation.cancel()
        await asyncio.gather(*self._operations, return_exceptions=True)

    async def _operate(self, operation: Coroutine[Any, Any, Any], subject: str) -> None:
        """Run a call of aiormq to its end, whatever becomes of the caller.

        Cancelling or timing out such a call closes its channel, so it runs in a task of its own, bounded in time and
        ended by the loss of the link.
        """
        task = self._loop.create_task(operation)
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)
        task.add_done_callback(_retrieve)
        await asyncio.wait((task, self.lost), timeout=_OPERATION_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and self.lost.done():
            # The lane saw the broker's refusal first; aiormq, which knows whose it is, has it in its reader.
            await asyncio.wait((task,), timeout=_LOST_GRACE)
        if task.done():
            cause = ConnectionError("cancelled") if task.cancelled() else task.exception()
            if cause is not None:
                raise refusal(cause, subject) from cause
        elif self.lost.done():
            task.cancel()
            raise ConnectionLost(f"the connection was lost at {subject}: {self.lost.result()}")
        else:
            error = ConnectionLost(f"the broker did not answer about {subject} within {_OPERATION_TIMEOUT:g} s")
            if self._protocol is not None:
                self._protocol.fail(error)
            raise error

    def _on_lost(self, error: RPCError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        self._set_writable(False)
        self._wake_writers()

    def _set_writable(self, writable: bool) -> None:
        self.writable = writable and not self.lost.done()
        if self.writable:
            self._wake_writers()

    def _wake_writers(self) -> None:
        for waiter in self._writable_waiters:
            if not waiter.done():
                waiter.set_result(None)


class AMQPTransport:
    """See `Transport`. *url* is `amqp://` or `amqps://`, with aiormq's query parameters for TLS and heartbeat.

    Raises:
        ValueError: *url* cannot be read.
    """

    def __init__(self, url: str, *, max_size: int, name: str) -> None:
        try:
            parsed = URL(url)
            port = parsed.port
        except ValueError as error:
            raise ValueError(f"url: {type(error).__name__} in the broker's URL") from None
        if parsed.scheme not in ("amqp", "amqps") or not parsed.host:
            raise ValueError("url: not of the form amqp://user:password@host:port/vhost")
        if "heartbeat" not in parsed.query:
            parsed = parsed.update_query(heartbeat=_HEARTBEAT)
        self._url = parsed
        self._max_size = max_size
        self._name = name
        default = 5671 if parsed.scheme == "amqps" else 5672
        self.address = f"{parsed.scheme}://{parsed.host}:{port or default}/{parsed.path.lstrip('/')}"

    async def connect(self, timeout: float) -> AMQPLink:
        """See `Transport`."""
        link = AMQPLink(self.address, self._max_size)
        try:
            async with asyncio.timeout(timeout):
                await link.open(self._url, self._name)
        except BaseException as error:
            reason = link.lost.result() if link.lost.done() else None
            await link.close()
            if isinstance(error, Exception):
                raise self._explain(error, reason, timeout) from None
            raise
        return link

    def _explain(self, error: Exception, reason: RPCError | None, timeout: float) -> ConnectFailed:
        """Say what is wrong, from an error whose own text may hold the URL.

        *reason* is why the link was lost: aiormq does not tell what the broker said when it refused a vhost.
        """
        where = self.address
        if isinstance(error, ConnectFailed):
            return error
        if isinstance(error, (ProbableAuthenticationError, AuthenticationError)):
            return ConnectFailed(f"{where} refused the user name or password of {self._url.user or 'guest'!r}")
        if isinstance(error, TimeoutError):
            return ConnectFailed(f"{where} did not answer within {timeout:g} s")
        if isinstance(error, IncompatibleProtocolError):
            return ConnectFailed(f"{where} does not speak AMQP 0-9-1")
        if reason is not None:
            return ConnectFailed(f"{where} cannot be opened: {reason}")
        return ConnectFailed(f"{where} cannot be reached: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    text = " ".join(str(argument) for argument in error.args) or type(error).__name__
    return text.partition("\n")[0][:200]


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _not_open(publication: Publication) -> None:
    raise ConnectionLost("the link is not open")


async def _never_called(message: DeliveredMessage) -> None:
    """Stand in for a consumer: aiormq wants one, and never sees a delivery of a lane channel."""
    raise AssertionError("a delivery passed the lane by")
