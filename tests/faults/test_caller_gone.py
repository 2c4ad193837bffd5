"""Callers that die: what becomes of their requests, of their runs, and of the answers that nobody takes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Protocol

import pytest

from aiorpcq import CacheLimits, Worker
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from tests.contract.parties import (
    PATIENCE,
    Bystander,
    BystanderFactory,
    ClientFactory,
    Gate,
    WorkerFactory,
    eventually,
    request_for,
)

from .breaking import Breaker, until_left, until_queued
from .ledger import Ledger
from .waiting import Waiting

_CALLS = 10
_GRACE = 0.3
_CACHE_AGE = 0.3
_EXPIRATION = 1.0
_ROOT: Final = Path(__file__).resolve().parents[2]

_PROGRAM: Final = """
import asyncio, sys
from aiorpcq import Client
from aiorpcq.protocol.calls import Sending

async def main(url, timeout, count):
    async with Client(url, timeout=float(timeout)) as client:
        calls = [asyncio.ensure_future(client.call("wait", number)) for number in range(int(count))]
        pending = client._session.router().table.pending
        while len(pending) < len(calls) or any(call.sending is not Sending.CONFIRMED for call in pending.values()):
            await asyncio.sleep(0.001)
        print("confirmed", flush=True)
        await asyncio.gather(*calls)

asyncio.run(main(*sys.argv[1:]))
"""


class Caller(Protocol):
    """Calls `wait` ten times, each confirmed, and dies when it is told to.

    *replies* is its reply queue, once a call of it is there.
    """

    async def call(self, timeout: float = 30.0) -> None: ...

    async def replies(self) -> str: ...

    async def die(self) -> None: ...


class CallerProcess:
    """See `Caller`: a process, and SIGKILL."""

    def __init__(self, url: str, breaker: Breaker) -> None:
        self._url = url
        self._breaker = breaker
        self._others: set[str] = set()
        self._process: asyncio.subprocess.Process | None = None

    async def call(self, timeout: float = 30.0) -> None:
        self._others = await self._reply_queues()
        arguments = (self._url, str(timeout), str(_CALLS))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROGRAM, *arguments, cwd=_ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await self._process.stdout.readline() == b"confirmed\n"

    async def die(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def replies(self) -> str:
        (own,) = await self._reply_queues() - self._others
        return own

    async def _reply_queues(self) -> set[str]:
        return {name for name in await self._breaker.leftovers() if name.startswith("rpc.reply.")}


class CallerLink:
    """See `Caller`: a link to a broker in memory, and its end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._replies = ""
        self._stack = AsyncExitStack()

    async def call(self, timeout: float = 30.0) -> None:
        link = await self._stack.enter_async_context(Bystander.connected(self._url))
        self._replies = (await link.reply_queue()).name
        for number in range(_CALLS):
            await link.request(
                request_for("wait", number, task_id=f"t{number}", reply_to=self._replies, expiration=timeout)
            )

    async def die(self) -> None:
        await self._stack.aclose()

    async def replies(self) -> str:
        return self._replies


@pytest.fixture
async def doomed(url: str, breaker: Breaker, opened: AsyncExitStack) -> AsyncIterator[Caller]:
    caller: Caller = CallerLink(url) if url.startswith("memory://") else CallerProcess(url, breaker)
    yield caller
    await caller.die()


@pytest.fixture(params=["cancel", "finish"])
def says(request: pytest.FixtureRequest) -> str:
    """What the method says about callers that are gone."""
    chosen: str = request.param
    return chosen


class Party:
    """A worker whose places are taken by a caller that lives, until `release`."""

    def __init__(self, says: str) -> None:
        self.waiting = Waiting(on_caller_gone=says)
        self._held = Gate()
        self._calls: list[Awaitable[None]] = []

        @self.waiting.service.method
        async def hold() -> None:
            await self._held.wait()

    async def start(self, worker: WorkerFactory) -> Worker:
        return await worker(
            self.waiting.service, concurrency=_CALLS, caller_gone_grace=_GRACE, cache=CacheLimits(age=_CACHE_AGE)
        )

    async def occupy(self, client: ClientFactory, ledger: Ledger) -> None:
        caller = await client()
        self._calls = [ledger.call(caller, "hold") for _ in range(_CALLS)]
        await self._held.entered(_CALLS)

    async def release(self) -> None:
        self._held.open()
        await asyncio.gather(*self._calls)


async def check_end(party: Party, serving: Worker, says: str, since: float) -> None:
    """Check what becomes of runs whose caller is gone, and that their answers do not stay."""
    waiting, loop = party.waiting, asyncio.get_running_loop()
    if says == "cancel":
        await eventually(lambda: len(waiting.stopped) == _CALLS)
        assert loop.time() - since >= _GRACE
        waiting.gate.open()
    else:
        waiting.gate.open()
        await eventually(lambda: len(waiting.ended) == _CALLS)
    assert (len(waiting.stopped), len(waiting.ended)) == ((_CALLS, 0) if says == "cancel" else (0, _CALLS))
    await eventually(lambda: serving.statistics().publisher.returned == _CALLS)
    await eventually(lambda: serving.statistics().cached == 0)
    statistics = serving.statistics()
    assert statistics.callers_gone == (_CALLS if says == "cancel" else 0)
    assert sorted(waiting.runs) == list(range(_CALLS))
    assert (statistics.running, statistics.cached_size) == (0, 0)


async def until_gone(stranger: Bystander, replies: str) -> None:
    """Wait until nothing is routed to a reply queue any more: one that is being deleted may still take messages."""
    async with asyncio.timeout(PATIENCE):
        while await stranger.publish(Publication("", replies, Properties(), b"")) is not Outcome.RETURNED:
            pass  # each try is an exchange with the broker


async def test_row_17_runs_of_a_caller_that_died_are_finished_or_stopped_as_their_method_says(
    worker: WorkerFactory, bystander: BystanderFactory, breaker: Breaker, doomed: Caller, says: str
) -> None:
    party, stranger = Party(says), await bystander()
    serving = await party.start(worker)
    await doomed.call()
    await party.waiting.gate.entered(_CALLS)
    replies = await doomed.replies()
    died_at = asyncio.get_running_loop().time()
    await doomed.die()
    await until_gone(stranger, replies)
    await check_end(party, serving, says, died_at)
    await until_left(breaker)


async def test_row_17_queued_requests_of_a_caller_that_died_are_finished_or_stopped_as_their_method_says(
    client: ClientFactory,
    worker: WorkerFactory,
    bystander: BystanderFactory,
    breaker: Breaker,
    ledger: Ledger,
    doomed: Caller,
    says: str,
) -> None:
    party, stranger = Party(says), await bystander()
    serving = await party.start(worker)
    await party.occupy(client, ledger)
    await doomed.call()
    await until_queued(breaker, 2 * _CALLS)
    replies = await doomed.replies()
    await doomed.die()
    await until_gone(stranger, replies)
    assert party.waiting.runs == []
    began = asyncio.get_running_loop().time()
    await party.release()
    await check_end(party, serving, says, began)
    await until_left(breaker)


async def test_row_17_queued_requests_of_a_caller_that_died_are_dropped_when_they_expire(
    client: ClientFactory, worker: WorkerFactory, breaker: Breaker, ledger: Ledger, doomed: Caller, says: str
) -> None:
    party = Party(says)
    serving = await party.start(worker)
    await party.occupy(client, ledger)
    await doomed.call(timeout=_EXPIRATION)
    await doomed.die()
    await until_left(breaker, _CALLS)
    await party.release()
    await eventually(lambda: serving.statistics().running == 0)
    assert party.waiting.runs == []
    assert serving.statistics().started == _CALLS
    await until_left(breaker)
