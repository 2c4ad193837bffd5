"""The worker's table: what runs, what has ended, and what to do with a request that comes again.

A request whose task still runs here is adopted: the run goes on under the new delivery. One whose task has ended, in
whichever attempt, is answered from the cache of terminal states. So within one worker a task that has ended never runs
again while its entry is held.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Any, Final

from ..limits import CacheLimits
from .callers import Moves, Revocations
from .messages import Request, StateMessage
from .terminals import TerminalCache
from .timers import DeadlineWheel

__all__ = ["EndedAttempt", "Execution", "ExecutionPhase", "ExecutionTable", "Verdict"]


class ExecutionPhase(Enum):
    """Where an execution is."""

    RUNNING = "running"
    """The method runs, or waits for a thread."""
    STOPPING = "stopping"
    """It was told to stop: its deadline is past, or the worker closes."""
    ANSWERING = "answering"
    """Its terminal state is published and not confirmed yet."""
    ENDED = "ended"


class Verdict(Enum):
    """What to do with a request."""

    RUN = "run"
    ADOPTED = "adopted"
    """The task runs here already; it goes on under the new delivery."""
    ANSWERED = "answered"
    """The task has ended here; its terminal state is to be sent again."""
    REFUSED = "refused"
    """Another caller's task of the same id runs here; this one's execution is not registered."""
    SUPERSEDED = "superseded"
    """The attempt has ended here with another one to be made; this one's execution is not registered."""
    REVOKED = "revoked"
    """Its caller has revoked the task; the execution is registered, to be answered so."""


# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_RUNNING: Final = ExecutionPhase.RUNNING
_ANSWERING: Final = ExecutionPhase.ANSWERING
_ENDED: Final = ExecutionPhase.ENDED
_RUN: Final = Verdict.RUN

_MOST_RETRIES: Final = 10_000


class EndedAttempt:
    """An attempt that ended here with another one to be made; *is_out* tells whether that is known to be at the broker.

    *origin* is the reply queue its request was first sent with; *ended_at* and *due*, before which the next attempt is
    not to be made, are times of the monotonic clock.
    """

    __slots__ = ("attempt", "due", "ended_at", "is_out", "origin")

    def __init__(self, execution: Execution, now: float, delay: float) -> None:
        self.attempt = execution.attempt
        self.origin = execution.origin
        self.ended_at = now
        self.due = now + delay
        self.is_out = False


class Execution:
    """One attempt of one request; a plain slotted class, since one is made for every call.

    *delivery* and *task* are the shell's: what to acknowledge, and what runs. *acknowledged* says that the first was
    done before the run, *begun* that the run had its first step. *deadline* and *received_at* are on the monotonic
    clock. *origin* is the reply queue the request was first sent with, *reply_to* where its caller is now. *losses*
    are its runs that ended without an answer; *overtaken* says that a later attempt of it came while this one was here.
    *refusal* describes the error it was answered with instead of a run, where that says so.
    """

    __slots__ = (
        "acknowledged",
        "answered_at",
        "attempt",
        "begun",
        "deadline",
        "delivery",
        "key",
        "losses",
        "origin",
        "overtaken",
        "phase",
        "received_at",
        "refusal",
        "reply_to",
        "request",
        "sequence",
        "slot",
        "task",
        "task_id",
        "terminal",
    )

    def __init__(self, request: Request, delivery: Any, deadline: float | None, now: float) -> None:
        self.request = request
        self.task_id = self.key = request.task_id
        self.attempt = request.attempt
        self.origin = self.reply_to = request.reply_to
        self.losses = 0
        history = request.history
        if history is not None:
            self.losses = history.losses
            if history.origin is not None:
                self.origin = history.origin
            if history.replay is not None:
                self.key = f"{self.task_id} {history.replay}"  # it runs although the task has ended
        self.received_at = now
        self.delivery = delivery
        self.acknowledged = False
        self.answered_at: float | None = None
        self.begun = False
        self.overtaken = False
        self.deadline = deadline
        self.slot = 0
        self.phase = _RUNNING
        self.sequence = 0
        self.task: Any = None
        self.terminal: StateMessage | None = None
        self.refusal: dict[str, Any] | None = None

    @property
    def may_have_run(self) -> bool:
        """Whether there may have been a run before this one, or may be one elsewhere."""
        delivery = self.delivery
        history = self.request.history
        before: bool = delivery.redelivered or delivery.is_void or (history is not None and history.origin is not None)
        return before or self.attempt > 1 or self.losses > 0 or self.overtaken


class ExecutionTable:
    """Running executions and cached terminal states, by task; and what is known of their callers.

    *retries* holds the last 10,000 attempts that ended here with another one to be made, by task, until that ends here;
    they count for as long as a terminal state is cached.
    The counters only grow: *adopted*, and *answered* from the cache.
    """

    __slots__ = (
        "_moved",
        "_retries_age",
        "_revoked",
        "_wheel",
        "adopted",
        "answered",
        "cache",
        "moves",
        "retries",
        "revocations",
        "running",
    )

    def __init__(self, limits: CacheLimits) -> None:
        self.running: dict[str, Execution] = {}
        self.cache = TerminalCache(limits)
        self.moves = Moves()
        self.revocations = Revocations()
        self._moved, self._revoked = self.moves.entries, self.revocations.entries  # to be asked for every request
        self._wheel: DeadlineWheel[Execution] = DeadlineWheel()
        self.retries: OrderedDict[str, EndedAttempt] = OrderedDict()
        self._retries_age = limits.age
        self.adopted = 0
        self.answered = 0

    def begin(self, request: Request, delivery: Any, deadline: float | None, now: float) -> tuple[Verdict, Execution]:
        """Decide about a request; RUN registers its execution, ADOPTED gives the one to `adopt` it with.

        A request of a known id with another reply queue is another caller's, who chose the same id.
        """
        execution = Execution(request, delivery, deadline, now)
        key, origin = execution.key, execution.origin
        if self._moved and origin is not None:
            execution.reply_to = self.moves.resolve(origin, execution.reply_to, now)
        running = self.running.get(key)
        if running is not None:
            if running.origin == origin:
                if execution.reply_to != origin:
                    running.reply_to = execution.reply_to
                if execution.attempt > running.attempt or execution.losses > running.losses:
                    running.overtaken = True
                return Verdict.ADOPTED, running
            return Verdict.REFUSED, execution
        # A later attempt comes where another worker took this one's run for lost; the answer of that is here.
        terminal = self.cache.get(key, execution.task_id, origin)
        if self.retries and terminal is None and self._is_superseded(execution, now):
            return Verdict.SUPERSEDED, execution
        self.running[key] = execution
        if terminal is not None:
            execution.phase = ExecutionPhase.ANSWERING
            execution.terminal = terminal
            self.answered += 1
            return Verdict.ANSWERED, execution
        if self._revoked and self.revocations.covers(execution.task_id, origin, now):
            return Verdict.REVOKED, execution
        if deadline is not None:
            execution.slot = self._wheel.add(deadline, execution)
        return _RUN, execution

    def move(self, origin: str, reply_to: str, expires: float, now: float) -> None:
        """Send what runs, or comes later, to a caller's present reply queue."""
        self.moves.put(origin, reply_to, expires, now)
        for execution in self.running.values():
            if execution.origin == origin:
                execution.reply_to = reply_to

    def held(self, task_id: str, origin: str) -> Execution | None:
        """Return the caller's execution of a task that has not ended."""
        execution = self.running.get(task_id)
        return execution if execution is not None and execution.origin == origin else None

    def adopt(self, execution: Execution, delivery: Any) -> Any:
        """Put *execution* under a new delivery; return the one before, which is to be acknowledged."""
        superseded, execution.delivery = execution.delivery, delivery
        self.adopted += 1
        return superseded

    def answer(self, execution: Execution, terminal: StateMessage, now: float | None) -> None:
        """Take the terminal state of *execution*, before it is published; without *now* it is not cached.

        It goes into the cache at the `end`: until then the execution itself answers who asks again, and what is done
        after the publish does not hold up the answer.
        """
        execution.phase = _ANSWERING
        execution.terminal = terminal
        if execution.deadline is not None:
            self._wheel.discard(execution.slot, execution)
        execution.answered_at = now

    def end(self, execution: Execution, *, returned: bool = False) -> None:
        """Close *execution*: its terminal state is confirmed, or *returned* because its reply queue is gone."""
        execution.phase = _ENDED
        key = execution.key
        self.running.pop(key, None)
        if self.retries:
            self.retries.pop(key, None)
        if execution.terminal is not None and execution.answered_at is not None:
            self.cache.put(key, execution.terminal, execution.origin, execution.answered_at)
        if returned:
            self.cache.mark_returned(key)

    def detain(self, execution: Execution) -> None:
        """Take *execution* from its deadline: what is done with it now is to be done to the end."""
        if execution.deadline is not None:
            self._wheel.discard(execution.slot, execution)
        execution.phase = ExecutionPhase.STOPPING

    def retry(self, execution: Execution, now: float, delay: float = 0.0) -> EndedAttempt:
        """Remove *execution*, whose next attempt, after *delay* seconds, is on its way to the broker.

        This one is not to run again here.
        """
        self.abandon(execution)
        retries = self.retries
        ended = retries[execution.key] = EndedAttempt(execution, now, delay)
        retries.move_to_end(execution.key)
        if len(retries) > _MOST_RETRIES:
            retries.popitem(last=False)
        return ended

    def _is_superseded(self, execution: Execution, now: float) -> bool:
        ended = self.retries.get(execution.key)
        return (
            ended is not None
            and ended.origin == execution.origin
            # One that was neither delivered nor published before is no copy, but a later call with this task id; or an
            # idempotent cast that its client sent again, of which nothing tells the two apart.
            and (execution.delivery.redelivered or execution.request.history is not None)
            and execution.attempt <= ended.attempt
            and now - ended.ended_at < self._retries_age
        )

    def abandon(self, execution: Execution) -> None:
        """Remove *execution* without a terminal state: its request goes back to the queue."""
        if execution.deadline is not None:
            self._wheel.discard(execution.slot, execution)
        execution.phase = ExecutionPhase.ENDED
        self.running.pop(execution.key, None)

    def expire(self, now: float) -> list[Execution]:
        """Return the runs whose deadline is past, now STOPPING, and drop cached states that are too old."""
        self.cache.evict(now)
        expired = self._wheel.expire(now)
        for execution in expired:
            execution.phase = ExecutionPhase.STOPPING
        return expired

    def next_deadline(self, now: float) -> float:
        """Return when `expire` has something to do: a run's deadline, or a cached state past its age by a second."""
        run, cached = self._wheel.next_deadline(), self.cache.next_expiry(now)
        return cached if run is None else min(run, cached)
