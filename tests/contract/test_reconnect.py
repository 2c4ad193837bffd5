"""What the loss of a connection means, on every broker: the next generation, and what was under way."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq import Service

from .breaking import Breaking, next_generation
from .parties import BystanderFactory, ClientFactory, Gate, Overview, WorkerFactory, calculator, eventually


@pytest.fixture
def breaking(url: str, request: pytest.FixtureRequest) -> Breaking:
    return Breaking(url, request)


async def test_a_client_that_lost_its_connection_calls_on_a_new_one(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    await worker(calculator())
    caller = await client()
    assert await caller.call("add", 1, 2) == 3
    await breaking.cut("client")
    await next_generation(caller)
    assert await caller.call("add", 3, 4) == 7


async def test_each_connection_has_a_reply_queue_of_another_name(
    client: ClientFactory, bystander: BystanderFactory, breaking: Breaking
) -> None:
    caller = await client()
    observer = await bystander()
    before = await observer.reply_queue_of(caller)
    await breaking.cut("client")
    await next_generation(caller)
    assert await observer.reply_queue_of(caller) != before


async def test_a_call_made_while_the_connection_is_down_waits_for_the_next(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    await worker(calculator())
    caller = await client(idempotent=["add"])
    await breaking.cut("client")
    # Whether the loss is noticed already or not: what is sent into it is sent again, what waits is sent then.
    assert await caller.call("add", 1, 2) == 3
    assert await caller.call("add", 1, 2) == 3


async def test_a_worker_that_lost_its_connection_serves_on_a_new_one(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
) -> None:
    serving = await worker(calculator())
    caller = await client()
    await breaking.cut("worker")
    assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().started == 1


async def test_a_run_that_outlives_its_connection_is_adopted_and_answers_once(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
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
    await breaking.cut("worker")
    await eventually(lambda: serving.statistics().adopted == 1)
    gate.open()
    assert await call == "once"
    assert serving.statistics().started == 1


async def test_a_run_that_ends_while_its_worker_has_no_connection_is_answered_from_the_cache(
    client: ClientFactory, worker: WorkerFactory, breaking: Breaking
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
    await breaking.cut("worker")
    gate.open()
    assert await call == "kept"
    statistics = serving.statistics()
    assert statistics.started == 1
    assert statistics.adopted + statistics.answered >= 1


async def test_a_worker_that_loses_its_connection_while_it_drains_takes_no_more_and_answers_what_runs(
    client: ClientFactory,
    worker: WorkerFactory,
    breaking: Breaking,
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
        await breaking.cut("worker")
        await eventually(lambda: "again" in caplog.text)
    assert overview.consumers("rpc.default") == 0
    gate.open()
    assert await call == "answered"
    await closing
    assert serving.statistics().started == 1
    assert serving.statistics().adopted == 0
