"""Executor: runs the requests that are delivered to a worker, each in a task of its own, and none twice.

Whatever a request or its method does ends in a terminal state for the caller; nothing it raises gets past here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread

from .codec import Codecs
from .deadline import Lineage, current_lineage, run_deadline
from .errors import (
    DeadlineExceeded,
    MethodNotFound,
    PayloadTooLarge,
    Rejected,
    RPCError,
    UnsupportedVersion,
    WorkerLost,
)
from .protocol.executions import Execution, ExecutionPhase, ExecutionTable, Verdict
from .protocol.messages import Request
from .protocol.wire import MalformedMessage, VersionRefused, decode_request
from .publisher import ResultPublisher
from .service import Context, DeliveryMode, Method
from .states import RECEIVED, STARTED
from .transports.base import Delivery

__all__ = ["Executor", "Places"]

logger = logging.getLogger("aiorpcq.worker")

_OWN_PACKAGES: Final = frozenset({__name__.partition(".")[0], "anyio", "asyncio"})
"""Whose frames at the top of a traceback tell the caller nothing."""

# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_RUN: Final = Verdict.RUN
_RUNNING: Final = ExecutionPhase.RUNNING


class Places:
    """The places of one service: its methods, how many more requests may run, and which wait for a place.

    The prefetch lets no more be delivered than may run, except where a request was acknowledged before its run or is
    answered while its method goes on. So *waiting* holds at most twice the prefetch: those that are answered while
    they wait are dropped when it is full.
    """

    __slots__ = ("_concurrency", "free", "methods", "waiting")

    def __init__(self, methods: dict[str, Method], concurrency: int) -> None:
        self.methods = methods
        self._concurrency = concurrency
        self.free = concurrency
        self.waiting: deque[tuple[Execution, Method]] = deque()

    def wait(self, execution: Execution, method: Method) -> None:
        """Have a request wait for a place."""
        if len(self.waiting) >= 2 * self._concurrency:
            self.waiting = deque(entry for entry in self.waiting if entry[0].phase is _RUNNING)
        self.waiting.append((execution, method))


class Executor:
    """The incoming side of a worker.

    *tasks* are the runs, bounded by the prefetch of the worker's consumers; whoever drains awaits them. While
    *draining* is set, deliveries go back to their queue. *started*, *expired* and *rejected* only grow.
    """

    def __init__(
        self,
        table: ExecutionTable,
        publisher: ResultPublisher,
        codecs: Codecs,
        loop: asyncio.AbstractEventLoop,
        *,
        delivery: DeliveryMode,
        threads: int,
        max_size: int,
    ) -> None:
        self._table = table
        self._publisher = publisher
        self._codecs = codecs
        self._loop = loop
        self._delivery = delivery
        self._limiter = anyio.CapacityLimiter(threads)
        self._unbounded = anyio.CapacityLimiter(math.inf)
        self._max_size = max_size
        self._identity = {"pid": os.getpid(), "hostname": socket.gethostname()}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self.tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.started = self.expired = self.rejected = 0

    def drain(self) -> None:
        """Begin nothing more: what waits for a place goes back to its queue, and so does what is still delivered."""
        self.draining = True
        for execution in list(self._table.running.values()):
            if execution.task is None and execution.phase is ExecutionPhase.RUNNING:
                self._hand_back(execution)

    def cancel_runs(self) -> None:
        """Cancel every run; its request goes back to its queue, or is answered where it was acknowledged already."""
        for execution in list(self._table.running.values()):
            if execution.phase is ExecutionPhase.RUNNING and execution.task is not None:
                execution.phase = ExecutionPhase.STOPPING
                self._cancel(execution)

    def _cancel(self, execution: Execution) -> None:
        """Cancel a run; one that has not had its first step ends there by itself, since it could not clean up."""
        if execution.begun:
            execution.task.cancel()

    def close(self) -> None:
        """Stop the timer; to be called when nothing runs any more."""
        if self._timer is not None:
            self._timer.cancel()

    def on_delivery(self, places: Places, delivery: Delivery) -> None:
        """Decide about one delivery, and start its run as soon as its service has a place."""
        if self.draining:
            delivery.nack(requeue=True)
            return
        try:
            request = decode_request(delivery.properties, delivery.body)
        except MalformedMessage as error:
            self._refuse_malformed(delivery, error)
            return
        method = places.methods.get(request.method)
        loop = self._loop
        now = loop.time()
        deadline = run_deadline(request.expiration, request.deadline, now, time.time())
        if method is not None and method.timeout is not None:
            deadline = now + method.timeout if deadline is None else min(deadline, now + method.timeout)
        verdict, execution = self._table.begin(request, delivery, deadline)
        publisher = self._publisher
        if verdict is not _RUN:
            self._on_known(verdict, execution, delivery)
            return
        if delivery.oversize:
            text = f"the body has {delivery.oversize} bytes, the limit max_size is {self._max_size}"
            publisher.refuse(execution, PayloadTooLarge(text))
            return
        if method is None:
            publisher.refuse(execution, MethodNotFound(f"the service has no method {request.method!r}"))
            return
        if deadline is not None and deadline < now:
            text = "the deadline was past before the run"
            publisher.refuse(execution, DeadlineExceeded(text, maybe_executed=False))
            return
        if self._timer is None or (deadline is not None and deadline < self._timer_at):
            self._schedule(now)
        if places.free > 0:
            self._start(places, execution, method)
        else:
            places.wait(execution, method)

    def _start(self, places: Places, execution: Execution, method: Method) -> None:
        places.free -= 1
        self.started += 1
        task = execution.task = self._loop.create_task(self._execute(places, execution, method))
        if not task.done():  # where the loop's tasks start eagerly it may have ended already
            self.tasks.add(task)

    def _end(self, places: Places, execution: Execution) -> None:
        """Give the place of a run to the next that waits."""
        self.tasks.discard(execution.task)
        places.free += 1
        while places.waiting and places.free > 0:
            waiting, method = places.waiting.popleft()
            if waiting.phase is ExecutionPhase.RUNNING:  # its deadline may have passed, or the worker drains
                self._start(places, waiting, method)
        if execution.phase in (ExecutionPhase.RUNNING, ExecutionPhase.STOPPING):
            logger.error("task %s ended without an answer; its request is rejected", execution.task_id)
            self._table.abandon(execution)
            execution.delivery.nack(requeue=False)

    def _on_known(self, verdict: Verdict, execution: Execution, delivery: Delivery) -> None:
        """Handle a request that is running or has ended here already."""
        if verdict is Verdict.ANSWERED:
            self._publisher.answer_again(execution)
        elif verdict is Verdict.ADOPTED:
            # On a link that is lost this does nothing; on this one the new delivery is now the one that counts.
            self._table.adopt(execution, delivery).ack()
            if execution.acknowledged:
                delivery.ack()
        else:
            self._publisher.reject(execution, Rejected("another caller's task of the same id runs here"))

    async def _execute(self, places: Places, execution: Execution, method: Method) -> None:
        """Run the method and publish what came of it; nothing it raises passes."""
        publisher = self._publisher
        try:
            if execution.phase is not _RUNNING:
                if execution.phase is ExecutionPhase.STOPPING:
                    self._end_stopped(execution)
                return
            execution.begun = True
            request = execution.request
            if request.states:
                publisher.announce(execution, RECEIVED, None)
            if (method.delivery or self._delivery) == "at_most_once":
                execution.acknowledged = True
                execution.delivery.ack()
                await asyncio.sleep(0)  # the acknowledgement is on its way before the run can end the process
            arguments, named = self._bind(execution, method)
            task_id = request.task_id
            current_lineage.set(Lineage(execution.deadline, task_id, request.root_id or task_id))
            if method.is_async:
                if request.states:
                    publisher.announce(execution, STARTED, self._identity)
                value = await method.function(*arguments, **named)
            else:
                value, error = await self._run_in_thread(execution, method, arguments, named)
                if error is not None:
                    raise error
        except RPCError as error:
            if isinstance(error, _Refused):
                publisher.refuse(execution, error.error)
            else:
                self._fail(execution, error)
        except BaseException as error:  # SystemExit from a method must not end the worker
            self._fail(execution, error)
        else:
            publisher.succeed(execution, value)
        finally:
            self._end(places, execution)

    def _fail(self, execution: Execution, error: BaseException) -> None:
        """Answer what the method raised; a run that was told to stop raises for that reason, and is not answered."""
        if execution.phase is ExecutionPhase.STOPPING:
            self._end_stopped(execution)
        else:
            self._publisher.fail(execution, _without_own_frames(error))

    def _bind(self, execution: Execution, method: Method) -> tuple[list[Any], dict[str, Any]]:
        request = execution.request
        try:
            decoded = self._codecs.decode(request.body, request.content_type, request.content_encoding)
            return method.bind(decoded, partial(self._context, execution) if method.wants_context else None)
        except RPCError as error:
            raise _Refused(error) from error

    def _context(self, execution: Execution) -> Context:
        request: Request = execution.request
        return Context(
            _ExecutionStates(self._publisher, execution, self._loop),
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
    ) -> tuple[Any, BaseException | None]:
        """Run a plain method in a thread, as soon as the limit allows; return its value, or what it raised.

        A thread cannot be stopped: at its deadline the caller is answered, and the thread keeps its place until it
        ends. So the place is not the limiter's of `run_sync`, which gives it back as soon as the wait is cancelled.
        """
        limiter, place, claim = self._limiter, object(), threading.Lock()

        def run() -> tuple[Any, BaseException | None]:
            if not claim.acquire(blocking=False):
                return None, None  # it was cancelled before the thread came to it
            try:
                if execution.request.states:
                    self._loop.call_soon_threadsafe(self._announce_started, execution)
                return method.function(*arguments, **named), None
            except BaseException as error:  # StopIteration and SystemExit cannot pass through a future
                return None, error
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(limiter.release_on_behalf_of, place)

        await limiter.acquire_on_behalf_of(place)
        try:
            return await anyio.to_thread.run_sync(run, limiter=self._unbounded)
        except BaseException:
            if claim.acquire(blocking=False):
                limiter.release_on_behalf_of(place)
            raise

    def _announce_started(self, execution: Execution) -> None:
        if execution.phase is ExecutionPhase.RUNNING:
            self._publisher.announce(execution, STARTED, self._identity)

    def _end_stopped(self, execution: Execution) -> None:
        """End a run that the drain has cancelled."""
        if execution.acknowledged:
            self._publisher.refuse(execution, WorkerLost("the worker stopped before the run ended"))
        else:
            self._hand_back(execution)

    def _hand_back(self, execution: Execution) -> None:
        self._table.abandon(execution)
        execution.delivery.nack(requeue=True)

    def _refuse_malformed(self, delivery: Delivery, error: MalformedMessage) -> None:
        """Answer what can be answered, and have the rest dead-lettered: to its caller, where it has a CC header."""
        self.rejected += 1
        properties = delivery.properties
        if isinstance(error, VersionRefused) and properties.reply_to and properties.correlation_id:
            request = Request(properties.correlation_id, "", b"", "", None, properties.reply_to)
            verdict, execution = self._table.begin(request, delivery, None)
            if verdict is Verdict.RUN:
                self._publisher.refuse(execution, UnsupportedVersion(str(error)))
            else:
                self._on_known(verdict, execution, delivery)
            return
        if self.rejected == 1:
            logger.warning("a message on a service queue is no request (later ones are only counted): %s", error)
        if delivery.exchange:
            delivery.nack(requeue=False)
        else:
            # It came by the queue's own name, and the default exchange would dead-letter it back here without end.
            delivery.ack()

    def _schedule(self, now: float) -> None:
        """Have the timer fire when something expires next."""
        at = self._table.next_deadline(now)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        """Answer the callers whose deadline is past, and stop the runs."""
        self._timer, self._timer_at = None, float("inf")
        now = self._loop.time()
        for execution in self._table.expire(now):
            self.expired += 1
            self._publisher.refuse(execution, _stopped(begun=execution.begun))
            self._cancel(execution)
        if self._table.running or len(self._table.cache):
            self._schedule(now)


class _Refused(RPCError):
    """Carries the library's own error out of the binding, apart from whatever the method may raise."""

    def __init__(self, error: RPCError) -> None:
        super().__init__(error.message)
        self.error = error


class _ExecutionStates:
    """The context's way to the publisher."""

    __slots__ = ("_execution", "_loop", "_publisher")

    def __init__(self, publisher: ResultPublisher, execution: Execution, loop: asyncio.AbstractEventLoop) -> None:
        self._publisher = publisher
        self._execution = execution
        self._loop = loop

    async def update(self, name: str, value: Any) -> None:
        await self._publisher.update(self._execution, name, value)

    def remaining(self) -> float | None:
        deadline = self._execution.deadline
        return None if deadline is None else max(0.0, deadline - self._loop.time())


def _stopped(*, begun: bool) -> DeadlineExceeded:
    text = "the run was stopped at its deadline" if begun else "the deadline passed before the run"
    return DeadlineExceeded(text, maybe_executed=begun)


def _without_own_frames(error: BaseException) -> BaseException:
    """Return *error* with a traceback that begins where the method does."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OWN_PACKAGES:
        frames = frames.tb_next
    return error.with_traceback(frames)
