"""Brokers and links that break, and the invariants that hold at the end of every fault test."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from aiorpcq import Client, Service, UsageError, Worker
from aiorpcq.transports.memory import memory_broker
from tests.contract.conftest import bystander, overview, patient_returns
from tests.contract.parties import PATIENCE, ClientFactory, WorkerFactory
from tests.node import Node
from tests.proxy import Proxy

from .breaking import Breaker, MemoryBreaker, NodeBreaker
from .ledger import Ledger
from .link import BreakableLink, MemoryLinks, ProxiedLink, Side
from .processes import Journal, WorkerProcess

__all__ = ["ProcessFactory", "bystander", "overview", "patient_returns"]

_MEMORY = "memory://"

_BROKER_PATIENCE = 60.0
"""Seconds that a broker gets to end what the test has closed.

A channel of RabbitMQ 3.10 that published to a quorum queue as that was deleted may take five for each such queue.
"""


class ProcessFactory(Protocol):
    def __call__(self, name: str, **options: Any) -> Awaitable[WorkerProcess]: ...


@pytest.fixture(params=["memory", "amqp"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a broker that no other test sees; with `marks.amqp_only` never in memory."""
    if request.param == "memory":
        return f"{_MEMORY}{uuid4().hex}"
    address: str = request.getfixturevalue("broker_url")
    return address


@pytest.fixture
async def breaker(url: str, request: pytest.FixtureRequest) -> AsyncIterator[Breaker]:
    """Breaks the broker at `url`; an alarm that it raised is cleared in the end."""
    breaking: Breaker
    if url.startswith(_MEMORY):
        breaking = MemoryBreaker(memory_broker(url.removeprefix(_MEMORY)))
    else:
        node: Node = request.getfixturevalue("node")
        breaking = NodeBreaker(node, request.getfixturevalue("vhost"))
    yield breaking
    await breaking.set_alarm(False)


@pytest.fixture
async def opened(breaker: Breaker) -> AsyncIterator[AsyncExitStack]:
    """What the factories opened, closed in reverse order; neither connection nor reply queue is left of it."""
    async with AsyncExitStack() as stack:
        yield stack
    async with asyncio.timeout(_BROKER_PATIENCE):
        while await breaker.leftovers():  # noqa: ASYNC110 - the broker notices the end of a connection in its own time
            await asyncio.sleep(0.01)


@pytest.fixture
async def client(url: str, opened: AsyncExitStack) -> AsyncIterator[ClientFactory]:
    """Opens clients of `url`, or of the URL that is given; none may have a pending call in the end."""
    clients: list[Client] = []

    async def open_client(**options: Any) -> Client:
        clients.append(await opened.enter_async_context(Client(options.pop("url", url), **options)))
        return clients[-1]

    yield open_client
    for number, caller in enumerate(clients):
        try:
            pending = caller.statistics().pending
        except UsageError:
            continue  # the test closed it
        assert pending == 0, f"client {number} has {pending} pending calls"


@pytest.fixture
async def worker(url: str, opened: AsyncExitStack) -> AsyncIterator[WorkerFactory]:
    """Starts workers on `url`, or on the URL that is given; none may run or owe anything in the end."""
    workers: list[Worker] = []

    async def start_worker(*services: Service, **options: Any) -> Worker:
        address = options.pop("url", url)
        workers.append(await opened.enter_async_context(Worker(address, services, **{"grace": 1.0, **options})))
        return workers[-1]

    yield start_worker
    async with asyncio.timeout(PATIENCE):
        for serving in workers:
            while serving.statistics().running or serving.statistics().publisher.unconfirmed:  # noqa: ASYNC110 - its confirm
                await asyncio.sleep(0.001)


@pytest.fixture
async def ledger(client: ClientFactory) -> AsyncIterator[Ledger]:
    """Makes calls; in the end each is settled, once, by a value or an error of the library."""
    book = Ledger()
    yield book
    breaches = book.breaches()
    assert not breaches, "\n".join(breaches)


@pytest.fixture(autouse=True)
async def nothing_unnoticed(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Fail a test in which the event loop or the library had to report what nobody caught."""
    loop = asyncio.get_running_loop()
    problems: list[str] = []
    loop.set_exception_handler(
        lambda _, context: problems.append(f"{context['message']}: {context.get('exception')!r}")
    )
    yield
    loop.set_exception_handler(None)
    for when in ("setup", "call"):
        for record in caplog.get_records(when):
            if record.name.startswith("aiorpcq") and record.levelno >= logging.ERROR:
                problems.append(f"{record.name}: {record.getMessage()}")
    assert not problems, "\n".join(problems)


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[Proxy]:
    """A link to `node` that can be broken: give `proxy.url(url)` to a client or worker."""
    async with Proxy(node.port) as link:
        yield link


def breakable_link(url: str, side: Side, request: pytest.FixtureRequest) -> BreakableLink:
    """Return the link that the test breaks: give its `url` to the one side, and `url` to the other."""
    if url.startswith(_MEMORY):
        return MemoryLinks(memory_broker(url.removeprefix(_MEMORY)), url, side)
    return ProxiedLink(request.getfixturevalue("proxy"), url)


@pytest.fixture
def client_link(url: str, request: pytest.FixtureRequest) -> BreakableLink:
    """The client's link to the broker."""
    return breakable_link(url, "client", request)


@pytest.fixture
def worker_link(url: str, request: pytest.FixtureRequest) -> BreakableLink:
    """The worker's link to the broker."""
    return breakable_link(url, "worker", request)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """What the test's worker processes ran."""
    return Journal(tmp_path / "journal")


@pytest.fixture
async def worker_process(url: str, journal: Journal, opened: AsyncExitStack) -> ProcessFactory:
    """Starts worker processes on `url`, or on the URL that is given, and ends them."""

    async def start(name: str, **options: Any) -> WorkerProcess:
        started = await WorkerProcess.start(options.pop("url", url), journal, name=name, **options)
        return await opened.enter_async_context(started)

    return start
