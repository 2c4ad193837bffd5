"""Links that go silent and do not end: no FIN, no RST, no heartbeat."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiorpcq import Client, DeadlineExceeded, Worker
from aiorpcq.deadline import RETURN_GRACE
from aiorpcq.transports.amqp.stream import _LOOKS_PER_HEARTBEAT
from tests.contract.parties import PATIENCE, ClientFactory, WorkerFactory, eventually
from tests.proxy import Proxy

from .ledger import Ledger
from .link import BreakableLink
from .marks import amqp_only
from .waiting import Waiting

_HEARTBEAT = 1  # the shortest that can be agreed on, in seconds
_TIMEOUT = 0.4
_TURNS = 10
_CALLS = 50


def now() -> float:
    return asyncio.get_running_loop().time()


async def hurry(ledger: Ledger, caller: Client) -> None:
    """Make a call on the silent link, and check that it ends at its deadline: before a timer that is due later."""
    began = now()
    call = ledger.call(caller.with_options(timeout=_TIMEOUT), "wait", -1)
    ended: list[float] = []
    call.add_done_callback(lambda _: ended.append(now()))
    await asyncio.sleep(_TIMEOUT + 2 * RETURN_GRACE)
    for _ in range(_TURNS):  # where the machine stood still, both are due by now
        await asyncio.sleep(0)
    assert ended
    assert ended[0] - began >= _TIMEOUT
    (outcome,) = await ledger.outcomes([call])
    assert isinstance(outcome, DeadlineExceeded)
    assert outcome.maybe_executed


async def until_noticed(party: Client | Worker, since: float, looks: Counter[float], before: float) -> None:
    """Wait until the link of *party* is given up, and check that it took two heartbeats at the most.

    Its lane had looked *before* times when the silence began.
    """
    async with asyncio.timeout(PATIENCE):
        while "not connected" not in (party.health().reason or ""):  # noqa: ASYNC110 - who asks is told, nobody else
            await asyncio.sleep(0.01)
    assert now() - since > _HEARTBEAT
    assert looks[_HEARTBEAT] - before <= 2 * _LOOKS_PER_HEARTBEAT


async def test_row_09_the_timers_of_a_silent_client_fire_and_its_calls_get_their_values_on_the_next_link(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, client_link: BreakableLink
) -> None:
    waiting = Waiting()
    await worker(waiting.service)
    caller = await client(url=client_link.url)
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_CALLS)
    await client_link.silence()
    waiting.gate.open()
    await hurry(ledger, caller)
    assert not any(call.done() for call in calls)
    await client_link.reset()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert sorted(waiting.runs) == list(range(_CALLS))


async def test_row_09_the_timers_of_a_silent_worker_fire_and_its_runs_are_answered_on_the_next_link(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, worker_link: BreakableLink
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service, url=worker_link.url)
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    hurried = ledger.call(caller.with_options(timeout=_TIMEOUT), "wait", -1)
    await waiting.gate.entered(_CALLS + 1)
    await worker_link.silence()
    assert isinstance((await ledger.outcomes([hurried]))[0], DeadlineExceeded)
    await eventually(lambda: waiting.stopped == [-1])
    assert serving.statistics().expired == 1
    waiting.gate.open()
    await eventually(lambda: len(waiting.ended) == _CALLS)
    await worker_link.reset()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert serving.statistics().started == _CALLS + 1


@amqp_only
async def test_row_09_a_client_notices_the_silence_within_two_heartbeats_and_gets_every_value(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, proxy: Proxy, url: str, looks: Counter[float]
) -> None:
    waiting = Waiting()
    await worker(waiting.service)
    caller = await client(url=f"{proxy.url(url)}?heartbeat={_HEARTBEAT}")
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_CALLS)
    proxy.blackhole()
    silent_since, before = now(), looks[_HEARTBEAT]
    waiting.gate.open()
    await hurry(ledger, caller)
    await until_noticed(caller, silent_since, looks, before)
    assert not any(call.done() for call in calls)
    proxy.heal()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    # What the link held comes late, the hurried request too.
    assert sorted(number for number in waiting.runs if number >= 0) == list(range(_CALLS))
    assert caller.statistics().generation == 2


@amqp_only
async def test_row_09_a_worker_notices_the_silence_within_two_heartbeats_and_runs_nothing_twice(
    client: ClientFactory, worker: WorkerFactory, ledger: Ledger, proxy: Proxy, url: str, looks: Counter[float]
) -> None:
    waiting = Waiting()
    serving = await worker(waiting.service, url=f"{proxy.url(url)}?heartbeat={_HEARTBEAT}")
    caller = await client()
    calls = [ledger.call(caller, "wait", number) for number in range(_CALLS)]
    await waiting.gate.entered(_CALLS)
    proxy.blackhole()
    await until_noticed(serving, now(), looks, looks[_HEARTBEAT])
    proxy.heal()
    await eventually(lambda: serving.statistics().adopted == _CALLS)
    waiting.gate.open()
    assert await ledger.outcomes(calls) == list(range(_CALLS))
    assert sorted(waiting.runs) == list(range(_CALLS))
