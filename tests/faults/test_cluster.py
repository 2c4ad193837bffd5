"""A cluster that loses its majority: quorum queues stand still, and lose nothing that they have acknowledged."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from aiorpcq import ConnectFailed, ConnectionLost, Context, DeadlineExceeded, Overloaded, RPCError, Service
from tests.contract.parties import PATIENCE, ClientFactory, Gate, WorkerFactory, eventually
from tests.node import Cluster

from .breaking import Breaker, NodeBreaker
from .ledger import Ledger

_CALLS = 20


@pytest.fixture
def url(cluster: Cluster) -> str:
    """The first member, which stays."""
    return cluster.nodes[0].url()


@pytest.fixture
def breaker(cluster: Cluster, url: str) -> Breaker:
    return NodeBreaker(cluster.nodes[0], "/")


async def test_row_36_two_of_three_nodes_that_stop_and_come_back_lose_nothing_acknowledged(
    cluster: Cluster, client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    service, gate, runs = Service(queue_type="quorum"), Gate(), Counter[str]()
    kept: set[str] = set()

    @service.method
    async def wait(ctx: Context, value: str) -> str:
        runs[value] += 1
        await gate.wait()
        return value

    @service.method
    async def keep(value: str) -> None:
        kept.add(value)

    # All three addresses: where the first one's connection is lost the others are tried, and it is again.
    urls = [node.url() for node in cluster.nodes]
    serving = await worker(service, url=urls, concurrency=5)
    caller = await client(url=urls, timeout=180.0)
    running = [ledger.call(caller, "wait", f"running {number}") for number in range(5)]
    await gate.entered(5)
    waiting = [ledger.call(caller, "wait", f"waiting {number}") for number in range(_CALLS)]
    await asyncio.gather(*(caller.cast("keep", f"before {number}") for number in range(_CALLS)))

    await asyncio.gather(*(asyncio.to_thread(node.stop) for node in cluster.nodes[1:]))
    hurried = caller.with_options(timeout=1.0)
    for outcome in await ledger.outcomes([ledger.call(hurried, "wait", f"hurried {number}") for number in range(5)]):
        assert isinstance(outcome, DeadlineExceeded | ConnectionLost | Overloaded)
    acknowledged = set()
    for number in range(5):
        try:
            await hurried.cast("keep", f"during {number}")
        except RPCError as error:
            assert isinstance(error, DeadlineExceeded | ConnectionLost | Overloaded)  # noqa: PT017 - either will do
        else:
            acknowledged.add(f"during {number}")
    patient = [ledger.call(caller, "wait", f"patient {number}") for number in range(_CALLS)]
    gate.open()

    await asyncio.to_thread(cluster.start_nodes)
    await asyncio.to_thread(cluster.wait_running, cluster.nodes)
    async with asyncio.timeout(6 * PATIENCE):
        assert await asyncio.gather(*running) == [f"running {number}" for number in range(5)]
        assert await asyncio.gather(*waiting) == [f"waiting {number}" for number in range(_CALLS)]
        # Those that were not confirmed when the majority went may be lost with a connection, and then they say so.
        for number, outcome in enumerate(await asyncio.gather(*patient, return_exceptions=True)):
            assert outcome == f"patient {number}" or isinstance(outcome, ConnectionLost)
    await eventually(lambda: kept >= {f"before {number}" for number in range(_CALLS)} | acknowledged)
    assert all(runs[f"running {number}"] == 1 for number in range(5))
    assert serving.statistics().lost == 0
    assert await caller.call("wait", "after") == "after"
    await eventually(lambda: serving.health().ready)


async def test_row_36_a_worker_that_starts_without_a_majority_waits_or_says_so_and_serves_when_it_is_back(
    cluster: Cluster, client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    service = Service(queue_type="quorum")
    kept: set[int] = set()

    @service.method
    async def keep(number: int) -> int:
        kept.add(number)
        return number

    first = await worker(service)
    caller = await client(timeout=180.0)
    await first.aclose()
    await asyncio.gather(*(caller.cast("keep", number) for number in range(_CALLS)))
    await asyncio.gather(*(asyncio.to_thread(node.stop) for node in cluster.nodes[1:]))
    calls = [ledger.call(caller, "keep", 100 + number) for number in range(_CALLS)]
    started = False
    try:
        await worker(service)
        started = True
    except ConnectFailed:
        pass
    await asyncio.to_thread(cluster.start_nodes)
    await asyncio.to_thread(cluster.wait_running, cluster.nodes)
    if not started:
        await worker(service)
    async with asyncio.timeout(6 * PATIENCE):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for number, outcome in enumerate(outcomes):
        assert outcome == 100 + number or isinstance(outcome, ConnectionLost)
    await eventually(lambda: kept >= set(range(_CALLS)))
    assert await caller.call("keep", 1000) == 1000
