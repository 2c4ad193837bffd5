"""A request that kills every worker that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from aiorpcq import Context, Poisoned, Service
from tests.contract.parties import ClientFactory, Gate, WorkerFactory, eventually
from tests.contract.workbench import die

from .breaking import Breaker, until_left
from .conftest import ProcessFactory
from .ledger import Ledger
from .marks import amqp_only
from .processes import Journal, WorkerProcess

Kind = Literal["classic", "quorum"]

_ATTEMPTS = 3
_INNOCENTS = 10


@asynccontextmanager
async def fleet(start: Callable[[str], Any], size: int) -> AsyncIterator[list[WorkerProcess]]:
    """Worker processes of which each that dies is replaced; all that there were."""
    members = [await start(f"worker-{number}") for number in range(size)]

    async def replace(member: WorkerProcess) -> None:
        while True:
            await member._process.wait()
            member = await start(f"worker-{len(members)}")
            members.append(member)
            member.open()

    watching = [asyncio.get_running_loop().create_task(replace(member)) for member in members]
    try:
        yield members
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


@amqp_only
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_19_a_request_that_kills_every_worker_is_poisoned_after_its_attempts_and_the_fleet_lives(
    client: ClientFactory,
    worker_process: ProcessFactory,
    journal: Journal,
    ledger: Ledger,
    breaker: Breaker,
    kind: Kind,
) -> None:
    def start(name: str) -> Any:
        return worker_process(name, service_options={"queue_type": kind}, max_attempts=_ATTEMPTS)

    async with fleet(start, 2) as members:
        caller = await client()
        names = [f"innocent-{number}" for number in range(_INNOCENTS)]
        innocents = [ledger.call(caller.with_options(task_id=name), "wait", name) for name in names]
        await eventually(lambda: len(journal.entries("start")) == _INNOCENTS)
        poison = ledger.call(caller.with_options(task_id="poison"), "kill")
        (outcome,) = await ledger.outcomes([poison])
        assert isinstance(outcome, Poisoned)
        assert outcome.maybe_executed
        for member in members:
            member.open()
        assert await ledger.outcomes(innocents) == names  # whoever died beside it was run again
        deaths = journal.entries("start", "poison")
        assert [entry.attempt for entry in deaths] == list(range(1, _ATTEMPTS + 1))
        assert len({entry.pid for entry in deaths}) == _ATTEMPTS
        assert all(journal.runs(name) <= _ATTEMPTS for name in names)
        assert await ledger.outcomes([ledger.call(caller, "add", number, 1) for number in range(20)]) == [*range(1, 21)]
        assert await breaker.messages("rpc.default.dead") == 1
        await eventually(lambda: len(members) == 2 + _ATTEMPTS)
    await until_left(breaker)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_row_19_a_request_whose_workers_all_lose_their_links_is_poisoned_and_the_next_worker_lives(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, breaker: Breaker, kind: Kind
) -> None:
    service, gate, attempts = Service(queue_type=kind), Gate(), list[int]()

    @service.method
    async def poison(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await gate.wait()

    @service.method
    async def add(a: int, b: int) -> int:
        return a + b

    doomed = await worker(service, max_attempts=_ATTEMPTS)
    caller = await client()
    call = ledger.call(caller, "poison")
    for _ in range(_ATTEMPTS):
        await gate.entered()
        following = await worker(service, max_attempts=_ATTEMPTS)
        await die(doomed)
        doomed = following
    (outcome,) = await ledger.outcomes([call])
    assert isinstance(outcome, Poisoned)
    assert attempts == [1, 2, 3]
    assert await caller.call("add", 1, 2) == 3
    assert await breaker.messages("rpc.default.dead") == 1
    gate.open()
