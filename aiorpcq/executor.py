"""Executor: runs the requests that are delivered to a worker, each in a task of its own, and none twice.

Whatever a request or its method does ends in a terminal state for the caller, or with the request on its way back to
the broker; nothing it raises gets past here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any, Final

from .callerwatch import CallerWatch
from .codec import Codecs
from .codec.errors import decode_error
from .context import Context
from .deadline import CLOCK_TOLERANCE, Lineage, current_lineage
from .errors import (
    DeadlineExceeded,
    Overloaded,
    RPCError,
    WorkerLost,
)
from .executionstates import ExecutionStates
from .method import Method
from .methodthreads import MethodThreads
from .places import Places, RunOptions
from .protocol.control import Cancel
from .protocol.executions import EndedAttempt, Execution, ExecutionPhase, ExecutionTable
from .protocol.failures import text_of
from .protocol.messages import Request
from .protocol.retries import run_delay
from .publisher import ResultPublisher
from .quarantine import Quarantine
from .republisher import Republisher
from .retry import Busy
from .states import RECEIVED, RETRY, STARTED

__all__ = ["Executor"]

logger = logging.getLogger("aiorpcq.worker")

_POSTPONEMENT: Final = 0.5
"""Seconds that a request waits in the broker while another runs that it may not run beside."""

_OWN_PACKAGES: Final = frozenset({__name__.partition(".")[0], "anyio", "asyncio"})
"""Whose frames at the top of a traceback tell the caller nothing."""

# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_RUNNING: Final = ExecutionPhase.RUNNING


class Executor:
    """Runs requests, each as soon as its service has a place.

    *tasks* are the runs, bounded by the prefetch of the worker's consumers; whoever drains awaits them. While
    *draining* is set, deliveries go back to their queue. *started*, *expired* and *revoked* only grow.
    """

    def __init__(
        self,
        table: ExecutionTable,
        publisher: ResultPublisher,
        republisher: Republisher,
        codecs: Codecs,
        loop: asyncio.AbstractEventLoop,
        options: RunOptions,
    ) -> None:
        self._table = table
        self._publisher = publisher
        self._republisher = republisher
        self._codecs = codecs
        self._loop = loop
        self._delivery = options.delivery
        self.callers = CallerWatch(options.worker_id, loop, options.caller_gone_grace, self.stop)
        self._threads = MethodThreads(options.threads, loop)
        self._quarantine = Quarantine(republisher, loop)
        self._crowded: set[Places] = set()  # where requests have waited for a place
        self._random = Random()
        self._identity = {"pid": os.getpid(), "hostname": socket.gethostname()}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self.tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.started = self.expired = self.revoked = 0

    @property
    def threads_run(self) -> bool:
        """Whether methods run in threads, those included that are answered already."""
        return self._threads.running > 0

    def drain(self, places: Iterable[Places]) -> None:
        """Begin nothing more.

        What waits for a place or a thread goes back to its queue, and so does what is still delivered.
        """
        self.draining = True
        self._quarantine.release()
        for execution in list(self._table.running.values()):
            if execution.phase is _RUNNING and self._threads.withdraw(execution):
                execution.phase = ExecutionPhase.STOPPING
                execution.begun = False
                execution.task.cancel()
        for place in places:
            waiting, place.waiting = place.waiting, type(place.waiting)()
            for execution, _ in waiting:
                if execution.phase is _RUNNING:
                    self.hand_back(place, execution)

    def cancel_runs(self) -> None:
        """Cancel every run; its request goes back to its queue, or is answered where it must not run again."""
        for execution in list(self._table.running.values()):
            if execution.phase is ExecutionPhase.RUNNING and execution.task is not None:
                execution.phase = ExecutionPhase.STOPPING
                self._cancel(execution)

    def revoke(self, cancel: Cancel) -> None:
        """Do what a caller's cancel asks for; it has no effect on a task that has ended, or is another caller's."""
        table, now = self._table, self._loop.time()
        execution = table.held(cancel.task_id, cancel.reply_to)
        if execution is None:
            if cancel.task_id not in table.running:
                table.revocations.put(cancel.task_id, cancel.reply_to, cancel.expires, now)
        elif execution.phase is _RUNNING and (
            cancel.mode != "skip" or not execution.begun or self._threads.withdraw(execution)
        ):
            self.stop(execution)

    def stop(self, execution: Execution) -> None:
        """Answer REVOKED and stop the run: its caller has cancelled the task, or is gone."""
        self.revoked += 1
        self._publisher.revoke(execution)
        self._cancel(execution)

    def _cancel(self, execution: Execution) -> None:
        """Cancel a run; one that has not had its first step ends there by itself, since it could not clean up."""
        if execution.begun:
            execution.begun = not self._threads.withdraw(execution)
            execution.task.cancel()
        else:
            self._quarantine.release(execution)

    def close(self) -> None:
        """Stop the timers; to be called when nothing runs any more."""
        self.callers.close()
        if self._timer is not None:
            self._timer.cancel()

    def accept(self, places: Places, execution: Execution, method: Method, now: float) -> None:
        """Start the run of a request as soon as its service has a place."""
        deadline = execution.deadline
        if self._timer is None or (deadline is not None and deadline < self._timer_at):
            self._schedule(now)
        if places.free > 0:
            self._start(places, execution, method)
        elif execution.losses and not self._quarantine.admits(execution.losses):
            self._postpone(places, execution)  # while it waited it could be lost with what runs alone
        else:
            self._crowded.add(places)
            places.wait(execution, method)

    def _start(self, places: Places, execution: Execution, method: Method) -> None:
        run = self._execute
        if execution.losses:
            if not self._quarantine.admits(execution.losses):
                self._postpone(places, execution)
                return
            if self._quarantine.start(execution.losses):
                run = self._execute_alone
                for crowded in self._crowded:
                    for suspect in crowded.withdraw_suspects():
                        self._postpone(crowded, suspect)
        places.free -= 1
        self.started += 1
        task = execution.task = self._loop.create_task(run(places, execution, method))
        if not task.done():  # where the loop's tasks start eagerly it may have ended already
            self.tasks.add(task)

    def _postpone(self, places: Places, execution: Execution) -> None:
        self._table.abandon(execution)
        full = Overloaded("the request cannot wait for others that lost a run", maybe_executed=True)
        refused = partial(self._publisher.reject, execution, full)
        self._republisher.postpone(places.service, execution, _POSTPONEMENT, refused)

    def _end(self, places: Places, execution: Execution) -> None:
        """Give the place of a run to the next that waits."""
        self.tasks.discard(execution.task)
        places.free += 1
        if execution.losses:
            self._quarantine.end()
        while places.waiting and places.free > 0:
            waiting, method = places.waiting.popleft()
            if waiting.phase is ExecutionPhase.RUNNING:  # its deadline may have passed, or the worker drains
                self._start(places, waiting, method)
        if execution.phase in (ExecutionPhase.RUNNING, ExecutionPhase.STOPPING):
            logger.error("task %s ended without an answer; its request is rejected", execution.task_id)
            self._table.abandon(execution)
            execution.delivery.nack(requeue=False)

    async def _execute_alone(self, places: Places, execution: Execution, method: Method) -> None:
        """Let go first what else has lost a run: this one may end the process as soon as it begins.

        Where the connection is lost meanwhile it begins all the same, as what runs goes on, to be adopted when it is
        delivered again: given up here, that delivery would count as one more lost run.
        """
        try:
            if execution.phase is _RUNNING and not self.draining:
                await self._quarantine.isolate(execution, places.service)
        except BaseException:
            if execution.phase is _RUNNING or execution.phase is ExecutionPhase.STOPPING:
                self._table.abandon(execution)
                execution.delivery.nack(requeue=True)
            self._end(places, execution)
            raise
        if execution.phase is _RUNNING and self.draining:
            execution.phase = ExecutionPhase.STOPPING
        await self._execute(places, execution, method)

    async def _execute(self, places: Places, execution: Execution, method: Method) -> None:
        """Run the method and publish what came of it; nothing it raises passes."""
        publisher = self._publisher
        try:
            if execution.phase is not _RUNNING:
                if execution.phase is ExecutionPhase.STOPPING:
                    self._end_stopped(places, execution, method)
                return
            execution.begun = True
            request = execution.request
            if request.states:
                publisher.announce(execution, RECEIVED, None)
            elif places.older_than is not None or request.history is not None or execution.delivery.redelivered:
                self._announce_to_late(places, execution)
            if method.watches_caller:
                self.callers.watch(execution)
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
                on_start = partial(self._on_thread_started, execution)
                value, error = await self._threads.run(execution, method.function, arguments, named, on_start)
                if error is not None:
                    raise error
        except RPCError as error:
            if isinstance(error, _Refused):
                publisher.refuse(execution, error.error)
            else:
                self._fail(places, execution, method, error)
        except BaseException as error:  # SystemExit from a method must not end the worker
            self._fail(places, execution, method, error)
        else:
            publisher.succeed(execution, value)
        finally:
            if method.watches_caller:
                self.callers.unwatch(execution)
            self._end(places, execution)

    def _fail(self, places: Places, execution: Execution, method: Method, error: BaseException) -> None:
        """Answer what the method raised, or have it run again later.

        A run that was told to stop raises for that reason, and is not answered.
        """
        if execution.phase is ExecutionPhase.STOPPING:
            self._end_stopped(places, execution, method)
        elif execution.phase is not _RUNNING:
            return  # it is answered already
        elif isinstance(error, Busy):
            refusal = Overloaded(text_of(error), maybe_executed=False, retry_after=error.retry_after)
            self._publisher.refuse(execution, refusal)
        else:
            remaining = self._remaining(execution)
            delay = run_delay(error, method.options.retry, execution.attempt, remaining, self._random)
            if delay is None:
                self._publisher.fail(execution, _without_own_frames(error))
            else:
                self._retry(places, execution, error, delay)

    def _retry(self, places: Places, execution: Execution, error: BaseException, delay: float) -> None:
        if execution.request.states:
            state = {"reason": text_of(error), "delay": delay, "attempt": execution.attempt}
            self._publisher.announce(execution, RETRY, state)
        ended = self._table.retry(execution, self._loop.time(), delay)
        refused = partial(self._publisher.reject, execution, _without_own_frames(error), raised=True)
        then = partial(_retried, execution, ended)
        self._republisher.retry(places.service, execution, delay, then=then, refused=refused)

    def _remaining(self, execution: Execution) -> float | None:
        """Return the seconds that the caller's own deadline leaves."""
        expiration = execution.request.expiration
        return None if expiration is None else expiration - (self._loop.time() - execution.received_at)

    def _announce_to_late(self, places: Places, execution: Execution) -> None:
        """Tell the caller of a bare call that it runs here, where this worker may have missed what it said before.

        That is so for a request that was delivered or published before, and for one that may be older than this
        worker's control queue; clocks may differ by the tolerance.
        """
        request, older_than = execution.request, places.older_than
        if request.history is None and not execution.delivery.redelivered:
            if older_than is None:
                return
            if request.deadline is not None and request.expiration is not None:
                sent_at = request.deadline - request.expiration
                if sent_at > older_than + CLOCK_TOLERANCE:
                    return
        self._publisher.announce(execution, STARTED, self._identity)

    def _bind(self, execution: Execution, method: Method) -> tuple[list[Any], dict[str, Any]]:
        request = execution.request
        try:
            decoded = self._codecs.decode(request.body, request.content_type, request.content_encoding)
        except BaseException as error:  # whatever a user's codec raises: the method was not run
            raise _Refused(error if isinstance(error, RPCError) else decode_error(error)) from error
        try:
            return method.bind(decoded, partial(self._context, execution) if method.wants_context else None)
        except RPCError as error:
            raise _Refused(error) from error

    def _context(self, execution: Execution) -> Context:
        request: Request = execution.request
        return Context(
            ExecutionStates(self._publisher, execution, self._loop),
            task_id=request.task_id,
            method=request.method,
            attempt=execution.attempt,
            redelivered=execution.delivery.redelivered or execution.losses > 0,
            parent_id=request.parent_id,
            root_id=request.root_id,
            metadata=request.metadata,
        )

    def announce_started(self, execution: Execution) -> None:
        """Tell the caller that the run goes on here, unless it has ended."""
        if execution.phase is _RUNNING:
            self._publisher.announce(execution, STARTED, self._identity)

    def announce_running(self) -> None:
        """Tell the callers of all runs that they go on here."""
        for execution in self._table.running.values():
            if execution.begun:
                self.announce_started(execution)

    def _on_thread_started(self, execution: Execution) -> None:
        if execution.request.states:
            self.announce_started(execution)

    def _end_stopped(self, places: Places, execution: Execution, method: Method) -> None:
        """End a run that the drain has cancelled; one that had begun goes back as its next attempt.

        That is no lost run: the worker did not die of it.
        """
        if not execution.begun:
            self.hand_back(places, execution)
        elif execution.acknowledged or (method.delivery or self._delivery) != "at_least_once":
            self._publisher.refuse(execution, WorkerLost("the worker stopped before the run ended"))
        else:
            execution.attempt += 1
            self.hand_back(places, execution)

    def hand_back(self, places: Places, execution: Execution) -> None:
        """Give back a request that was not begun, or is to begin again, and whose lost runs are counted."""
        self._table.abandon(execution)
        full = Overloaded("the worker stops, and the queue does not take the request back")
        full.maybe_executed = execution.may_have_run
        refused = partial(self._publisher.reject, execution, full)
        self._republisher.hand_back(places.service, execution, refused)

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
            self._cancel(execution)
            self._publisher.refuse(execution, _stopped(begun=execution.begun))
        if self._table.running or len(self._table.cache):
            self._schedule(now)


class _Refused(RPCError):
    """Carries the library's own error out of the binding, apart from whatever the method may raise."""

    def __init__(self, error: RPCError) -> None:
        super().__init__(error.message)
        self.error = error


def _retried(execution: Execution, ended: EndedAttempt) -> None:
    ended.is_out = True
    execution.delivery.ack()


def _stopped(*, begun: bool) -> DeadlineExceeded:
    text = "the run was stopped at its deadline" if begun else "the deadline passed before the run"
    return DeadlineExceeded(text, maybe_executed=begun)


def _without_own_frames(error: BaseException) -> BaseException:
    """Return *error* with a traceback that begins where the method does."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OWN_PACKAGES:
        frames = frames.tb_next
    return error.with_traceback(frames)
