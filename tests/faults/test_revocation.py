"""Tasks that are cancelled: in their queue, at the moment they start, while they run, after they ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from aiorpcq import Client, Task, TaskRevoked
from aiorpcq.protocol.control import CancelMode
from tests.contract.parties import PATIENCE, BystanderFactory, ClientFactory, WorkerFactory, eventually
from tests.contract.workbench import cancel

from .breaking import Breaker, until_left, until_queued
from .ledger import Ledger
from .waiting import Waiting

MODES = pytest.mark.parametrize("mode", ["skip", "kill", "killnowait"])

_TASKS = 20
_TURNS = 60


async def submitted(caller: Client) -> list[Task]:
    return [await caller.submit("wait", number) for number in range(_TASKS)]


def cancelled(tasks: Iterable[Task], mode: CancelMode) -> list[asyncio.Future[None]]:
    """Cancel tasks, and go on: "kill" waits for their end."""
    return [asyncio.ensure_future(task.cancel(mode)) for task in tasks]


async def outcomes(tasks: Iterable[Task]) -> list[Any]:
    """Return what the tasks come to: a value, or the class of an error."""
    async with asyncio.timeout(PATIENCE):
        settled = await asyncio.gather(*(task.result() for task in tasks), return_exceptions=True)
    return [type(outcome) if isinstance(outcome, BaseException) else outcome for outcome in settled]


@MODES
async def test_row_18_a_task_cancelled_in_its_queue_is_not_run_by_any_worker_that_is_up(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger, mode: CancelMode
) -> None:
    busy = [Waiting(), Waiting()]
    serving = [await worker(waiting.service, concurrency=1) for waiting in busy]
    caller = await client()
    holding = [ledger.call(caller, "wait", -1) for _ in busy]
    for waiting in busy:
        await waiting.gate.entered()
    tasks = await submitted(caller)
    cancels = cancelled(tasks, mode)
    await eventually(lambda: all(one.statistics().cancels == _TASKS for one in serving))
    assert all(task.done is (mode == "killnowait") for task in tasks)
    for waiting in busy:
        waiting.gate.open()
    assert await outcomes(tasks) == [TaskRevoked] * _TASKS
    await asyncio.gather(*cancels)
    assert await ledger.outcomes(holding) == [-1, -1]
    assert await caller.call("add", 1, 2) == 3  # behind all that was in the queue
    assert [waiting.runs for waiting in busy] == [[-1], [-1]]
    await eventually(lambda: sum(one.statistics().revoked for one in serving) == _TASKS)


@MODES
async def test_row_18_a_worker_that_came_later_is_told_at_its_started(
    client: ClientFactory, worker: WorkerFactory, mode: CancelMode
) -> None:
    waiting = Waiting()
    await (await worker(Waiting().service)).aclose()
    caller = await client()
    tasks = await submitted(caller)
    cancels = cancelled(tasks, mode)
    await eventually(lambda: caller.statistics().cancelled == _TASKS)
    late = await worker(waiting.service)
    await waiting.gate.entered(_TASKS)
    if mode == "skip":
        await eventually(lambda: late.statistics().cancels >= _TASKS)
        waiting.gate.open()
        assert await outcomes(tasks) == list(range(_TASKS))
        assert waiting.stopped == []
    else:
        assert await outcomes(tasks) == [TaskRevoked] * _TASKS
        await eventually(lambda: len(waiting.stopped) == _TASKS)
        assert waiting.ended == []
    await asyncio.gather(*cancels)


async def test_row_18_a_call_cancelled_by_its_caller_is_stopped_by_a_worker_that_came_later(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    waiting = Waiting()
    await (await worker(Waiting().service)).aclose()
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_TASKS)]
    await until_queued(breaker, _TASKS)
    for call in calls:
        call.cancel()
    await ledger.outcomes(calls)
    await worker(waiting.service)
    await waiting.gate.entered(_TASKS)
    await eventually(lambda: len(waiting.stopped) == _TASKS)
    assert waiting.ended == []
    assert caller.statistics().pending == 0


@MODES
async def test_row_18_a_cancel_at_any_moment_around_the_start_stops_a_run_or_prevents_it(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, mode: CancelMode
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service, concurrency=_TURNS)
    caller = await client()
    calls: list[asyncio.Future[Any]] = []
    cancels: list[asyncio.Future[None]] = []
    for turns in range(1, _TURNS):
        submitting = caller.with_options(task_id=f"t{turns}").submit("wait", turns)
        calls.append(asyncio.ensure_future(value_of(submitting)))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancels.append(asyncio.ensure_future(caller.cancel(f"t{turns}", mode)))
    await eventually(lambda: serving.statistics().cancels >= _TURNS - 1)
    if mode == "skip":
        waiting.gate.open()
    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*calls)
        await asyncio.gather(*cancels)
    await eventually(lambda: serving.statistics().running == 0)
    for turns, outcome in zip(range(1, _TURNS), found, strict=True):
        assert outcome == (turns if mode == "skip" and turns in waiting.runs else TaskRevoked)
    assert sorted(waiting.ended if mode == "skip" else waiting.stopped) == sorted(waiting.runs)
    assert len(set(waiting.runs)) == len(waiting.runs)
    await until_left(breaker)


async def value_of(submitting: Any) -> Any:
    """Return what becomes of a task that may be revoked before its caller has it."""
    try:
        return await (await submitting)
    except TaskRevoked:
        return TaskRevoked


@MODES
async def test_row_18_a_task_cancelled_while_it_runs_is_stopped_unless_it_was_only_to_be_skipped(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, mode: CancelMode
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service)
    caller = await client()
    tasks = await submitted(caller)
    await waiting.gate.entered(_TASKS)
    cancels = cancelled(tasks, mode)
    await eventually(lambda: serving.statistics().cancels >= _TASKS)  # a STARTED that comes after has it said again
    if mode == "skip":
        waiting.gate.open()
    assert await outcomes(tasks) == (list(range(_TASKS)) if mode == "skip" else [TaskRevoked] * _TASKS)
    await asyncio.gather(*cancels)
    await eventually(lambda: serving.statistics().running == 0)
    assert sorted(waiting.ended if mode == "skip" else waiting.stopped) == list(range(_TASKS))
    await until_left(breaker)


@MODES
async def test_row_18_a_cancel_after_the_end_has_no_effect(
    client: ClientFactory, worker: WorkerFactory, bystander: BystanderFactory, mode: CancelMode
) -> None:
    waiting = Waiting()
    waiting.gate.open()
    serving = await worker(waiting.service)
    caller, stranger = await client(), await bystander()
    replies = await stranger.reply_queue_of(caller)
    tasks = await submitted(caller)
    assert await outcomes(tasks) == list(range(_TASKS))
    await asyncio.gather(*cancelled(tasks, mode))
    for task in tasks:  # and one that crossed the answer
        await cancel(stranger, task.id, replies, mode)
    await eventually(lambda: serving.statistics().cancels == _TASKS)
    assert await outcomes(tasks) == list(range(_TASKS))
    assert [task.state for task in tasks] == ["SUCCESS"] * _TASKS
    assert (serving.statistics().revoked, waiting.stopped, caller.statistics().duplicates) == (0, [], 0)
