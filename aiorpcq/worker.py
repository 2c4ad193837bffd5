"""Worker: serves the methods of services."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

import anyio

from .codec import Codecs
from .deadline import check_timeout
from .errors import RPCError, UsageError
from .executor import Executor, Places
from .limits import DEFAULT_MAX_SIZE, check_integer, check_max_size
from .protocol.executions import ExecutionTable
from .protocol.terminals import CacheLimits
from .protocol.topology import Names
from .publisher import PublisherStatistics, ResultPublisher
from .service import DeliveryMode, Service, check_delivery
from .transports.base import Link, Subscription
from .transports.registry import make_transport
from .transports.supervisor import Supervisor

__all__ = ["Worker", "WorkerStatistics"]

logger = logging.getLogger("aiorpcq.worker")

_MOST_PREFETCH: Final = 65_535  # a short integer in Basic.Qos
_MOST_THREADS: Final = 10_000

_CANCEL_TIMEOUT: Final = 2.0
"""Seconds that a closing worker waits for the broker to stop delivering."""

_CONFIRM_TIMEOUT: Final = 5.0
"""Seconds that a closing worker waits for the confirms of what it has published."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker does now, and what it has counted.

    Attributes:
        running: executions that have not ended.
        started: requests whose method was run.
        adopted: redeliveries of what ran here already.
        answered: redeliveries that got their terminal state from the cache.
        expired: runs that were stopped at their deadline.
        rejected: messages that were no requests.
        cached: terminal states that are held for duplicates.
        cached_size: their bytes.
        publisher: what the publisher has counted.
    """

    running: int
    started: int
    adopted: int
    answered: int
    expired: int
    rejected: int
    cached: int
    cached_size: int
    publisher: PublisherStatistics


class Worker:
    """Serves *services* on the broker at *url*.

    `run` serves until SIGTERM or SIGINT; as an async context manager the worker serves as long as the block runs. It
    belongs to the event loop it was started on.

    Args:
        url: as for `Client`.
        services: what to serve; their names must differ.
        concurrency: how many requests of each service run at once. It is the prefetch too: what is delivered is run.
        threads: how many plain `def` methods run at once, of all services.
        delivery: default of the methods' `delivery`.
        codecs: how arguments are decoded and values encoded; msgpack, accepting JSON too, by default.
        cache: bounds of the cache of terminal states.
        max_size: bytes a body may have, encoded.
        grace: seconds that a stopping worker lets its runs go on before it cancels them.
        prefix: as for `Client`.

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    def __init__(
        self,
        url: str,
        services: Iterable[Service],
        *,
        concurrency: int = 100,
        threads: int = 40,
        delivery: DeliveryMode = "at_least_once",
        codecs: Codecs | None = None,
        cache: CacheLimits | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        grace: float = 30.0,
        prefix: str = "rpc",
    ) -> None:
        check_integer(concurrency, "concurrency", 1, _MOST_PREFETCH)
        check_integer(threads, "threads", 1, _MOST_THREADS)
        check_max_size(max_size)
        if grace is None:
            raise ValueError("grace: None is not a number of seconds")
        check_timeout(grace, "grace")
        self._services = _by_name(services)
        self._names = Names(prefix)
        self._concurrency = concurrency
        self._delivery = check_delivery(delivery) or "at_least_once"
        self._codecs = codecs or Codecs(max_size=max_size)
        self._grace = grace
        self._max_size = max_size
        self._table = ExecutionTable(cache or CacheLimits())
        self._transport = make_transport(url, max_size=max_size, name="aiorpcq worker")
        self.id = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._threads = threads
        self._parts: _Parts | None = None
        self._subscriptions: list[Subscription] = []
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.id} of {', '.join(self._services)} at {self._transport.address}>"

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal cancels what still runs.

        Raises:
            ConnectFailed: the broker cannot be reached or refuses what is needed.
            TopologyMismatch: a service's queue exists with other arguments.
        """
        async with self:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    break
                logger.info("draining")
                closing = asyncio.ensure_future(self.aclose())
                hurry = asyncio.ensure_future(anext(aiter(signals)))
                try:
                    await asyncio.wait((closing, hurry), return_when=asyncio.FIRST_COMPLETED)
                    if not closing.done():
                        self._started.executor.cancel_runs()
                    await closing
                finally:
                    hurry.cancel()
                    await asyncio.gather(hurry, return_exceptions=True)

    async def start(self) -> None:
        """Connect, declare the services' queues and serve them.

        Raises:
            ConnectFailed, TopologyMismatch: as for `run`.
            UsageError: the worker was started before.
        """
        if self._parts is not None:
            raise UsageError("a worker is started once")
        loop = asyncio.get_running_loop()
        confirmed = asyncio.Event()
        publisher = ResultPublisher(self._table, self._codecs, self._max_size, self.id, loop, confirmed.set)
        executor = Executor(
            self._table,
            publisher,
            self._codecs,
            loop,
            delivery=self._delivery,
            threads=self._threads,
            max_size=self._max_size,
        )
        supervisor = Supervisor(self._transport, self._setup, self._on_lost, logger)
        places = {name: Places(service.methods, self._concurrency) for name, service in self._services.items()}
        self._parts = _Parts(publisher, executor, supervisor, confirmed, places)
        try:
            await supervisor.start()
        except BaseException:
            # One service may have been served already when another could not be.
            executor.drain()
            executor.cancel_runs()
            await asyncio.gather(*executor.tasks, return_exceptions=True)
            executor.close()
            raise
        logger.info("worker %s serves %s", self.id, ", ".join(self._services))

    async def aclose(self) -> None:
        """Drain and stop: nothing is lost. Idempotent.

        Intake stops; what was delivered and not begun goes back to its queue; what runs gets `grace` seconds, then it
        is cancelled and its request goes back too; terminal states are confirmed; the connection is closed.
        """
        if self._parts is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._drain(), name="aiorpcq worker drain")
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def statistics(self) -> WorkerStatistics:
        """Return a snapshot."""
        table, executor = self._table, self._started.executor
        return WorkerStatistics(
            running=len(table.running),
            started=executor.started,
            adopted=table.adopted,
            answered=table.answered,
            expired=executor.expired,
            rejected=executor.rejected,
            cached=len(table.cache),
            cached_size=table.cache.size,
            publisher=self._started.publisher.statistics(),
        )

    @property
    def _started(self) -> _Parts:
        if self._parts is None:
            raise UsageError("the worker is not started")
        return self._parts

    async def _setup(self, link: Link, generation: int) -> None:
        """Declare and consume on a new connection; what was unacknowledged on the last one comes again by itself."""
        names, parts = self._names, self._started
        await link.declare(names.requests, names.control)
        parts.publisher.link = link
        self._subscriptions = []
        for service in self._services.values():
            queue = names.service_queue(service.name, service.queue_arguments)
            await link.declare(queue, names.binding(service.name))
        if parts.executor.draining:
            return  # what runs may still be answered
        for name, places in parts.places.items():
            on_delivery = partial(parts.executor.on_delivery, places)
            queue = names.service_queue(name)
            self._subscriptions.append(await link.consume(queue.name, on_delivery, prefetch=self._concurrency))

    def _on_lost(self, error: RPCError) -> None:
        """Let runs go on: their requests are redelivered, here or elsewhere, and adopted where they still run."""
        self._started.publisher.link = None
        self._subscriptions = []

    async def _drain(self) -> None:
        parts = self._started
        executor = parts.executor
        executor.drain()
        with contextlib.suppress(RPCError, TimeoutError):
            # A broker that has blocked us does not answer; what it still delivers goes back by itself.
            async with asyncio.timeout(_CANCEL_TIMEOUT):
                for subscription in self._subscriptions:
                    await subscription.cancel()
        tasks = set(executor.tasks)
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=self._grace)
            if running:
                logger.warning("%d runs did not end within the grace of %g s", len(running), self._grace)
                executor.cancel_runs()
                await asyncio.wait(running, timeout=_CONFIRM_TIMEOUT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                while parts.publisher.unconfirmed:
                    parts.confirmed.clear()
                    await parts.confirmed.wait()
        executor.close()
        await parts.supervisor.close()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a started worker is made of; *confirmed* is set when no terminal state is unconfirmed.

    *places* are those of its services, by name.
    """

    publisher: ResultPublisher
    executor: Executor
    supervisor: Supervisor
    confirmed: asyncio.Event
    places: dict[str, Places]


def _by_name(services: Iterable[Service]) -> dict[str, Service]:
    by_name: dict[str, Service] = {}
    for service in services:
        if not isinstance(service, Service):
            raise ValueError(f"services: a {type(service).__name__} is not a Service")
        if service.name in by_name:
            raise ValueError(f"services: two are named {service.name!r}")
        by_name[service.name] = service
    if not by_name:
        raise ValueError("services: there is none")
    return by_name
