"""The worker's table: what runs, what has ended, and what to do with a request that comes again.

A redelivery of an attempt that still runs here is adopted: the run goes on under the new delivery. One that has ended
is answered from the cache of terminal states. So within one worker an attempt never runs twice while its entry is held.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from .messages import Request, StateMessage
from .timers import DeadlineWheel

__all__ = ["CacheLimits", "Execution", "ExecutionPhase", "ExecutionTable", "Verdict"]

_ENTRY_OVERHEAD: Final = 500
"""Bytes that a cached terminal state costs besides its body, rounded up from tracemalloc."""


_EVICTION_DELAY: Final = 1.0
"""Seconds past their age that cached states may stay, so that they go in numbers and not one by one."""


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
    done before the run. *deadline* is on the monotonic clock.
    """

    __slots__ = (
        "acknowledged",
        "attempt",
        "deadline",
        "delivery",
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
        self.reply_to = request.reply_to
        self.delivery = delivery
        self.acknowledged = False
        self.deadline = deadline
        self.slot = 0
        self.phase = _RUNNING
        self.sequence = 0
        self.task: Any = None
        self.terminal: StateMessage | None = None


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Bounds of the cache of terminal states: bytes (with 500 for each state), and seconds."""

    size: int = 64 * 1024 * 1024
    age: float = 120.0

    def __post_init__(self) -> None:
        for name in ("size", "age"):
            if not getattr(self, name) > 0:
                raise ValueError(f"cache.{name}: {getattr(self, name)!r} is not above 0")


class _Cached:
    __slots__ = ("message", "reply_to", "since")

    def __init__(self, message: StateMessage, reply_to: str | None, since: float) -> None:
        self.message = message
        self.reply_to = reply_to
        self.since = since


_Key = tuple[str, int]
_Entries = OrderedDict[_Key, _Cached]


class ExecutionTable:
    """Running executions and cached terminal states, by task id and attempt.

    States whose caller is gone (`returned`) are evicted after all others: a caller that reconnects asks for those.
    The counters only grow: *adopted*, *answered* (from the cache), *evicted*.
    """

    __slots__ = ("_delivered", "_limits", "_returned", "_wheel", "adopted", "answered", "evicted", "running", "size")

    def __init__(self, limits: CacheLimits) -> None:
        self.running: dict[_Key, Execution] = {}
        self._delivered: _Entries = OrderedDict()
        self._returned: _Entries = OrderedDict()
        self._limits = limits
        self._wheel: DeadlineWheel[Execution] = DeadlineWheel()
        self.size = 0
        self.adopted = 0
        self.answered = 0
        self.evicted = 0

    @property
    def cached(self) -> int:
        """Terminal states that are held."""
        return len(self._delivered) + len(self._returned)

    def begin(self, request: Request, delivery: Any, deadline: float | None) -> tuple[Verdict, Execution]:
        """Decide about a request; RUN registers its execution, ADOPTED gives the one to `adopt` it with.

        A request of a known id with another reply queue is another caller's, who chose the same id.
        """
        key = (request.task_id, request.attempt)
        running = self.running.get(key)
        if running is not None:
            if running.reply_to == request.reply_to:
                return Verdict.ADOPTED, running
            return Verdict.REFUSED, Execution(request, delivery, None)
        execution = Execution(request, delivery, deadline)
        cached = self._delivered.get(key) or self._returned.get(key)
        if cached is not None and cached.reply_to == request.reply_to:
            execution.phase = ExecutionPhase.ANSWERING
            execution.terminal = cached.message
            self.running[key] = execution
            self.answered += 1
            return Verdict.ANSWERED, execution
        self.running[key] = execution
        if deadline is not None:
            execution.slot = self._wheel.add(deadline, execution)
        return _RUN, execution

    def adopt(self, execution: Execution, delivery: Any) -> Any:
        """Put *execution* under a new delivery; return the one before, which is to be acknowledged."""
        superseded, execution.delivery = execution.delivery, delivery
        self.adopted += 1
        return superseded

    def get(self, task_id: str, attempt: int) -> Execution | None:
        """Return the execution of an attempt that has not ended."""
        return self.running.get((task_id, attempt))

    def answer(self, execution: Execution, terminal: StateMessage, now: float) -> None:
        """Enter the terminal state of *execution*, before it is published."""
        execution.phase = _ANSWERING
        execution.terminal = terminal
        if execution.deadline is not None:
            self._wheel.discard(execution.slot, execution)
        key = (execution.task_id, execution.attempt)
        older = self._delivered.pop(key, None) or self._returned.pop(key, None)
        if older is not None:
            self.size -= len(older.message.body) + _ENTRY_OVERHEAD
        self._delivered[key] = _Cached(terminal, execution.reply_to, now)
        self.size += len(terminal.body) + _ENTRY_OVERHEAD
        if self.size > self._limits.size:
            self.evict(now)

    def end(self, execution: Execution, *, returned: bool = False) -> None:
        """Close *execution*: its terminal state is confirmed, or *returned* because its reply queue is gone."""
        execution.phase = _ENDED
        key = (execution.task_id, execution.attempt)
        self.running.pop(key, None)
        if returned:
            cached = self._delivered.pop(key, None)
            if cached is not None:
                self._returned[key] = cached

    def abandon(self, execution: Execution) -> None:
        """Remove *execution* without a terminal state: its request goes back to the queue."""
        if execution.deadline is not None:
            self._wheel.discard(execution.slot, execution)
        execution.phase = ExecutionPhase.ENDED
        self.running.pop((execution.task_id, execution.attempt), None)

    def expire(self, now: float) -> list[Execution]:
        """Return the runs whose deadline is past, now STOPPING, and drop cached states that are too old."""
        self.evict(now)
        expired = self._wheel.expire(now)
        for execution in expired:
            execution.phase = ExecutionPhase.STOPPING
        return expired

    def next_deadline(self, now: float) -> float:
        """Return when `expire` has something to do: a run's deadline, or a cached state past its age by a second."""
        run = self._wheel.next_deadline()
        age = (
            min(
                (next(iter(entries.values())).since for entries in (self._delivered, self._returned) if entries),
                default=now,
            )
            + self._limits.age
            + _EVICTION_DELAY
        )
        return age if run is None else min(run, age)

    def evict(self, now: float) -> None:
        """Drop cached states that are too old or too many."""
        limits = self._limits
        for entries in (self._delivered, self._returned):
            while entries:
                key, oldest = next(iter(entries.items()))
                if self.size <= limits.size and oldest.since + limits.age > now:
                    break
                del entries[key]
                self.size -= len(oldest.message.body) + _ENTRY_OVERHEAD
                self.evicted += 1
