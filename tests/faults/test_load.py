"""A broker that takes no more: its memory alarm, and queues that are full."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq import Client, DeadlineExceeded, Overloaded, Service
from tests.contract.parties import PATIENCE, ClientFactory, Gate, WorkerFactory, calculator

from .breaking import Breaker
from .ledger import Ledger


async def test_row_23_broker_alarm_calls_wait_to_their_deadline_and_resume(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    service, ran = calculator(), []

    @service.method
    async def hurry(number: int) -> None:
        ran.append(number)

    await worker(service)
    caller = await client()
    assert await caller.call("add", 1, 1) == 2
    await breaker.set_alarm(True)
    patient = [ledger.call(caller, "add", number, 1) for number in range(20)]
    hurried = caller.with_options(timeout=0.1)
    await until_held(ledger, hurried)
    for outcome in await ledger.outcomes([ledger.call(hurried, "hurry", number) for number in range(20)]):
        assert isinstance(outcome, DeadlineExceeded)
        assert not outcome.maybe_executed
    assert not any(call.done() for call in patient)
    await breaker.set_alarm(False)
    assert await ledger.outcomes(patient) == [number + 1 for number in range(20)]
    assert await caller.call("add", 3, 4) == 7
    assert ran == []
    assert caller.statistics().generation == 1


async def until_held(ledger: Ledger, hurried: Client) -> None:
    """Wait until calls are not sent any more: a broker tells of its alarm when it first gets a publish."""
    async with asyncio.timeout(PATIENCE):
        while True:
            (outcome,) = await ledger.outcomes([ledger.call(hurried, "add", 1, 1)])
            assert isinstance(outcome, DeadlineExceeded)
            if not outcome.maybe_executed:
                return


async def test_row_23_a_run_that_ends_during_the_alarm_is_answered_when_it_clears(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait(value: int) -> int:
        await gate.wait()
        return value

    serving = await worker(service)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(20)]
    await gate.entered(20)
    await breaker.set_alarm(True)
    gate.open()
    late = ledger.call(caller.with_options(timeout=0.2), "wait", 0)
    assert isinstance((await ledger.outcomes([late]))[0], DeadlineExceeded)
    await breaker.set_alarm(False)
    assert await ledger.outcomes(calls) == list(range(20))
    assert serving.statistics().publisher.lost == 0


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_row_24_a_full_queue_that_refuses_is_overloaded(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, way: str
) -> None:
    service, gate = Service(max_length=2, overflow="reject-publish"), Gate()

    @service.method
    async def wait(value: int) -> int:
        await gate.wait()
        return value

    await worker(service, concurrency=1)
    caller = await client()
    running = ledger.call(caller, "wait", 0)
    await gate.entered()
    await caller.cast("wait", 1)  # these are confirmed, so they are in the queue
    waiting = await caller.submit("wait", 2)
    with pytest.raises(Overloaded) as caught:
        await getattr(caller.with_options(timeout=PATIENCE), way)("wait", 3)
    assert caught.value.retryable
    assert not caught.value.maybe_executed
    gate.open()
    assert await running == 0
    assert await waiting == 2
    assert await caller.call("wait", 4) == 4
