"""Clocks that are a minute apart."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from aiorpcq import Context, DeadlineExceeded, Service
from tests.contract.parties import (
    BystanderFactory,
    ClientFactory,
    Gate,
    WorkerFactory,
    body_of,
    request_for,
)

from .conftest import ProcessFactory
from .ledger import Ledger
from .marks import amqp_only
from .processes import Journal

_TOLERANCE = 60.0
_SLACK = 3.0
"""Seconds that a test may take from one look at the clock to the next."""


@amqp_only
@pytest.mark.parametrize("offset", [-_TOLERANCE, _TOLERANCE])
async def test_row_25_a_worker_whose_clock_is_a_minute_off_expires_nothing_early(
    client: ClientFactory, worker_process: ProcessFactory, journal: Journal, ledger: Ledger, offset: float
) -> None:
    process = await worker_process("off", clock_offset=offset)
    caller = await client(timeout=2 * _SLACK)
    waiting = [ledger.call(caller, "wait", number) for number in range(20)]
    await process.event("start", count=20)
    assert await ledger.outcomes([ledger.call(caller, "add", number, 1) for number in range(100)]) == [*range(1, 101)]
    task = await caller.submit("note", "states come too")
    assert await task == "states come too"
    process.open()
    assert await ledger.outcomes(waiting) == list(range(20))
    assert len(journal.entries("start")) == len(journal.entries("end")) == 21


@amqp_only
@pytest.mark.parametrize("offset", [-_TOLERANCE, _TOLERANCE])
async def test_row_25_a_run_past_its_deadline_is_stopped_whatever_the_workers_clock_says(
    client: ClientFactory, worker_process: ProcessFactory, ledger: Ledger, offset: float
) -> None:
    """By the time it has left on the monotonic clock."""
    process = await worker_process("off", clock_offset=offset)
    caller = await client(timeout=_SLACK)
    began = time.monotonic()
    for outcome in await ledger.outcomes([ledger.call(caller, "wait", number) for number in range(20)]):
        assert isinstance(outcome, DeadlineExceeded)
        assert outcome.maybe_executed
    await process.event("cancelled", count=20)
    assert _SLACK <= time.monotonic() - began < 2 * _SLACK


@amqp_only
async def test_row_25_a_worker_whose_clock_is_further_off_than_that_runs_nothing_it_takes_for_late(
    client: ClientFactory, worker_process: ProcessFactory, journal: Journal, ledger: Ledger
) -> None:
    await worker_process("far off", clock_offset=_TOLERANCE + 3 * _SLACK)
    caller = await client(timeout=2 * _SLACK)
    for outcome in await ledger.outcomes([ledger.call(caller, "note", number) for number in range(20)]):
        assert isinstance(outcome, DeadlineExceeded)
        assert not outcome.maybe_executed
    assert journal.entries() == []


def clocked() -> tuple[Service, Gate, list[tuple[str, float | None]]]:
    """A service whose method waits; and the ids of its runs, with the time that each is given."""
    service, gate, runs = Service(), Gate(), list[tuple[str, float | None]]()

    @service.method
    async def wait(ctx: Context) -> str:
        runs.append((ctx.task_id, ctx.remaining))
        await gate.wait()
        return "done"

    return service, gate, runs


@pytest.mark.parametrize("offset", [-_TOLERANCE, 0.0, _TOLERANCE])
async def test_row_25_a_request_of_a_caller_whose_clock_is_a_minute_off_is_run_with_the_time_it_has(
    worker: WorkerFactory, bystander: BystanderFactory, offset: float
) -> None:
    service, gate, runs = clocked()
    await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(timed("t", replies.name, left=2 * _SLACK, offset=offset))
    await gate.entered()
    ((_, remaining),) = runs
    assert remaining is not None
    assert _SLACK < remaining <= 2 * _SLACK
    gate.open()
    assert await replies.until_terminal() == [("SUCCESS", "done")]


async def test_row_25_nothing_is_run_that_is_past_its_deadline_by_more_than_the_tolerance(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    """As a request may be that waited in the broker without its expiration being counted."""
    service, _, runs = clocked()
    serving = await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    for number in range(20):
        late = timed(f"t{number}", replies.name, left=30.0, offset=-30.0 - _TOLERANCE - 0.1)
        await stranger.request(late)
    for _ in range(20):
        delivery = await replies.next()
        assert delivery.properties.type == "FAILURE"
        value = body_of(delivery)
        assert (value["error"], value["maybe_executed"]) == ("DeadlineExceeded", False)
    assert (runs, serving.statistics().started) == ([], 0)


async def test_row_25_a_run_is_stopped_when_it_is_past_its_deadline_by_more_than_the_tolerance(
    worker: WorkerFactory, bystander: BystanderFactory
) -> None:
    service, gate, runs = clocked()
    serving = await worker(service)
    stranger = await bystander()
    replies = await stranger.reply_queue()
    await stranger.request(timed("t", replies.name, left=30.0, offset=-30.0 - _TOLERANCE + _SLACK))
    await gate.entered()
    async with asyncio.timeout(2 * _SLACK):
        states = await replies.until_terminal()
    name, value = states[-1]
    assert (name, value["error"], value["maybe_executed"]) == ("FAILURE", "DeadlineExceeded", True)
    assert len(runs) == 1
    assert serving.statistics().expired == 1


def timed(task_id: str, reply_to: str, *, left: float, offset: float) -> Any:
    """Return a request that has *left* seconds, of a caller whose clock is *offset* seconds ahead."""
    deadline = time.time() + offset + left
    return request_for("wait", task_id=task_id, reply_to=reply_to, deadline=deadline, expiration=left)
