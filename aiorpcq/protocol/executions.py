"""The worker's table: what runs, what has ended, and what to do with a request that comes again.

A redelivery of an attempt that still runs here is adopted: the run goes on under the new delivery. One that has ended
is answered from the cache of terminal states. So within one worker an attempt never runs twice while its entry is held.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from .messages import Request, StateMessage
from .terminals import AttemptKey, CacheLimits, TerminalCache, attempt_key
from .timers import DeadlineWheel

__all__ = ["Execution", "ExecutionPhase", "ExecutionTable", "Verdict"]


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
    """The attempt runs here already; it goes on under the new delivery."""
    ANSWERED = "answered"
    """The attempt has ended here; its terminal state is to be sent again."""
    REFUSED = "refused"
    """Another caller's task of the same id runs here; this one's execution is not registered."""


# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_RUNNING: Final = ExecutionPhase.RUNNING
_ANSWERING: Final = ExecutionPhase.ANSWERING
_ENDED: Final = ExecutionPhase.ENDED
_RUN: Final = Verdict.RUN


class Execution:
    """One attempt of one request; a plain slotted class, since one is made for every call.

    *delivery* and *task* are the shell's: what to acknowledge, and what runs. *acknowledged* says that the first was
    done before the run, *begun* that the run had its first step. *deadline* is on the monotonic clock.
    """

    __slots__ = (
        "acknowledged",
        "answered_at",
        "attempt",
        "begun",
        "deadline",
        "delivery",
        "key",
        "phase",
        "reply_to",
        "request",
        "sequence",
        "slot",
        "task",
        "task_id",
        "terminal",
    )

    def __init__(self, request: Request, delivery: Any, deadline: float | None) -> None:
        self.request = request
        self.task_id = request.task_id
        self.attempt = request.attempt
        self.key = attempt_key(request.task_id, request.attempt)
        self.reply_to = request.reply_to
        self.delivery = delivery
        self.acknowledged = False
        self.answered_at: float | None = None
        self.begun = False
        self.deadline = deadline
        self.slot = 0
        self.phase = _RUNNING
        self.sequence = 0
        self.task: Any = None
        self.terminal: StateMessage | None = None


class ExecutionTable:
    """Running executions and cached terminal states, by task id and attempt.

    The counters only grow: *adopted*, and *answered* from the cache.
    """

    __slots__ = ("_wheel", "adopted", "answered", "cache", "running")

    def __init__(self, limits: CacheLimits) -> None:
        self.running: dict[AttemptKey, Execution] = {}
        self.cache = TerminalCache(limits)
        self._wheel: DeadlineWheel[Execution] = DeadlineWheel()
        self.adopted = 0
        self.answered = 0

    def begin(self, request: Request, delivery: Any, deadline: float | None) -> tuple[Verdict, Execution]:
        """Decide about a request; RUN registers its execution, ADOPTED gives the one to `adopt` it with.

        A request of a known id with another reply queue is another caller's, who chose the same id.
        """
        execution = Execution(request, delivery, deadline)
        key = execution.key
        running = self.running.get(key)
        if running is not None:
            if running.reply_to == request.reply_to:
                return Verdict.ADOPTED, running
            return Verdict.REFUSED, execution
        terminal = self.cache.get(key, request.reply_to)
        self.running[key] = execution
        if terminal is not None:
            execution.phase = ExecutionPhase.ANSWERING
            execution.terminal = terminal
            self.answered += 1
            return Verdict.ANSWERED, execution
        if deadline is not None:
            execution.slot = self._wheel.add(deadline, execution)
        return _RUN, execution

    def adopt(self, execution: Execution, delivery: Any) -> Any:
        """Put *execution* under a new delivery; return the one before, which is to be acknowledged."""
        superseded, execution.delivery = execution.delivery, delivery
        self.adopted += 1
        return superseded

    def answer(self, execution: Execution, terminal: StateMessage, now: float) -> None:
        """Take the terminal state of *execution*, before it is published.

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
        if execution.terminal is not None and execution.answered_at is not None:
            self.cache.put(key, execution.terminal, execution.reply_to, execution.answered_at)
        if returned:
            self.cache.mark_returned(key)

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
