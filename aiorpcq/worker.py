"""Worker: serves the methods of services."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import anyio

from .codec import Codecs
from .deadline import check_timeout
from .errors import RPCError, UsageError
from .health import Health
from .limits import DEFAULT_MAX_SIZE, CacheLimits, check_integer, check_iterable, check_kind, check_max_size
from .method import check_delivery
from .places import RunOptions
from .protocol.deliveries import DeliveryMode
from .protocol.executions import ExecutionTable
from .protocol.topology import Names
from .service import Service
from .serving import Serving, WorkerStatistics
from .transports.registry import make_transports

__all__ = ["Worker", "WorkerStatistics"]

logger = logging.getLogger("aiorpcq.worker")

_MOST_PREFETCH: Final = 65_535  # a short integer in Basic.Qos
_MOST_THREADS: Final = 10_000
_MOST_ATTEMPTS: Final = 1_000

_CANCEL_TIMEOUT: Final = 2.0
"""Seconds that a closing worker waits for the broker to stop delivering."""

_HURRY_TIMEOUT: Final = 0.5
"""Seconds that a worker that was told twice waits for the runs that it has cancelled."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SIGNAL_DELAY: Final = 0.1
"""Seconds that a signal may take from the process to the task that waits for it."""

_CONFIRM_TIMEOUT: Final = 5.0
"""Seconds that a closing worker waits for the confirms of what it has published."""


class Worker:
    """Serves *services* on the broker at *url*.

    `run` serves until SIGTERM or SIGINT; as an async context manager the worker serves as long as the block runs. It
    belongs to the event loop it was started on.

    Args:
        url: as for `Client`; several are tried in turn.
        services: what to serve; their names must differ.
        concurrency: how many requests of each service run at once. It is the prefetch too: what is delivered is run.
        threads: how many plain `def` methods run at once, of all services.
        delivery: default of the methods' `delivery`.
        max_attempts: default of the methods' `max_attempts`.
        codecs: how arguments are decoded and values encoded; msgpack, accepting JSON too, by default.
        cache: bounds of the cache of terminal states.
        max_size: bytes a body may have, encoded.
        grace: seconds that a stopping worker lets its runs go on before it cancels them.
        caller_gone_grace: seconds that a caller may be gone before runs of methods with `on_caller_gone="cancel"` are
            stopped. The default is more than a caller needs to notice a dead link and come back.
        prefix: as for `Client`.

    Raises:
        ValueError: an option is out of range; the text names it.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        services: Iterable[Service],
        *,
        concurrency: int = 100,
        threads: int = 40,
        delivery: DeliveryMode = "at_least_once",
        max_attempts: int = 5,
        codecs: Codecs | None = None,
        cache: CacheLimits | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        grace: float = 30.0,
        caller_gone_grace: float = 60.0,
        prefix: str = "rpc",
    ) -> None:
        check_integer(concurrency, "concurrency", 1, _MOST_PREFETCH)
        check_integer(threads, "threads", 1, _MOST_THREADS)
        check_max_size(max_size)
        check_kind(codecs, "codecs", Codecs)
        check_kind(cache, "cache", CacheLimits)
        check_integer(max_attempts, "max_attempts", 1, _MOST_ATTEMPTS)
        for option, seconds in (("grace", grace), ("caller_gone_grace", caller_gone_grace)):
            if seconds is None:
                raise ValueError(f"{option}: None is not a number of seconds")
            check_timeout(seconds, option)
        self._services = _by_name(services)
        self._names = Names(prefix)
        self.id = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._runs = RunOptions(
            self.id,
            check_delivery(delivery) or "at_least_once",
            max_attempts,
            concurrency,
            threads,
            max_size,
            caller_gone_grace,
        )
        self._codecs = codecs or Codecs(max_size=max_size)
        self._grace = grace
        self._table = ExecutionTable(cache or CacheLimits())
        self._transports = make_transports(url, max_size=max_size, name="aiorpcq worker")
        self._parts: Serving | None = None
        self._hurry: asyncio.Event | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        addresses = ", ".join(transport.address for transport in self._transports)
        return f"<Worker {self.id} of {', '.join(self._services)} at {addresses}>"

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends what still runs at once.

        A plain method that runs in a thread then cannot be stopped, and ends with the process, by that signal.

        Raises:
            ConnectFailed: the broker cannot be reached or refuses what is needed.
            TopologyMismatch: a service's queue exists with other arguments.
        """
        async with self:
            with anyio.open_signal_receiver(*_SIGNALS) as signals:
                async for _ in signals:
                    break
                logger.info("draining")
                closing = asyncio.ensure_future(self.aclose())
                hurry = asyncio.ensure_future(anext(aiter(signals)))
                try:
                    await asyncio.wait((closing, hurry), return_when=asyncio.FIRST_COMPLETED)
                    if self._hurry is not None and not closing.done():
                        self._hurry.set()
                    await closing
                    if self._started.executor.threads_run:
                        # One that came as the drain ended is still on its way through the event loop, which hears no
                        # later ones.
                        _unhandle_signals()
                        await asyncio.wait((hurry,), timeout=_SIGNAL_DELAY)
                        if hurry.done():
                            _end_process(hurry.result())
                finally:
                    hurry.cancel()
                    await asyncio.gather(hurry, return_exceptions=True)
            if self._started.executor.threads_run:
                _unhandle_signals()  # again: the receiver has put back Python's own handler of SIGINT

    async def start(self) -> None:
        """Connect, declare the services' queues and serve them.

        Raises:
            ConnectFailed, TopologyMismatch: as for `run`.
            UsageError: the worker was started before.
        """
        if self._parts is not None:
            raise UsageError("a worker is started once")
        parts = self._parts = Serving(
            self._transports, self._services, self._names, self._codecs, self._table, self._runs
        )
        try:
            await parts.supervisor.start()
        except BaseException:
            # One service may have been served already when another could not be.
            parts.executor.drain(parts.places.values())
            parts.executor.cancel_runs()
            await asyncio.gather(*parts.executor.tasks, return_exceptions=True)
            await parts.close()
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

    def health(self) -> Health:
        """Tell whether the worker can take requests now, and if not, why."""
        parts = self._parts
        if parts is None:
            return Health(False, "not started")
        if parts.executor.draining:
            return Health(False, "draining")
        link = parts.supervisor.link
        if link is None:
            return Health(False, f"not connected to {parts.supervisor.address}")
        missing = parts.consumers.missing
        if missing:
            return Health(False, f"not consuming for services: {', '.join(missing)}")
        if not link.writable:
            return Health(False, "the broker takes nothing: it has blocked the connection, or does not read from it")
        return Health(True)

    def statistics(self) -> WorkerStatistics:
        """Return a snapshot."""
        return self._started.statistics()

    @property
    def _started(self) -> Serving:
        if self._parts is None:
            raise UsageError("the worker is not started")
        return self._parts

    async def _drain(self) -> None:
        parts = self._started
        executor, hurry = parts.executor, asyncio.Event()
        self._hurry = hurry
        executor.drain(parts.places.values())
        # A broker that has blocked us does not answer; what it still delivers goes back by itself.
        await _within(parts.consumers.stop(), _CANCEL_TIMEOUT, hurry)
        tasks = set(executor.tasks)
        if tasks:
            await _within(asyncio.wait(tasks), self._grace, hurry)
        running = [task for task in tasks if not task.done()]
        if running:
            if not hurry.is_set():
                logger.warning("%d runs did not end within the grace of %g s", len(running), self._grace)
            executor.cancel_runs()
            await _within(asyncio.wait(running), _CONFIRM_TIMEOUT, hurry)
        await _within(parts.wait_confirmed(), _CONFIRM_TIMEOUT, hurry)
        await parts.close()


def _unhandle_signals() -> None:
    """Have a signal end the process, whatever the interpreter waits for."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _end_process(number: signal.Signals) -> None:
    """End by a signal that `_unhandle_signals` has given back."""
    logger.warning("methods still run in threads; the process ends by %s", number.name)
    signal.raise_signal(number)


async def _within(step: Coroutine[Any, Any, Any], timeout: float, hurry: asyncio.Event) -> None:
    """Take a step of the drain within *timeout* seconds; within half a second from when *hurry* is set."""
    taken, hurried = asyncio.ensure_future(step), asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait((taken, hurried), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if hurry.is_set():
            await asyncio.wait((taken,), timeout=min(timeout, _HURRY_TIMEOUT))
    finally:
        taken.cancel()
        hurried.cancel()
        for result in await asyncio.gather(taken, hurried, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, RPCError):
                logger.error("the drain goes on without one of its steps", exc_info=result)


def _by_name(services: Iterable[Service]) -> dict[str, Service]:
    check_iterable(services, "services")
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
