"""A broker that is restarted, or killed and started again, under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from aiorpcq import Client, ConnectionLost, Context, DeadlineExceeded, Retry, Service, Worker
from aiorpcq.transports.memory import memory_broker
from tests.contract.parties import ClientFactory, WorkerFactory, eventually
from tests.node import Node

from .breaking import Breaker, MemoryBreaker, NodeBreaker, until_left
from .ledger import Ledger
from .waiting import Waiting

_MEMORY = "memory://"
_PLACES = 20
_CALLERS = 30
_TIMEOUT = 1.0
_BOOT = 30.0
"""Seconds that a broker may take to come back, and its clients to it."""


@pytest.fixture(params=["memory", "stop", "kill"])
def way(request: pytest.FixtureRequest) -> str:
    """How the broker ends: one in memory, or a real one by its operator, or that by SIGKILL."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def url(way: str, request: pytest.FixtureRequest) -> str:
    """The URL of a broker that may be restarted."""
    if way == "memory":
        return f"{_MEMORY}{uuid4().hex}"
    node: Node = request.getfixturevalue("private_node")
    return node.url()


@pytest.fixture
async def breaker(url: str, way: str, request: pytest.FixtureRequest) -> AsyncIterator[Breaker]:
    """Breaks the broker at `url`."""
    if way == "memory":
        yield MemoryBreaker(memory_broker(url.removeprefix(_MEMORY)))
    else:
        yield NodeBreaker(request.getfixturevalue("private_node"), "/")


async def restart(url: str, way: str, request: pytest.FixtureRequest) -> None:
    """Have the broker end and come back."""
    if way == "memory":
        memory_broker(url.removeprefix(_MEMORY)).restart()
        return
    node: Node = request.getfixturevalue("private_node")
    if way == "kill":
        await asyncio.to_thread(node.sync_metadata)
    await asyncio.to_thread(node.stop if way == "stop" else node.kill)
    await asyncio.to_thread(node.start)


class Load:
    """Callers that call without a pause until they are told to stop."""

    def __init__(self, ledger: Ledger, caller: Client) -> None:
        self._ledger = ledger
        self._caller = caller
        self._is_over = False
        self.values = 0

    async def run(self) -> None:
        """Call, and check that each call comes to its value or to an error of the restart."""
        async with asyncio.TaskGroup() as group:
            for number in range(_CALLERS):
                group.create_task(self._call(number))

    def stop(self) -> None:
        self._is_over = True

    async def _call(self, number: int) -> None:
        while not self._is_over:
            (outcome,) = await self._ledger.outcomes([self._ledger.call(self._caller, "add", number, 1)])
            if outcome == number + 1:
                self.values += 1
            else:
                assert isinstance(outcome, DeadlineExceeded | ConnectionLost)
                assert outcome.maybe_executed or isinstance(outcome, DeadlineExceeded)


async def until_back(caller: Client, serving: Worker) -> None:
    """Wait until both sides are connected again."""
    async with asyncio.timeout(_BOOT):
        while not (caller.statistics().generation > 1 and caller.health() and serving.health()):  # noqa: ASYNC110 - who asks is told
            await asyncio.sleep(0.01)


async def test_row_11_every_call_settles_and_both_sides_are_back(
    client: ClientFactory,
    worker: WorkerFactory,
    breaker: Breaker,
    ledger: Ledger,
    url: str,
    way: str,
    request: pytest.FixtureRequest,
) -> None:
    slow, kept = Waiting(), Waiting("kept")
    serving = await worker(slow.service, kept.service, concurrency=_PLACES)
    caller = await client(timeout=60)
    running = [ledger.call(caller, "kept.wait", number) for number in range(_PLACES)]
    await kept.gate.entered(_PLACES)
    persistent = caller.with_options(persistent=True)
    queued = [await persistent.submit("kept.wait", number) for number in range(_PLACES, 2 * _PLACES)]
    (former,) = await reply_queues(breaker)
    load = Load(ledger, caller.with_options(timeout=_TIMEOUT))
    loading = asyncio.ensure_future(load.run())
    await eventually(lambda: load.values > 5 * _CALLERS)
    await restart(url, way, request)
    await until_back(caller, serving)
    before = load.values
    await eventually(lambda: load.values > before + 5 * _CALLERS)
    load.stop()
    await loading
    kept.gate.open()
    assert await ledger.outcomes(running) == list(range(_PLACES))
    assert [await task for task in queued] == list(range(_PLACES, 2 * _PLACES))
    assert sorted(kept.runs) == list(range(2 * _PLACES))
    (present,) = await reply_queues(breaker)
    assert present != former
    await until_left(breaker)
    await until_left(breaker, queue="rpc.kept")


async def test_row_11_what_ran_over_the_restart_is_run_again_where_it_asks_for_that_or_its_worker_stops(
    client: ClientFactory, worker: WorkerFactory, url: str, way: str, request: pytest.FixtureRequest
) -> None:
    """The requests were transient: the worker that ran them has the only copy."""
    again, gate, attempts = Service("again"), asyncio.Event(), list[int]()

    @again.method
    async def run(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            await gate.wait()
            raise Retry(delay=0.1)
        return ctx.attempt

    first, second = Waiting("kept"), Waiting("kept")
    serving = await worker(again, first.service, grace=0.1)
    caller = await client(timeout=60)
    retried = asyncio.ensure_future(caller.call("again.run"))
    handed_back = asyncio.ensure_future(caller.call("kept.wait", 7))
    await first.gate.entered()
    await eventually(lambda: attempts == [1])
    await restart(url, way, request)
    await until_back(caller, serving)
    gate.set()
    assert (await retried, attempts) == (2, [1, 2])
    second.gate.open()
    await worker(second.service)
    await serving.aclose()
    assert (await handed_back, first.runs, second.runs) == (7, [7], [7])


async def reply_queues(breaker: Breaker) -> list[str]:
    return [name for name in await breaker.leftovers() if name.startswith("rpc.reply.")]
