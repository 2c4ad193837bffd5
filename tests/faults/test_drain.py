"""Workers that are told to stop under load, one and one after the other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from aiorpcq import Client, Service, Worker, WorkerLost
from aiorpcq.protocol.deliveries import DeliveryMode
from tests.contract.parties import ClientFactory, Gate, WorkerFactory, eventually

from .breaking import Breaker, until_left
from .conftest import ProcessFactory
from .ledger import Ledger
from .marks import amqp_only
from .processes import Journal, WorkerProcess

_GRACE = 10.0
_ROUNDS = 5


def load(ledger: Ledger, caller: Client, method: str, count: int) -> dict[str, asyncio.Task[Any]]:
    """Make calls whose value is their task id."""
    names = [f"{method}-{number}" for number in range(count)]
    return {name: ledger.call(caller.with_options(task_id=name), method, name) for name in names}


# --- SIGTERM under load


@amqp_only
@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_26_a_worker_that_gets_sigterm_under_load_loses_nothing_and_runs_nothing_twice(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    breaker: Breaker,
    mode: DeliveryMode,
) -> None:
    options = {"concurrency": 10, "threads": 2, "delivery": mode, "grace": _GRACE, "max_attempts": 1}
    stopping = await worker_process("stopping", **options)
    caller = await client()
    threads = load(ledger, caller, "wait_in_thread", 6)  # four of them wait for a thread
    calls = threads | load(ledger, caller, "wait", 30)
    await stopping.event("start", count=6)
    staying = await worker_process("staying", **options)
    calls |= load(ledger, caller, "note", 300)
    began = time.monotonic()
    stopping.terminate()
    stopping.open()
    assert await stopping.wait() == 0
    assert time.monotonic() - began < _GRACE
    staying.open()
    assert await ledger.outcomes(calls.values()) == list(calls)
    assert {name: journal.runs(name) for name in calls} == dict.fromkeys(calls, 1)
    assert {entry.attempt for entry in journal.entries()} == {1}
    assert journal.entries("cancelled") == []
    assert caller.statistics().duplicates == 0
    await until_left(breaker)


@amqp_only
async def test_row_26_a_worker_whose_runs_do_not_end_exits_when_its_grace_is_over_and_they_are_run_elsewhere(
    client: ClientFactory, worker_process: ProcessFactory, journal: Journal, ledger: Ledger, breaker: Breaker
) -> None:
    stopping = await worker_process("stopping", grace=0.5)
    caller = await client()
    calls = load(ledger, caller, "wait", 20)
    await stopping.event("start", count=20)
    staying = await worker_process("staying")
    staying.open()
    began = time.monotonic()
    stopping.terminate()
    assert await stopping.wait() == 0
    assert 0.5 <= time.monotonic() - began < 5.0
    assert await ledger.outcomes(calls.values()) == list(calls)
    assert len(journal.entries("cancelled")) == 20
    assert [entry.attempt for entry in journal.entries("end")] == [2] * 20
    await until_left(breaker)


@amqp_only
async def test_row_26_a_second_sigterm_ends_what_still_runs_at_once(
    client: ClientFactory, worker_process: ProcessFactory, ledger: Ledger
) -> None:
    stopping = await worker_process("stopping", grace=60.0)
    caller = await client()
    calls = load(ledger, caller, "wait", 20)
    await stopping.event("start", count=20)
    stopping.terminate()
    while (await stopping.statistics())["ready"]:
        pass  # each look is an exchange with the process
    stopping.terminate()
    assert await stopping.wait() == 0
    staying = await worker_process("staying")
    staying.open()
    assert await ledger.outcomes(calls.values()) == list(calls)


@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_26_a_worker_that_is_closed_under_load_loses_nothing_and_runs_nothing_twice(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, mode: DeliveryMode
) -> None:
    runs: Counter[int] = Counter()
    gate = Gate()
    service = Service(delivery=mode, max_attempts=1)

    @service.method
    async def work(number: int) -> int:
        runs[number] += 1
        if number < 10:
            await gate.wait()
        return number

    stopping = await worker(service, concurrency=20, grace=_GRACE)
    caller = await client()
    calls = [ledger.call(caller, "work", number) for number in range(500)]
    await gate.entered(10)
    await worker(service, concurrency=20)
    closing = asyncio.ensure_future(stopping.aclose())
    await eventually(lambda: stopping.health().reason == "draining")
    calls += [ledger.call(caller, "work", number) for number in range(500, 1000)]
    gate.open()
    await closing
    assert await ledger.outcomes(calls) == list(range(1000))
    assert runs == Counter(range(1000))
    await until_left(breaker)


# --- rolling restarts


@amqp_only
@pytest.mark.parametrize("grace", [_GRACE, 0.0])
async def test_row_34_saturated_worker_processes_that_are_replaced_five_times_poison_nothing_and_lose_nothing_unrun(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    breaker: Breaker,
    grace: float,
) -> None:
    """Without a grace what runs is lost, and only that."""
    options = {"concurrency": 6, "threads": 2, "delivery": "no_rerun", "grace": grace, "max_attempts": 1}

    def start(name: str) -> Any:
        return worker_process(name, **options)

    serving: list[WorkerProcess] = [await start(f"{side}-0") for side in "ab"]
    caller = await client()
    threads = load(ledger, caller, "wait_in_thread", 60)
    calls = threads | load(ledger, caller, "wait", 60)
    for times in range(1, _ROUNDS + 1):
        for process in serving:
            await process.event("start", count=2)
        # Each takes what is left of the queue as far as it can: most of that never starts before the next restart.
        following = await asyncio.gather(*(start(f"{side}-{times}") for side in "ab"))
        for process in serving:
            for name in threads:  # nothing can stop a thread, and a process does not end before its threads do
                process.open(name)
            process.terminate()
            if grace:
                process.open()
        assert await asyncio.gather(*(process.wait() for process in serving)) == [0, 0]
        serving = list(following)
    for process in serving:
        process.open()
    outcomes = dict(zip(calls, await ledger.outcomes(calls.values()), strict=True))
    for name, outcome in outcomes.items():
        assert journal.runs(name) == 1, (name, outcome)
        if isinstance(outcome, WorkerLost):
            assert not grace, name
        else:
            assert outcome == name
    await until_left(breaker)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("mode", ["at_least_once", "no_rerun"])
async def test_row_34_saturated_workers_that_are_replaced_five_times_poison_nothing_and_lose_nothing(
    client: ClientFactory,
    worker: WorkerFactory,
    ledger: Ledger,
    breaker: Breaker,
    mode: DeliveryMode,
    kind: Any,
) -> None:
    service, runs = Service(delivery=mode, queue_type=kind, max_attempts=1), Counter[int]()
    gates: list[Gate] = []

    @service.method
    async def work(number: int) -> int:
        runs[number] += 1
        await gates[-1].wait()
        return number

    async def start() -> Worker:
        return await worker(service, concurrency=5, grace=_GRACE)

    gates.append(Gate())
    serving, caller = [await start(), await start()], await client()
    calls = [ledger.call(caller, "work", number) for number in range(150)]
    await gates[-1].entered(10)
    for _ in range(_ROUNDS):
        former = gates[-1]
        gates.append(Gate())
        following = [await start(), await start()]
        await gates[-1].entered(10)  # the new ones are saturated beside the old ones
        closing = [asyncio.ensure_future(each.aclose()) for each in serving]
        await eventually(lambda drained=serving: all(each.health().reason == "draining" for each in drained))  # type: ignore[misc]
        former.open()
        await asyncio.gather(*closing)
        serving = following
    gates[-1].open()
    assert await ledger.outcomes(calls) == list(range(150))
    assert runs == Counter(range(150))
    assert sum(each.statistics().lost for each in serving) == 0
    await until_left(breaker)
