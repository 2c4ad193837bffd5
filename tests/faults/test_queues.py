"""Service queues that are deleted, and consumers that the broker ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import pytest

from aiorpcq import ConnectionLost, Context, DeadlineExceeded, Overloaded, Service, Unroutable, Worker
from aiorpcq.testing import memory_broker
from aiorpcq.transports.amqp import link
from tests.contract.parties import PATIENCE, ClientFactory, Gate, WorkerFactory, eventually
from tests.node import Node
from tests.node.control import channels_of

from .breaking import Breaker, until_left, until_queued
from .ledger import Ledger
from .marks import amqp_only, memory_only

Kind = Literal["classic", "quorum"]

_QUEUE = "rpc.default"
_CALLS = 20
_OTHER_SIZE = 1_000_000
"""A limit that is another client's alone, which gives it a connection of its own."""

_TIMEOUT = 0.3
"""Seconds that the broker gives a consumer."""


def gated(kind: Kind = "classic") -> tuple[Service, Gate, Counter[int]]:
    """A service whose method waits; and how often it was run for each number."""
    service, gate, runs = Service(queue_type=kind), Gate(), Counter[int]()

    @service.method
    async def wait(ctx: Context, number: int) -> int:
        runs[number] += 1
        await gate.wait()
        return number

    return service, gate, runs


# --- deleted


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_13_a_service_queue_that_is_deleted_is_declared_and_consumed_again(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, kind: Kind
) -> None:
    service, gate, runs = gated(kind)
    serving = await worker(service, concurrency=5)
    caller = await client()
    running = [ledger.call(caller, "wait", number) for number in range(5)]
    await gate.entered(5)
    await caller.cast("wait", -1)  # at the head it has no expiration, so the others do not come back when theirs ends
    waiting = [ledger.call(caller.with_options(timeout=0.5), "wait", number) for number in range(5, 10)]
    await until_queued(breaker, 11)
    before = standing(serving)
    await breaker.delete_queue(_QUEUE)
    await until_back(serving, before)
    gate.open()
    assert await ledger.outcomes(running) == list(range(5))
    for outcome in await ledger.outcomes(waiting):  # gone with the queue
        assert isinstance(outcome, DeadlineExceeded)
        assert outcome.maybe_executed
    assert await ledger.outcomes([ledger.call(caller, "wait", number) for number in range(10, 30)]) == [*range(10, 30)]
    assert runs == Counter([*range(5), *range(10, 30)])
    await until_left(breaker)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_13_a_service_queue_that_is_deleted_again_and_again_under_load_leaves_no_worker_deaf(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, kind: Kind
) -> None:
    service, gate, runs = gated(kind)
    gate.open()
    serving = [await worker(service, concurrency=10) for _ in range(2)]
    caller = await client(timeout=1.0)
    calls: list[asyncio.Task[Any]] = []
    for _ in range(3):
        before = [standing(each) for each in serving]
        calls += [ledger.call(caller, "wait", len(calls) + number) for number in range(100)]
        await breaker.delete_queue(_QUEUE)
        calls += [ledger.call(caller, "wait", len(calls) + number) for number in range(100)]
        for each, stood in zip(serving, before, strict=True):
            await until_back(each, stood)
    for number, outcome in enumerate(await ledger.outcomes(calls)):
        if isinstance(outcome, Unroutable | Overloaded):  # without a queue, or refused by the one that goes away
            assert (outcome.maybe_executed, runs[number]) == (False, 0)
        elif isinstance(outcome, DeadlineExceeded | ConnectionLost):
            assert outcome.maybe_executed
        else:
            assert outcome == number
            assert runs[number]
        assert runs[number] <= (2 if kind == "quorum" else 1)
    # Another connection: a channel of RabbitMQ 3.10 that published to a quorum queue in the moment of its deletion may
    # count on, and the queue that takes its place waits for ever for what it takes to be missing (seen).
    another = await client(max_size=_OTHER_SIZE)
    assert await ledger.outcomes([ledger.call(another, "wait", number) for number in range(1000, 1100)]) == [
        *range(1000, 1100)
    ]
    await until_left(breaker)


@amqp_only
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_13_a_worker_whose_channel_takes_in_the_deletion_late_is_not_deaf(
    client: ClientFactory,
    worker: WorkerFactory,
    ledger: Ledger,
    breaker: Breaker,
    node: Node,
    vhost: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
) -> None:
    """Later than the other worker, which has declared a classic queue again by then."""
    monkeypatch.setattr(link, "_RECOVERY_PAUSE", PATIENCE / 2)
    service, gate, _ = gated(kind)
    gate.open()
    late = await worker(service, concurrency=10)
    (connection,) = node.connections(vhost)
    other = await worker(service, concurrency=10)
    late_stood, other_stood, link_of_other = standing(late), standing(other), other._started.supervisor.link
    assert isinstance(link_of_other, link.AMQPLink)
    try:
        suspended = node.eval(f"length([true = erlang:suspend_process(C) || C <- {channels_of(connection.port)}])")
        assert int(suspended) > 0
        await breaker.delete_queue(_QUEUE)
        await eventually(lambda: is_back(other, other_stood) or _QUEUE in link_of_other._resting)
    finally:
        node.resume_processes()
    await until_back(late, late_stood)
    await until_back(other, other_stood)
    caller = await client()
    async with asyncio.timeout(PATIENCE):
        while not (late.statistics().started and other.statistics().started):
            calls = [ledger.call(caller, "wait", number) for number in range(100)]
            assert await ledger.outcomes(calls) == [*range(100)]


Standing = tuple[int, int]
"""How often a worker has restored a consumer, and how often it has connected."""


def standing(serving: Worker) -> Standing:
    return serving.statistics().restored, serving._started.supervisor.generation


def is_back(serving: Worker, before: Standing) -> bool:
    """Tell whether a worker has consumed again since it stood as *before*, on the same connection or another.

    RabbitMQ's channels may end in an internal error when a quorum queue takes the place of one whose deliveries they
    hold (seen in 4.3.6: 541).
    """
    return standing(serving) != before


async def until_back(serving: Worker, before: Standing) -> None:
    """Wait until a worker consumes again, see `is_back`."""
    await eventually(lambda: is_back(serving, before))
    await eventually(lambda: serving.health().ready)


# --- cancelled


@memory_only
async def test_row_14_a_consumer_that_the_broker_cancels_is_made_again_and_nothing_runs_twice(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, url: str
) -> None:
    broker = memory_broker(url.removeprefix("memory://"))
    service, gate, runs = gated()
    serving = await worker(service)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await gate.entered(_CALLS)
    for times in (1, 2, 3):
        assert broker.cancel_consumers(_QUEUE) == 1
        calls += [ledger.call(caller, "wait", times * 100 + number) for number in range(_CALLS)]
        await eventually(lambda expected=times: serving.statistics().restored == expected)  # type: ignore[misc]
        await gate.entered(_CALLS)
    gate.open()
    await ledger.outcomes(calls)
    assert [call.result() for call in calls] == list(runs)
    assert set(runs.values()) == {1}
    assert serving.statistics().adopted == 0  # what it had in hand stayed there
    await until_left(breaker)


@memory_only
async def test_row_14_a_channel_that_the_broker_closes_over_a_consumer_timeout_is_replaced_and_nothing_runs_twice(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, url: str
) -> None:
    broker = memory_broker(url.removeprefix("memory://"))

    async def time_out(_: Worker) -> None:
        assert broker.close_channels(
            lambda link: link.name.startswith("aiorpcq worker"), reason="406 PRECONDITION_FAILED - delivery timed out"
        )

    await check_timeout(client, worker, ledger, breaker, "classic", time_out)


@pytest.fixture
def consumer_timeout(node: Node, url: str) -> Iterator[None]:
    """Consumers of the test that settle nothing have their time; `url` comes first, whose broker it is."""
    node.set_consumer_timeout(_TIMEOUT)
    yield
    node.set_consumer_timeout(None)


@amqp_only
@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.usefixtures("consumer_timeout")
async def test_row_14_a_consumer_timeout_is_survived_and_nothing_runs_twice(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, node: Node, kind: Kind
) -> None:
    """Up to 4.2 it closes the channel with 406, later it cancels the consumer of a quorum queue."""
    if kind == "classic" and node.version >= (4, 3):
        pytest.skip("classic queues have no consumer timeout here")

    async def time_out(serving: Worker) -> None:
        async with asyncio.timeout(PATIENCE):
            while not serving.statistics().restored:
                await asyncio.to_thread(node.enforce_consumer_timeout)

    await check_timeout(client, worker, ledger, breaker, kind, time_out)


async def check_timeout(
    client: ClientFactory,
    worker: WorkerFactory,
    ledger: Ledger,
    breaker: Breaker,
    kind: Kind,
    time_out: Callable[[Worker], Awaitable[None]],
) -> None:
    """Check what becomes of runs that outlast the time of their consumer."""
    service, gate, runs = gated(kind)
    serving = await worker(service, max_attempts=2)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await gate.entered(_CALLS)
    await time_out(serving)
    await eventually(lambda: serving.statistics().adopted >= _CALLS)
    gate.open()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert await ledger.outcomes([ledger.call(caller, "wait", 100 + number) for number in range(_CALLS)]) == [
        *range(100, 100 + _CALLS)
    ]
    assert set(runs.values()) == {1}
    assert serving.statistics().started == 2 * _CALLS
    assert caller.statistics().generation == 1
    await eventually(lambda: serving.health().ready)
    await until_left(breaker)


@amqp_only
async def test_row_13_the_control_exchange_is_deleted_and_workers_hear_again(
    client: ClientFactory, worker: WorkerFactory, node: Node, vhost: str
) -> None:
    """The watchdog declares it again, and binds to it; the client declares nothing before its next connection."""
    service, gate, _ = gated()
    serving = await worker(service)
    caller = await client()
    node.delete_exchange("rpc.control", vhost)
    assert serving._parts is not None
    await serving._parts.consumers.look()
    task = await caller.submit("wait", 1)
    await gate.entered()
    await task.cancel("kill", timeout=PATIENCE)
    assert task.done
    assert serving.statistics().cancels >= 1  # and once more, where STARTED comes after the cancel
