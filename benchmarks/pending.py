"""What a pending call holds in memory, measured where it is pending: in the caller's process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from aiorpcq import Client, DeadlineExceeded, Service, Worker

from .contestants import Setup

__all__ = ["SERVICES", "PendingCalls", "open_pending_calls", "silent_worker"]

_SENT = "sent"
"""Service of the casts that tell when requests have left."""

_SILENT = "silent"
"""Service of the calls that are answered only when their time is up."""

_ABANDONED = "abandoned"
"""The same for calls that are cancelled: their requests stay in its queue, out of the way of the others."""

SERVICES = (_SENT, _SILENT, _ABANDONED)

_BATCH = 500
_REST_SECONDS = 1.0
_LONG_SECONDS = 3_600.0


class NotPending(Exception):
    """Calls ended that should have stayed pending, or the other way round."""


@contextlib.asynccontextmanager
async def silent_worker(setup: Setup) -> AsyncIterator[None]:
    """A worker that lets calls wait until their deadline."""
    services = [Service(name) for name in SERVICES]

    async def wait(a: int, b: int) -> None:
        await asyncio.get_running_loop().create_future()

    async def note() -> None:
        """Nothing."""

    services[0].method(note)
    for service in services[1:]:
        service.method(wait)
    logging.getLogger("aiorpcq.worker").setLevel(logging.ERROR)  # that runs do not end in time is meant
    async with Worker(setup.url, services, prefix=setup.prefix, grace=0):
        yield


class PendingCalls:
    """Makes calls that stay pending, and weighs them with tracemalloc.

    What is weighed is what the library holds for a call: its coroutine, its future, its entries in tables and timers.
    A call needs a task to wait in, which is the caller's own. Its weight, that of a task with a coroutine that awaits a
    future but without this future, is measured apart and taken off.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def weigh(self, calls: int) -> dict[str, float]:
        """Return the bytes of one of so many pending calls, of the task in it, and the seconds it took to make them."""
        await _weigh_tasks(calls)  # once for nothing: asyncio's set of all tasks grows, and keeps the room
        own = await _weigh_tasks(calls)
        client = self._client.with_options(timeout=_LONG_SECONDS)
        before = _traced()
        begin = time.monotonic()
        tasks = await self._start(client, f"{_ABANDONED}.wait", calls)
        seconds = time.monotonic() - begin
        await self._rest(calls)
        held = _traced() - before
        await _cancel(tasks)
        return {"call": held / calls - own, "task": own, "seconds": seconds}

    async def time_out(self, calls: int, timeout: float) -> dict[str, float]:
        """Let so many calls be pending and time out; return the bytes that are held then, all told."""
        client = self._client.with_options(timeout=timeout)
        tasks = await self._start(client, f"{_SILENT}.wait", calls)
        if self._client.statistics().pending < calls:
            raise NotPending(f"a timeout of {timeout:g} s ended calls before all {calls} were made")
        await asyncio.wait(tasks)
        for task in tasks:
            if not isinstance(task.exception(), DeadlineExceeded):
                raise NotPending("a call that is never answered did not time out") from task.exception()
        del task  # it would keep the last call's error
        tasks.clear()
        await self._rest(0)
        return {"held": _traced()}

    async def _start(self, client: Client, method: str, calls: int) -> list[asyncio.Task[Any]]:
        """Make so many calls; return once the broker has all but the last few, which `_rest` waits for."""
        tasks: list[asyncio.Task[Any]] = []
        while len(tasks) < calls:
            batch = min(_BATCH, calls - len(tasks))
            tasks += [asyncio.create_task(_wait(client.call(method, 1, 2))) for _ in range(batch)]
            await self._client.cast(f"{_SENT}.note")  # goes out behind the batch
        return tasks

    async def _rest(self, pending: int) -> None:
        """Wait until nothing moves any more, with so many calls pending."""
        await asyncio.sleep(_REST_SECONDS)
        counted = self._client.statistics().pending
        if counted != pending:
            raise NotPending(f"{counted} calls are pending where {pending} should be")


@contextlib.asynccontextmanager
async def open_pending_calls(setup: Setup) -> AsyncIterator[PendingCalls]:
    """Connect to where `silent_worker` serves."""
    async with Client(setup.url, prefix=setup.prefix) as client:
        await client.cast(f"{_SENT}.note")
        tracemalloc.start()
        yield PendingCalls(client)


async def _wait(awaitable: Awaitable[Any]) -> Any:
    """The least that a caller does in its task."""
    return await awaitable


async def _weigh_tasks(count: int) -> float:
    """Return the bytes of one of so many tasks that await a future, without the future."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(count)]
    before = _traced()
    tasks = [asyncio.create_task(_wait(future)) for future in futures]
    await asyncio.sleep(0)
    own = (_traced() - before) / count
    await _cancel(tasks)
    del tasks, futures
    await asyncio.sleep(0)  # the event loop lets go of what it has just run
    return own


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
