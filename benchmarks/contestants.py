"""The programs that are compared: each library as its documentation shows it, with all its defaults."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from aio_pika import connect_robust
from aio_pika.patterns import RPC

from aiorpcq import Client, Service, Worker

__all__ = ["AIORPCQ", "AIO_PIKA", "CALLERS", "MEMORY", "WORKERS", "Call", "Setup"]

AIORPCQ = "aiorpcq"
AIO_PIKA = "aio-pika"
MEMORY = "memory://"

Call = Callable[[int, int], Awaitable[Any]]
"""Calls `add` with two numbers."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What caller and worker agree on.

    Attributes:
        url: of the broker.
        prefix: what the names of aiorpcq's exchanges and queues begin with.
        method: what aio-pika calls its method, and so its queue.
    """

    url: str
    prefix: str
    method: str


async def add(a: int, b: int) -> int:
    return a + b


@contextlib.asynccontextmanager
async def _aiorpcq_caller(setup: Setup) -> AsyncIterator[Call]:
    async with Client(setup.url, prefix=setup.prefix) as client:
        yield lambda a, b: client.call("add", a, b)


@contextlib.asynccontextmanager
async def _aiorpcq_worker(setup: Setup) -> AsyncIterator[None]:
    service = Service()
    service.method(add)
    async with Worker(setup.url, [service], prefix=setup.prefix):
        yield


# Connection, channel and registration are those of the RPC pattern's examples in aio-pika's documentation.


@contextlib.asynccontextmanager
async def _aio_pika_caller(setup: Setup) -> AsyncIterator[Call]:
    connection = await connect_robust(setup.url)
    async with connection:
        channel = await connection.channel()
        rpc = await RPC.create(channel)
        yield lambda a, b: rpc.call(setup.method, {"a": a, "b": b})


@contextlib.asynccontextmanager
async def _aio_pika_worker(setup: Setup) -> AsyncIterator[None]:
    connection = await connect_robust(setup.url)
    async with connection:
        channel = await connection.channel()
        rpc = await RPC.create(channel)
        await rpc.register(setup.method, add, auto_delete=True)
        yield


@contextlib.asynccontextmanager
async def _memory_caller(_: Setup) -> AsyncIterator[Call]:
    """Client and worker in one process, which is all that `memory://` can be."""
    setup = Setup("memory://benchmark", "rpc", "add")
    async with _aiorpcq_worker(setup), _aiorpcq_caller(setup) as call:
        yield call


CALLERS: dict[str, Callable[[Setup], AbstractAsyncContextManager[Call]]] = {
    AIORPCQ: _aiorpcq_caller,
    AIO_PIKA: _aio_pika_caller,
    MEMORY: _memory_caller,
}

WORKERS: dict[str, Callable[[Setup], AbstractAsyncContextManager[None]]] = {
    AIORPCQ: _aiorpcq_worker,
    AIO_PIKA: _aio_pika_worker,
}
