"""Callers that stop waiting, one by one or all at once."""

from __future__ import annotations

import asyncio

from aiorpcq import Service
from tests.contract.parties import ClientFactory, Gate, WorkerFactory, calculator, eventually

from .ledger import Ledger

_TURNS = 40
_CALLERS = 10_000


async def test_row_16_a_cancellation_at_any_moment_leaves_nothing_of_its_call(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    await worker(calculator())
    caller = await client()
    calls = []
    for turns in range(_TURNS):
        for _ in range(5):
            call = ledger.call(caller, "add", turns, 1)
            calls.append(call)
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
    outcomes = await ledger.outcomes(calls)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    for number, outcome in enumerate(outcomes):
        assert outcome == number // 5 + 1 or isinstance(outcome, asyncio.CancelledError)
    assert caller.statistics().pending == 0
    assert await caller.call("add", 1, 2) == 3


async def test_row_16_a_reply_and_a_cancellation_of_the_same_iteration_do_not_collide(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    await worker(calculator())
    caller = await client()
    calls = [ledger.call(caller, "add", number, 1) for number in range(500)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)  # the others' replies are in the same reads, or soon
    for call in calls:
        call.cancel()
    for number, outcome in enumerate(await ledger.outcomes(calls)):
        assert outcome == number + 1 or isinstance(outcome, asyncio.CancelledError)
    assert caller.statistics().pending == 0
    assert await caller.call("add", 1, 2) == 3
    assert caller.statistics().out_of_band == 0


async def test_row_28_ten_thousand_callers_cancelled_at_once_leave_nothing(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger
) -> None:
    service, gate = Service(), Gate()

    @service.method
    async def wait() -> None:
        await gate.wait()

    serving = await worker(service)
    caller = await client()
    calls = [ledger.call(caller, "wait") for _ in range(_CALLERS)]
    await gate.entered(100)
    assert caller.statistics().pending == _CALLERS
    for call in calls:
        call.cancel()
    outcomes = await ledger.outcomes(calls)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert caller.statistics().pending == 0
    gate.open()
    await asyncio.wait_for(caller.call("wait"), 60)  # behind all that is still in the queue
    await eventually(lambda: serving.statistics().running == 0)
    statistics = caller.statistics()
    assert (statistics.pending, statistics.out_of_band, statistics.parked) == (0, 0, 0)
