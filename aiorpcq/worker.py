"""Worker: serves the methods of services."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.to_thread

from .codec import Codecs
from .deadline import Lineage, current_lineage, run_deadline
from .errors import DeadlineExceeded, MethodNotFound, PayloadTooLarge, RPCError, UnsupportedVersion, UsageError
from .protocol.executions import CacheLimits, Execution, ExecutionPhase, ExecutionTable, Verdict
from .protocol.messages import Request
from .protocol.topology import Names
from .protocol.wire import MalformedMessage, VersionRefused, decode_request
from .publisher import PublisherStatistics, ResultPublisher
from .service import Context, DeliveryMode, Method, Service, check_delivery
from .states import RECEIVED, STARTED
from .transports.base import Delivery, Link, Subscription
from .transports.registry import make_transport
from .transports.supervisor import Supervisor

__all__ = ["Worker", "WorkerStatistics"]

logger = logging.getLogger("aiorpcq.worker")

_RUN: Final = Verdict.RUN  # a global: in Python 3.11 a member costs four times as much to look up on its class

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
        max_size: int = 8 * 1024 * 1024,
        grace: float = 30.0,
        prefix: str = "rpc",
    ) -> None:
        for option, value, most in (
            ("concurrency", concurrency, 65_535),
            ("threads", threads, 10_000),
            ("max_size", max_size, 2**32),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{option}: {value!r} is not an integer between 1 and {most}")
        if not grace >= 0:
            raise ValueError(f"grace: {grace!r} is negative")
        self._services = _by_name(services)
        self._names = Names(prefix)
        self._concurrency = concurrency
        self._threads = threads
        self._delivery = check_delivery(delivery) or "at_least_once"
        self._codecs = codecs or Codecs(max_size=max_size)
        self._grace = grace
        self._max_size = max_size
        self._table = ExecutionTable(cache or CacheLimits())
        self._transport = make_transport(url, max_size=max_size, name="aiorpcq worker")
        self._identity = {"pid": os.getpid(), "hostname": socket.gethostname()}
        self.id = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._supervisor: Supervisor | None = None
        self._publisher: ResultPublisher | None = None
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._closing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._started = self._expired = self._rejected = 0

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
                await asyncio.wait((closing, hurry), return_when=asyncio.FIRST_COMPLETED)
                if not closing.done():
                    self._cancel_runs()
                hurry.cancel()
                await asyncio.gather(hurry, return_exceptions=True)
                await closing

    async def start(self) -> None:
        """Connect, declare the services' queues and serve them.

        Raises:
            ConnectFailed, TopologyMismatch: as for `run`.
            UsageError: the worker was started before.
        """
        if self._supervisor is not None:
            raise UsageError("a worker is started once")
        self._loop = asyncio.get_running_loop()
        self._limiter = anyio.CapacityLimiter(self._threads)
        self._idle = asyncio.Event()
        self._publisher = ResultPublisher(self._table, self._codecs, self.id, self._loop, self._on_idle)
        self._supervisor = Supervisor(self._transport, self._setup, self._on_lost, logger)
        await self._supervisor.start()

    async def aclose(self) -> None:
        """Drain and stop: nothing is lost. Idempotent.

        Intake stops; what was delivered and not begun goes back to its queue; what runs gets `grace` seconds, then it is
        cancelled and its request goes back too; terminal states are confirmed; the connection is closed.
        """
        if self._supervisor is None:
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._drain(), name="aiorpcq worker drain")
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
        publisher, table = self._publisher, self._table
        if publisher is None:
            raise UsageError("the worker is not started")
        return WorkerStatistics(
            running=len(table.running),
            started=self._started,
            adopted=table.adopted,
            answered=table.answered,
            expired=self._expired,
            rejected=self._rejected,
            cached=table.cached,
            cached_size=table.size,
            publisher=publisher.statistics(),
        )

    async def _setup(self, link: Link, generation: int) -> None:
        """Declare and consume on a new connection; unconfirmed and unacknowledged requests come again by themselves."""
        names = self._names
        await link.declare(names.requests, names.control)
        assert self._publisher is not None
        self._publisher.link = link
        subscriptions = []
        for service in self._services.values():
            queue = names.service_queue(service.name, service.queue_arguments)
            await link.declare(queue, names.binding(service.name))
            on_delivery = partial(self._on_delivery, service.methods)
            subscriptions.append(await link.consume(queue.name, on_delivery, prefetch=self._concurrency))
        self._subscriptions = subscriptions
        if generation == 1:
            logger.info("worker %s serves %s", self.id, ", ".join(self._services))

    def _on_lost(self, error: RPCError) -> None:
        """Let runs go on: their requests are redelivered, here or elsewhere, and adopted where they still run."""
        assert self._publisher is not None
        self._publisher.link = None
        self._subscriptions = []

    def _on_delivery(self, methods: dict[str, Method], delivery: Delivery) -> None:
        """Decide about one delivery, and start its run."""
        if self._draining:
            delivery.nack(requeue=True)
            return
        try:
            request = decode_request(delivery.properties, delivery.body)
        except MalformedMessage as error:
            self._refuse_malformed(delivery, error)
            return
        method = methods.get(request.method)
        loop = self._loop
        now = loop.time()
        deadline = run_deadline(request.expiration, request.deadline, now, time.time())
        if method is not None and method.timeout is not None:
            deadline = now + method.timeout if deadline is None else min(deadline, now + method.timeout)
        verdict, execution = self._table.begin(request, delivery, deadline)
        publisher = self._publisher
        assert publisher is not None
        if verdict is not _RUN:
            if verdict is Verdict.ANSWERED:
                publisher.answer_again(execution)
            else:
                # On a link that is lost this does nothing; on this one the new delivery is now the one that counts.
                self._table.adopt(execution, request, delivery).ack()
            return
        if delivery.oversize:
            text = f"the body has {delivery.oversize} bytes, the limit max_size is {self._max_size}"
            publisher.refuse(execution, PayloadTooLarge(text))
            return
        if method is None:
            publisher.refuse(execution, MethodNotFound(f"the service has no method {request.method!r}"))
            return
        if deadline is not None and deadline < self._timer_at:
            self._schedule()
        self._started += 1
        task = execution.task = loop.create_task(self._execute(execution, method))
        self._tasks.add(task)

    async def _execute(self, execution: Execution, method: Method) -> None:
        """Run the method and publish what came of it; nothing it raises passes."""
        publisher = self._publisher
        assert publisher is not None
        try:
            request = execution.request
            if request.states:
                publisher.announce(execution, RECEIVED, None)
            if (method.delivery or self._delivery) == "at_most_once":
                execution.delivery.ack()
            arguments, named = self._bind(execution, method)
            task_id = request.task_id
            current_lineage.set(Lineage(execution.deadline, task_id, request.root_id or task_id))
            if method.is_async:
                if request.states:
                    publisher.announce(execution, STARTED, self._identity)
                value = await method.function(*arguments, **named)
            else:
                value = await self._run_in_thread(execution, method, arguments, named)
        except RPCError as error:
            if isinstance(error, _Refused):
                publisher.refuse(execution, error.error)
            else:
                publisher.fail(execution, error)
        except asyncio.CancelledError as error:
            self._end_cancelled(execution, error)
        except BaseException as error:  # SystemExit from a method must not end the worker
            if execution.reply_to is None:
                logger.exception("method %s failed, and its caller does not ask", method.name)
            publisher.fail(execution, error)
        else:
            publisher.succeed(execution, value)
        finally:
            self._tasks.discard(execution.task)

    def _bind(self, execution: Execution, method: Method) -> tuple[list[Any], dict[str, Any]]:
        request = execution.request
        try:
            decoded = self._codecs.decode(request.body, request.content_type, request.content_encoding)
            return method.bind(decoded, partial(self._context, execution))
        except RPCError as error:
            raise _Refused(error) from error

    def _context(self, execution: Execution) -> Context:
        request: Request = execution.request
        return Context(
            _ExecutionStates(self, execution),
            task_id=request.task_id,
            method=request.method,
            attempt=request.attempt,
            redelivered=execution.delivery.redelivered,
            parent_id=request.parent_id,
            root_id=request.root_id,
            metadata=request.metadata,
        )

    async def _run_in_thread(
        self, execution: Execution, method: Method, arguments: list[Any], named: dict[str, Any]
    ) -> Any:
        """Run a plain method in a thread, as soon as the limit allows.

        A thread cannot be stopped: at its deadline the caller is answered, and the thread keeps its place until it ends.
        """

        def run() -> tuple[Any, BaseException | None]:
            if execution.request.states:
                self._loop.call_soon_threadsafe(self._announce_started, execution)
            try:
                return method.function(*arguments, **named), None
            except BaseException as error:  # StopIteration and SystemExit cannot pass through a future
                return None, error

        value, error = await anyio.to_thread.run_sync(run, limiter=self._limiter)
        if error is not None:
            raise error
        return value

    def _announce_started(self, execution: Execution) -> None:
        if execution.phase is ExecutionPhase.RUNNING and self._publisher is not None:
            self._publisher.announce(execution, STARTED, self._identity)

    def _end_cancelled(self, execution: Execution, error: asyncio.CancelledError) -> None:
        """End a cancelled run: by the deadline, by the drain, or by its own doing."""
        publisher = self._publisher
        assert publisher is not None
        if execution.phase is ExecutionPhase.STOPPING:
            if self._draining:
                self._table.abandon(execution)
                execution.delivery.nack(requeue=True)
        else:
            publisher.fail(execution, error)

    def _refuse_malformed(self, delivery: Delivery, error: MalformedMessage) -> None:
        """Answer what can be answered, and have the rest dead-lettered: to its caller, where it has a CC header."""
        self._rejected += 1
        properties = delivery.properties
        if isinstance(error, VersionRefused) and properties.reply_to and properties.correlation_id:
            request = Request(properties.correlation_id, "", b"", "", None, properties.reply_to)
            verdict, execution = self._table.begin(request, delivery, None)
            assert self._publisher is not None
            if verdict is Verdict.RUN:
                self._publisher.refuse(execution, UnsupportedVersion(str(error)))
            elif verdict is Verdict.ANSWERED:
                self._publisher.answer_again(execution)
            return
        logger.warning("a message on a service queue is no request: %s", error)
        delivery.nack(requeue=False)

    def _schedule(self) -> None:
        at = self._table.next_deadline()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        """Answer the callers whose deadline is past, and stop the runs."""
        self._timer, self._timer_at = None, float("inf")
        assert self._publisher is not None
        for execution in self._table.expire(self._loop.time()):
            self._expired += 1
            self._publisher.refuse(execution, DeadlineExceeded("the run was stopped at its deadline"))
            if execution.task is not None:
                execution.task.cancel()
        self._schedule()

    def _on_idle(self) -> None:
        self._idle.set()

    async def _drain(self) -> None:
        assert self._supervisor is not None
        assert self._publisher is not None
        self._draining = True
        for subscription in self._subscriptions:
            with contextlib.suppress(RPCError):
                await subscription.cancel()
        tasks = set(self._tasks)
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=self._grace)
            if running:
                logger.warning("%d runs did not end within the grace of %g s", len(running), self._grace)
                self._cancel_runs()
                await asyncio.wait(running, timeout=_CONFIRM_TIMEOUT)
        await self._wait_confirms()
        if self._timer is not None:
            self._timer.cancel()
        await self._supervisor.close()

    def _cancel_runs(self) -> None:
        for execution in list(self._table.running.values()):
            if execution.phase is ExecutionPhase.RUNNING and execution.task is not None:
                execution.phase = ExecutionPhase.STOPPING
                execution.task.cancel()

    async def _wait_confirms(self) -> None:
        assert self._publisher is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                while self._publisher.unconfirmed:
                    self._idle.clear()
                    await self._idle.wait()


class _Refused(RPCError):
    """Carries the library's own error out of the binding, apart from whatever the method may raise."""

    def __init__(self, error: RPCError) -> None:
        super().__init__(error.message)
        self.error = error


class _ExecutionStates:
    """The context's way to the publisher."""

    __slots__ = ("_execution", "_worker")

    def __init__(self, worker: Worker, execution: Execution) -> None:
        self._worker = worker
        self._execution = execution

    async def update(self, name: str, value: Any) -> None:
        publisher = self._worker._publisher  # noqa: SLF001  # one class in two: the worker's own
        assert publisher is not None
        await publisher.update(self._execution, name, value)

    def remaining(self) -> float | None:
        deadline = self._execution.deadline
        return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())


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


