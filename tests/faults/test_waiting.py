"""Requests whose queue is there, and nobody who takes them from it."""

from __future__ import annotations

import asyncio

import pytest

from aiorpcq import DeadlineExceeded, NoWorkers, Service
from tests.contract.parties import PATIENCE, ClientFactory, WorkerFactory, calculator

from .breaking import Breaker, until_queued
from .ledger import Ledger

_CALLS = 50
_TIMEOUT = 0.4


async def deserted(worker: WorkerFactory, service: Service) -> None:
    """Have the queue of *service* declared by a worker that is gone."""
    await (await worker(service)).aclose()


@pytest.mark.usefixtures("patient_returns")
async def test_row_02_a_call_that_nobody_takes_waits_to_its_deadline_and_is_not_run_after_it(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    await deserted(worker, calculator())
    caller = await client(timeout=_TIMEOUT)
    began = asyncio.get_running_loop().time()
    outcomes = await ledger.outcomes([ledger.call(caller, "add", number, 1) for number in range(_CALLS)])
    took = asyncio.get_running_loop().time() - began
    for outcome in outcomes:
        assert isinstance(outcome, DeadlineExceeded)
        assert not outcome.maybe_executed
    assert took >= _TIMEOUT  # how much later is the broker's, and here it has as long as it needs
    assert await breaker.messages("rpc.default") == 0
    late = await worker(calculator())
    assert await caller.with_options(timeout=5).call("add", 1, 2) == 3
    assert late.statistics().started == 1


async def test_row_02_a_worker_that_comes_before_the_deadline_serves_what_waits(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    await deserted(worker, calculator())
    caller = await client()
    calls = [ledger.call(caller, "add", number, 1) for number in range(_CALLS)]
    await until_queued(breaker, _CALLS)
    assert not any(call.done() for call in calls)
    late = await worker(calculator())
    assert await ledger.outcomes(calls) == [number + 1 for number in range(_CALLS)]
    assert late.statistics().started == _CALLS


@pytest.mark.parametrize("way", ["call", "submit", "cast"])
async def test_row_02_where_it_is_asked_for_no_workers_is_said_at_once_and_nothing_is_sent(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, way: str
) -> None:
    await deserted(worker, calculator())
    caller = (await client(timeout=None)).with_options(require_workers=True)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(NoWorkers) as caught:
            await getattr(caller, way)("add", 1, 2)
    assert not caught.value.maybe_executed
    assert await breaker.messages("rpc.default") == 0
    late = await worker(calculator())
    assert await caller.call("add", 1, 2) == 3
    assert late.statistics().started == 1
