"""Clients that lose their connection, or their reply queue, with calls under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiorpcq import ConnectionLost
from tests.contract.breaking import next_generation
from tests.contract.parties import ClientFactory, WorkerFactory, calculator, eventually

from .breaking import Breaker, until_queued
from .ledger import Ledger
from .link import BreakableLink
from .waiting import Waiting

_CALLS = 300
_PLACES = 100
_REPLY_QUEUES = "rpc.reply."


# --- row 8


async def test_row_08_every_call_that_runs_or_waits_in_the_queue_at_the_reset_gets_its_value(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger, client_link: BreakableLink
) -> None:
    waiting = Waiting()
    await worker(waiting.service, concurrency=_PLACES)
    caller = await client(url=client_link.url)
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_PLACES)
    await until_queued(breaker, _CALLS)
    await client_link.reset()
    await eventually(lambda: caller.statistics().generation == 2)
    waiting.gate.open()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert sorted(waiting.runs) == list(range(_CALLS))
    assert caller.statistics().republished == 0
    assert caller.statistics().resumed == _CALLS


async def test_row_08_answers_that_are_under_way_at_the_reset_are_sent_again(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger, client_link: BreakableLink
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service, concurrency=_CALLS)
    caller = await client(url=client_link.url)
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_CALLS)
    await client_link.silence()
    waiting.gate.open()
    await eventually(lambda: serving.statistics().cached == _CALLS)  # the broker has confirmed every answer
    assert not any(call.done() for call in calls)
    await client_link.reset()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert sorted(waiting.runs) == list(range(_CALLS))
    assert serving.statistics().publisher.resent >= _CALLS


async def test_row_08_a_client_that_is_reset_again_and_again_under_load_gets_every_value(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, client_link: BreakableLink
) -> None:
    await worker(calculator())
    caller = await client(url=client_link.url, idempotent=["add"])
    calls = []
    for generation in (2, 3, 4):
        calls += [ledger.call(caller, "add", number, 1) for number in range(_CALLS)]
        await asyncio.wait(calls[-_CALLS:], return_when=asyncio.FIRST_COMPLETED)  # the others are anywhere
        await client_link.reset()
        await eventually(lambda generation=generation: caller.statistics().generation >= generation)  # type: ignore[misc]
    assert await ledger.outcomes(calls) == [number + 1 for number in range(_CALLS)] * 3


# --- row 10


async def test_row_10_a_request_that_arrived_unconfirmed_is_resolved_by_the_resume(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, client_link: BreakableLink
) -> None:
    waiting = Waiting()
    await worker(waiting.service)
    caller = await client(url=client_link.url)
    await client_link.silence_receiving()
    call = ledger.call(caller, "wait", 1)
    await waiting.gate.entered()
    await client_link.reset()
    await eventually(lambda: caller.statistics().generation == 2)
    waiting.gate.open()
    assert await call == 1
    assert waiting.runs == [1]
    assert (caller.statistics().republished, caller.statistics().resumed) == (0, 1)


async def test_row_10_a_request_that_arrived_unconfirmed_is_sent_again_if_it_is_idempotent_and_runs_once_in_one_worker(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, client_link: BreakableLink
) -> None:
    waiting = Waiting()
    await worker(waiting.service)
    caller = await client(url=client_link.url, idempotent=["wait"])
    await client_link.silence_receiving()
    call = ledger.call(caller, "wait", 1)
    await waiting.gate.entered()
    await client_link.reset()
    await eventually(lambda: caller.statistics().republished == 1)
    waiting.gate.open()
    assert await call == 1
    assert waiting.runs == [1]


async def test_row_10_a_request_that_was_lost_with_the_connection_is_sent_again_if_it_is_idempotent(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, client_link: BreakableLink
) -> None:
    serving = await worker(calculator())
    caller = await client(url=client_link.url)
    await client_link.silence_sending()
    calls = [ledger.call(caller.with_options(idempotent=True), "add", number, 1) for number in range(20)]
    await eventually(lambda: caller.statistics().pending == 20)
    await client_link.reset()
    assert await ledger.outcomes(calls) == [number + 1 for number in range(20)]
    assert serving.statistics().started == 20
    assert caller.statistics().republished == 20


async def test_row_10_a_request_that_was_lost_and_is_not_idempotent_may_have_run_and_ends_at_its_deadline(
    client: ClientFactory,
    worker: WorkerFactory,
    ledger: Ledger,
    client_link: BreakableLink,
    jump: Callable[[float], None],
) -> None:
    serving = await worker(calculator())
    caller = await client(url=client_link.url, timeout=10)
    await client_link.silence_sending()
    calls = [ledger.call(caller, "add", number, 1) for number in range(20)]
    await eventually(lambda: caller.statistics().pending == 20)
    await client_link.reset()
    await next_generation(caller)
    assert not any(call.done() for call in calls)
    jump(11)
    for outcome in await ledger.outcomes(calls):
        assert isinstance(outcome, ConnectionLost)
        assert outcome.maybe_executed
    assert caller.statistics().republished == 0
    assert await caller.call("add", 1, 2) == 3
    assert serving.statistics().started == 1


# --- row 12


async def test_row_12_a_deleted_reply_queue_is_replaced_and_every_pending_call_gets_its_value(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    waiting = Waiting()
    await worker(waiting.service, concurrency=_PLACES)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_PLACES)
    await until_queued(breaker, _CALLS)
    (former,) = await reply_queues(breaker)
    await breaker.delete_queue(former)
    await eventually(lambda: caller.statistics().generation == 2 and caller.health().ready)
    (present,) = await reply_queues(breaker)
    assert present != former
    waiting.gate.open()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert sorted(waiting.runs) == list(range(_CALLS))
    assert await caller.call("add", 1, 2) == 3


async def test_row_12_answers_that_find_the_reply_queue_deleted_are_sent_to_the_next(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger
) -> None:
    waiting = Waiting()
    await worker(waiting.service, concurrency=_CALLS)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_CALLS)
    (former,) = await reply_queues(breaker)
    waiting.gate.open()
    await breaker.delete_queue(former)
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert sorted(waiting.runs) == list(range(_CALLS))
    await eventually(lambda: caller.statistics().generation == 2)


async def reply_queues(breaker: Breaker) -> list[str]:
    return [name for name in await breaker.leftovers() if name.startswith(_REPLY_QUEUES)]
