"""What the loss of a connection means, on every broker: the next generation, and what was under way."""

from __future__ import annotations

import asyncio
from typing import Protocol

import pytest

from aiorpcq import Client, ConnectionLost, Service
from aiorpcq.transports.memory import BrokerLink, memory_broker
from tests.node import Node

from .parties import BystanderFactory, ClientFactory, Gate, Overview, WorkerFactory, calculator, eventually

_REPLY_QUEUES = "rpc.reply."


class Cut(Protocol):
    async def __call__(self) -> None: ...


@pytest.fixture
def cut_clients(url: str, request: pytest.FixtureRequest) -> Cut:
    """Takes the connection of every client away."""
    return _cut(url, request, "aiorpcq client")


@pytest.fixture
def cut_workers(url: str, request: pytest.FixtureRequest) -> Cut:
    """Takes the connection of every worker away."""
    return _cut(url, request, "aiorpcq worker")


def _cut(url: str, request: pytest.FixtureRequest, name: str) -> Cut:
    async def cut() -> None:
        if url.startswith("memory://"):
            broker = memory_broker(url.removeprefix("memory://"))
            assert broker.drop_links(lambda link: _is_client(link) is (name == "aiorpcq client"))
        else:
            node: Node = request.getfixturevalue("node")
            await asyncio.to_thread(node.close_connections, name=name)

    return cut


def _is_client(link: BrokerLink) -> bool:
    """Whether it has a reply queue; a worker has none, and none of any kind while it drains."""
    return any(queue.startswith(_REPLY_QUEUES) for queue in link.queues)


async def _next_generation(client: Client) -> None:
    await eventually(lambda: client.statistics().generation == 2)


async def test_a_client_that_lost_its_connection_calls_on_a_new_one(
    client: ClientFactory, worker: WorkerFactory, cut_clients: Cut
) -> None:
    await worker(calculator())
    caller = await client()
    assert await caller.call("add", 1, 2) == 3
    await cut_clients()
    await _next_generation(caller)
    assert await caller.call("add", 3, 4) == 7


async def test_each_connection_has_a_reply_queue_of_another_name(
    client: ClientFactory, bystander: BystanderFactory, cut_clients: Cut
) -> None:
    caller = await client()
    observer = await bystander()
    before = await observer.reply_queue_of(caller)
    await cut_clients()
    await _next_generation(caller)
    assert await observer.reply_queue_of(caller) != before


async def test_a_call_under_way_ends_at_once_and_may_have_run(
    client: ClientFactory, worker: WorkerFactory, cut_clients: Cut
) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait() -> None:
        await gate.wait()

    await worker(service)
    caller = await client(timeout=None)
    call = asyncio.create_task(caller.call("wait"))
    await gate.entered()
    await cut_clients()
    with pytest.raises(ConnectionLost) as caught:
        await call
    assert caught.value.maybe_executed
    assert caller.statistics().pending == 0
    gate.open()


async def test_a_call_made_while_the_connection_is_down_waits_for_the_next(
    client: ClientFactory, worker: WorkerFactory, cut_clients: Cut
) -> None:
    await worker(calculator())
    caller = await client()
    await cut_clients()
    # Whether the loss is noticed already or not: what is sent into it is lost, what waits is answered.
    outcomes: list[object] = await asyncio.gather(caller.call("add", 1, 2), return_exceptions=True)
    outcome = outcomes[0]
    assert outcome == 3 or (isinstance(outcome, ConnectionLost) and outcome.maybe_executed)
    assert await caller.call("add", 1, 2) == 3


async def test_a_worker_that_lost_its_connection_serves_on_a_new_one(
    client: ClientFactory, worker: WorkerFactory, cut_workers: Cut
) -> None:
    serving = await worker(calculator())
    caller = await client()
    await cut_workers()
    assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().started == 1


async def test_a_run_that_outlives_its_connection_is_adopted_and_answers_once(
    client: ClientFactory, worker: WorkerFactory, cut_workers: Cut
) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "once"

    serving = await worker(service)
    caller = await client()
    call = asyncio.create_task(caller.call("wait"))
    await gate.entered()
    await cut_workers()
    await eventually(lambda: serving.statistics().adopted == 1)
    gate.open()
    assert await call == "once"
    assert serving.statistics().started == 1


async def test_a_run_that_ends_while_its_worker_has_no_connection_is_answered_from_the_cache(
    client: ClientFactory, worker: WorkerFactory, cut_workers: Cut
) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "kept"

    serving = await worker(service)
    caller = await client()
    call = asyncio.create_task(caller.call("wait"))
    await gate.entered()
    await cut_workers()
    gate.open()
    assert await call == "kept"
    statistics = serving.statistics()
    assert statistics.started == 1
    assert statistics.adopted + statistics.answered >= 1


async def test_a_worker_that_loses_its_connection_while_it_drains_takes_no_more_and_answers_what_runs(
    client: ClientFactory,
    worker: WorkerFactory,
    cut_workers: Cut,
    overview: Overview,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait() -> str:
        await gate.wait()
        return "answered"

    serving = await worker(service, concurrency=1, grace=30)
    caller = await client()
    call = asyncio.create_task(caller.call("wait"))
    await gate.entered()
    for _ in range(3):
        await caller.cast("wait")
    closing = asyncio.create_task(serving.aclose())
    await eventually(lambda: overview.consumers("rpc.default") == 0)
    with caplog.at_level("INFO", "aiorpcq.worker"):
        await cut_workers()
        await eventually(lambda: "again" in caplog.text)
    assert overview.consumers("rpc.default") == 0
    gate.open()
    assert await call == "answered"
    await closing
    assert serving.statistics().started == 1
    assert serving.statistics().adopted == 0
