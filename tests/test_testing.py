"""What users test their own services with."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from aiorpcq import Client, Service, Worker
from aiorpcq.testing import BrokerLink, BrokerStatistics, memory_broker


def doubling(started: asyncio.Event, go: asyncio.Event) -> Service:
    service = Service()

    @service.method
    async def double(number: int) -> int:
        started.set()
        await go.wait()
        return 2 * number

    return service


async def test_a_call_survives_a_dropped_connection_of_its_worker() -> None:
    name, started, go = uuid4().hex, asyncio.Event(), asyncio.Event()
    broker, url = memory_broker(name), f"memory://{name}"
    async with Worker(url, [doubling(started, go)]), Client(url) as client:
        call = asyncio.ensure_future(client.call("double", 21))
        await started.wait()
        assert broker.drop_links(is_worker) == 1
        go.set()
        assert await asyncio.wait_for(call, 10) == 42
    statistics: BrokerStatistics = broker.statistics()
    assert statistics.links == 0


def is_worker(link: BrokerLink) -> bool:
    assert ("rpc.default" in link.queues) is link.name.startswith("aiorpcq worker")
    return link.name.startswith("aiorpcq worker")
