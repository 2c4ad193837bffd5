"""Links of both transports, and what a test needs to break them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aio_pika
import pytest

from aiorpcq.errors import RPCError
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.transports.base import Delivery, Link, Transport
from aiorpcq.transports.memory import MemoryTransport
from aiorpcq.transports.registry import make_transport

_NUMBERS = itertools.count(1)
_MAX_SIZE = 1 << 20
WAIT = 10.0


class Bench:
    """A broker at *url*: links to it, what goes over them, and what an operator does behind them."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.transport: Transport = make_transport(url, max_size=_MAX_SIZE, name="tests")
        self._url = url
        self._stack = stack

    async def connect(self) -> Link:
        """A link that is closed with the test."""
        link = await self.transport.connect(WAIT)
        self._stack.push_async_callback(link.close)
        return link

    async def delete_queue(self, name: str) -> None:
        """Delete a queue behind everyone's back."""
        if isinstance(self.transport, MemoryTransport):
            self.transport.broker.delete_queue(name)
            return
        connection = await aio_pika.connect(self._url)
        async with connection:
            channel = await connection.channel()
            await channel.queue_delete(name)

    async def close_channel(self, link: Link) -> Outcome:
        """Make the broker close the channel of *link*; return what becomes of what made it."""
        return await asyncio.wait_for(publish(link, "k", exchange="no-such-exchange"), WAIT)


class Inbox:
    """Keeps what comes, and lets a test wait for it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = asyncio.Event()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._changed.set()

    async def wait(self, count: int = 1) -> list[Any]:
        async with asyncio.timeout(WAIT):
            while len(self.items) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.items


class Consuming:
    """A consumer on *queue* that consumes again whenever the broker ends it, as its owner should."""

    def __init__(self, link: Link, queue: str, *, then: Callable[[], Any] | None = None) -> None:
        self.inbox = Inbox()
        self.ended: list[RPCError] = []
        self._link = link
        self._queue = queue
        self._then = then
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        if self._then is not None:
            await self._then()
        await self._link.consume(self._queue, self.inbox, prefetch=10, on_cancelled=self._again)

    def _again(self, error: RPCError) -> None:
        self.ended.append(error)
        self._tasks.append(asyncio.ensure_future(self.start()))

    async def settle(self) -> None:
        await asyncio.gather(*self._tasks)

    async def bodies(self, count: int) -> list[bytes]:
        deliveries: list[Delivery] = await self.inbox.wait(count)
        return [delivery.body for delivery in deliveries]


def publish(
    link: Link, routing_key: str, body: bytes = b"", exchange: str = "", *, mandatory: bool = True, **properties: Any
) -> asyncio.Future[Outcome]:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settled(_publication: Publication, result: Outcome) -> None:
        outcome.set_result(result)

    link.publish(Publication(exchange, routing_key, Properties(**properties), body, mandatory, settled))
    return outcome


@pytest.fixture(params=["memory", "amqp"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    memory = request.param == "memory"
    url = f"memory://contract-{next(_NUMBERS)}" if memory else request.getfixturevalue("broker_url")
    async with AsyncExitStack() as stack:
        yield Bench(url, stack)


@pytest.fixture
async def link(bench: Bench) -> Link:
    return await bench.connect()
