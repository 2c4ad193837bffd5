"""The two brokers that every contract test runs on, and factories that close what they have opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from aiorpcq import Client, Service, Worker, attempts, requests
from aiorpcq.router import recovery
from aiorpcq.transports.memory import memory_broker
from tests.node import Node

from .parties import PATIENCE, Bystander, BystanderFactory, ClientFactory, Overview, WorkerFactory


@pytest.fixture(params=["memory", "amqp"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a broker that no other test sees."""
    if request.param == "memory":
        return f"memory://{uuid4().hex}"
    address: str = request.getfixturevalue("broker_url")
    return address


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    """What the factories opened, closed in reverse order."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def client(url: str, opened: AsyncExitStack) -> ClientFactory:
    """Opens clients of `url`."""

    async def open_client(**options: Any) -> Client:
        return await opened.enter_async_context(Client(url, **options))

    return open_client


@pytest.fixture
def worker(url: str, opened: AsyncExitStack) -> WorkerFactory:
    """Starts workers on `url`; those that a failed test leaves at work are stopped after a second."""

    async def start_worker(*services: Service, **options: Any) -> Worker:
        return await opened.enter_async_context(Worker(url, services, **{"grace": 1.0, **options}))

    return start_worker


@pytest.fixture
def bystander(url: str, opened: AsyncExitStack) -> BystanderFactory:
    """Connects bystanders to `url`."""

    async def connect_bystander() -> Bystander:
        return await opened.enter_async_context(Bystander.connected(url))

    return connect_bystander


@pytest.fixture
def patient_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have callers wait `PATIENCE` for a request that expired to come back: 0.1 s is too short for a busy machine."""
    for module in (attempts, recovery, requests):
        monkeypatch.setattr(module, "RETURN_GRACE", PATIENCE)


@pytest.fixture
def overview(url: str, request: pytest.FixtureRequest) -> Overview:
    """The view of the broker at `url`; on amqp each look blocks for about a millisecond."""
    if url.startswith("memory://"):
        broker = memory_broker(url.removeprefix("memory://"))
        return Overview(lambda: broker.statistics().links, lambda queue: broker.statistics().queues[queue].consumers)
    node: Node = request.getfixturevalue("node")
    vhost: str = request.getfixturevalue("vhost")
    return Overview(lambda: node.connection_count(vhost), lambda queue: node.queues(vhost)[queue].consumers)
