"""What goes through the broker in these tests: a clock, links, publications and an inbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Queue
from aiorpcq.transports.base import Delivery, Link
from aiorpcq.transports.memory import MemoryBroker, MemoryLink, MemoryTransport

CONFIRMED, RETURNED, REFUSED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REFUSED, Outcome.LOST
DEAD = Queue("dead")


class Clock:
    """Time that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Inbox:
    """Keeps deliveries, and lets a test wait for them."""

    def __init__(self, then: Callable[[Delivery], None] | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self._then = then
        self._changed = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._changed.set()
        if self._then is not None:
            self._then(delivery)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    async def wait(self, count: int = 1) -> list[Delivery]:
        async with asyncio.timeout(2):
            while len(self.deliveries) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.deliveries

    async def one(self) -> Delivery:
        return (await self.wait())[0]


@asynccontextmanager
async def connected(broker: MemoryBroker, **options: Any) -> AsyncIterator[MemoryLink]:
    link = await MemoryTransport(f"memory://{broker.name}", **options).connect(1)
    try:
        yield link
    finally:
        await link.close()


async def idle() -> None:
    """Give the broker more iterations of the loop than anything it does takes."""
    for _ in range(20):
        await asyncio.sleep(0)


def publish(
    link: Link, routing_key: str, body: bytes = b"", exchange: str = "", mandatory: bool = True, **properties: Any
) -> asyncio.Future[Outcome]:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settled(_publication: Publication, result: Outcome) -> None:
        outcome.set_result(result)

    link.publish(Publication(exchange, routing_key, Properties(**properties), body, mandatory, settled))
    return outcome


async def publish_all(link: Link, routing_key: str, *bodies: bytes, **options: Any) -> list[Outcome]:
    return list(await asyncio.gather(*(publish(link, routing_key, body, **options) for body in bodies)))


async def read(link: Link, queue: str) -> list[Delivery]:
    """Take everything that is ready."""
    inbox = Inbox()
    subscription = await link.consume(queue, inbox, no_ack=True)
    await idle()
    await subscription.cancel()
    return inbox.deliveries


async def bodies(link: Link, queue: str) -> list[bytes]:
    return [delivery.body for delivery in await read(link, queue)]


def dead_lettering(name: str = "work", **arguments: Any) -> Queue:
    """A queue whose dead letters go to the queue "dead"."""
    named = {argument.replace("_", "-"): value for argument, value in arguments.items()}
    return Queue(name, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", **named})


def headers_of(delivery: Delivery) -> dict[str, Any]:
    return dict(delivery.properties.headers or {})
