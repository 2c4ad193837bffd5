"""The caller's table: what is pending, how the states of a task merge, and where everything else goes.

A call is in the table from before its request is published until it is settled by a terminal state, an error or its
deadline, or until its caller goes away. Whatever ends it, nothing of it stays: ids that the table made itself are
recognised by their prefix and counter, others by a bounded ring, so that a late state is dropped and not parked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final

from ..errors import RPCError
from ..states import PENDING, is_terminal, precedence
from .messages import Publication, StateMessage
from .outofband import OutOfBandBuffer, OutOfBandLimits, TombstoneRing
from .timers import DeadlineWheel

__all__ = ["Backlog", "Call", "CallTable", "Phase", "Sending", "TaskIds"]

_TOMBSTONES: Final = 16_384
_BACKLOG_SIZE: Final = 16 * 1024 * 1024


class Phase(Enum):
    """Where a call is. A call leaves PENDING once, for good."""

    PENDING = "pending"
    SETTLED = "settled"
    """A terminal state came, or an error that says why none will."""
    ABANDONED = "abandoned"
    """Its caller went away: cancelled or forgotten."""


class Sending(Enum):
    """How far the request of a call has come, which is what is known of it when the link is lost."""

    UNSENT = "unsent"
    SENT = "sent"
    CONFIRMED = "confirmed"
    LOST = "lost"
    """It was sent, and what carried it broke before the broker confirmed it: nobody knows whether it is there."""
    NOT_OURS = "not ours"
    """Somebody else submitted the task; we only listen."""


# Globals for the hot path: in Python 3.11 a member costs four times as much to look up on its class.
_PENDING: Final = Phase.PENDING
_SETTLED: Final = Phase.SETTLED
_UNSENT: Final = Sending.UNSENT


class Backlog:
    """The states of one task that a reader can still see, and how many there were before them.

    It keeps the newest *limit* of them, and fewer where their bodies have more than 16 MiB together.
    """

    __slots__ = ("_size", "dropped", "limit", "states")

    def __init__(self, limit: int) -> None:
        self.states: deque[StateMessage] = deque()
        self.limit = limit
        self.dropped = 0
        self._size = 0

    def append(self, message: StateMessage) -> None:
        """Keep *message*, dropping the oldest past the bounds."""
        states = self.states
        states.append(message)
        self._size += len(message.body)
        while len(states) > self.limit or (self._size > _BACKLOG_SIZE and len(states) > 1):
            self._size -= len(states.popleft().body)
            self.dropped += 1

    @property
    def end(self) -> int:
        """Position behind the newest state."""
        return self.dropped + len(self.states)

    def at(self, position: int) -> StateMessage | None:
        """Return the state at *position*, None where it was dropped."""
        index = position - self.dropped
        return self.states[index] if index >= 0 else None


class Call:
    """A call as its caller knows it; a plain slotted class, since one is made for every call.

    *owner*, *waiter* and *watchers* are the shell's: whose call it is, what to wake at its end, what to wake at every
    state. *readers* are the owners of its streams. *backlog* is None for a call whose states nobody asked for.
    *foreign* says that the id was not made by this table's `TaskIds`.

    *origin* is the reply queue that its request was sent with first, and that its answers can be claimed by once that
    queue is gone; None where they cannot, or are not to be. *publication* is the request, for a call that may be sent
    again, and *repeated* says that it was; *route* is the shell's, where it was sent to.
    """

    __slots__ = (
        "attempt",
        "backlog",
        "deadline",
        "error",
        "foreign",
        "name",
        "origin",
        "owner",
        "phase",
        "publication",
        "readers",
        "repeated",
        "route",
        "sending",
        "sequence",
        "slot",
        "task_id",
        "terminal",
        "waiter",
        "watchers",
    )

    def __init__(
        self,
        task_id: str,
        owner: Any,
        deadline: float | None,
        backlog: Backlog | None = None,
        foreign: bool = False,
    ) -> None:
        self.task_id = task_id
        self.owner = owner
        self.foreign = foreign
        self.waiter: Any = None
        self.watchers: list[Any] | None = None
        self.readers: Sequence[Any] = ()
        self.origin: str | None = None
        self.publication: Publication | None = None
        self.repeated = False
        self.route: Any = None
        self.deadline = deadline
        self.slot = 0
        self.phase = _PENDING
        self.sending = _UNSENT
        self.name = PENDING
        self.attempt = 1
        self.sequence = 0
        self.backlog = backlog
        self.terminal: StateMessage | None = None
        self.error: RPCError | None = None

    @property
    def maybe_executed(self) -> bool:
        """Whether, by what is known here, the method may have run."""
        return self.sending is not Sending.UNSENT

    def merge(self, message: StateMessage) -> bool:
        """Take *message* in; return whether it changed anything.

        A terminal state wins over all that is not, the first of several wins; of the others the higher attempt wins,
        then the higher sequence, then Celery's precedence. So any order of arrival ends the same.
        """
        if self.terminal is not None:
            return False
        name = message.name
        if is_terminal(name):
            self.terminal = message
            self.phase = _SETTLED
        elif self._is_older(message):
            return False
        self.attempt = message.attempt
        self.sequence = message.sequence
        self.name = name
        if self.backlog is not None:
            self.backlog.append(message)
        return True

    def _is_older(self, message: StateMessage) -> bool:
        if message.attempt != self.attempt:
            return message.attempt < self.attempt
        if message.sequence != self.sequence:
            return message.sequence < self.sequence
        return precedence(message.name) >= precedence(self.name)


class TaskIds:
    """Task ids of one router: a random prefix of 128 bits and a counter, so that an old id is known for its own."""

    __slots__ = ("_prefix", "count")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix + "-"
        self.count = 0

    def new(self) -> str:
        self.count += 1
        return self._prefix + hex(self.count)[2:]  # compiled, a format specification costs three times as much

    def made(self, task_id: str) -> bool:
        """Tell whether *task_id* is one of those made so far."""
        if not task_id.startswith(self._prefix):
            return False
        counter = task_id[len(self._prefix) :]
        try:
            number = int(counter, 16)
        except ValueError:
            return False
        return 0 < number <= self.count and counter == f"{number:x}"  # int() takes "+1", "0x1" and "01" too


class CallTable:
    """Pending calls by task id, and the out-of-band buffer and tombstones behind them.

    The counters are plain integers that only grow: *duplicates* (a state of a task that is settled), *late* (one of
    those, of a task that had ended here without an answer), *parked*, *orphaned* (a parked one that is terminal),
    *stale* (a state that an earlier one outdates), *evicted*.
    """

    __slots__ = (
        "_ids",
        "_out_of_band",
        "_tombstones",
        "_unanswered",
        "_wheel",
        "duplicates",
        "late",
        "orphaned",
        "parked",
        "pending",
        "stale",
    )

    def __init__(self, ids: TaskIds, limits: OutOfBandLimits, tombstones: int = _TOMBSTONES) -> None:
        self.pending: dict[str, Call] = {}
        self._out_of_band = OutOfBandBuffer(limits)
        self._tombstones = TombstoneRing(tombstones)
        self._unanswered = TombstoneRing(tombstones)
        self._ids = ids
        self._wheel: DeadlineWheel[Call] = DeadlineWheel()
        self.duplicates = 0
        self.late = 0
        self.orphaned = 0
        self.parked = 0
        self.stale = 0

    @property
    def evicted(self) -> int:
        """States that a bound of the out-of-band buffer has pushed out."""
        return self._out_of_band.evicted

    @property
    def out_of_band(self) -> OutOfBandBuffer:
        """What is parked."""
        return self._out_of_band

    def add(self, call: Call) -> None:
        """Register *call*, before its request is published. The task id must not be pending already."""
        if call.task_id in self.pending:
            raise ValueError(f"task id {call.task_id!r} is pending already")
        self.pending[call.task_id] = call
        if call.deadline is not None:
            call.slot = self._wheel.add(call.deadline, call)

    def attach(self, call: Call) -> None:
        """Register *call* for a task somebody else submitted, and give it what came early."""
        for message in self._out_of_band.read(call.task_id):
            call.merge(message)
        call.sending = Sending.NOT_OURS
        error = self._out_of_band.error(call.task_id)
        if error is not None and call.terminal is None:
            call.phase = _SETTLED
            call.error = error
        if call.phase is Phase.PENDING:
            self._tombstones.discard(call.task_id)
            self._unanswered.discard(call.task_id)
            self._out_of_band.take(call.task_id)
            self.add(call)

    def is_gone(self, task_id: str) -> bool:
        """Tell whether the task is known to be settled, with nothing of it left here."""
        return task_id not in self._out_of_band and self.is_settled(task_id)

    def is_settled(self, task_id: str) -> bool:
        """Tell whether the task is known to be settled."""
        if task_id in self.pending:
            return False
        return self._ids.made(task_id) or task_id in self._tombstones or self._out_of_band.has_ended(task_id)

    def receive(self, message: StateMessage, now: float) -> Call | None:
        """Take a state in; return the call that it changed, None where it changed none."""
        call = self.pending.get(message.task_id)
        if call is None:
            self._receive_unawaited(message, now)
            return None
        if not call.merge(message):
            self.stale += 1
            return None
        if call.terminal is not None:
            self._remove(call)
        return call

    def fail(self, call: Call, error: RPCError) -> bool:
        """Settle *call* with *error*; return False where it was settled already."""
        if call.phase is not Phase.PENDING:
            return False
        call.phase = Phase.SETTLED
        call.error = error
        self._unanswered.add(call.task_id)
        self._remove(call)
        return True

    def abandon(self, call: Call) -> None:
        """Remove every trace of *call*: its caller went away."""
        if call.phase is Phase.PENDING:
            self._unanswered.add(call.task_id)
            self.end(call)

    def end(self, call: Call) -> None:
        """Remove every trace of *call*: there is no answer to wait for."""
        if call.phase is Phase.PENDING:
            call.phase = Phase.ABANDONED
            self._remove(call)

    def detach(self, call: Call, now: float) -> None:
        """Undo `attach`: its reader went away, and another may come."""
        if call.phase is Phase.PENDING:
            call.phase = Phase.ABANDONED
            self.pending.pop(call.task_id, None)
            if call.deadline is not None:
                self._wheel.discard(call.slot, call)
            if call.backlog is not None:
                self.park(call.backlog.states, now)

    def park(self, messages: Iterable[StateMessage], now: float) -> None:
        """Keep the states of a task whose reader may still come."""
        for message in messages:
            self._out_of_band.put(message, now)

    def keep(self, call: Call, now: float) -> None:
        """Park what is left of a settled call whose states were asked for: its reader may come, or come again."""
        if call.backlog is not None and call.phase is _SETTLED:
            self.park(call.backlog.states, now)
            if call.error is not None and call.sending is not Sending.NOT_OURS:
                self._out_of_band.put_error(call.task_id, call.error, now)

    def forget(self, task_id: str) -> Call | None:
        """Drop all that is held of a task; return its call where one was pending."""
        self._out_of_band.take(task_id)
        call = self.pending.get(task_id)
        if call is not None:
            self.abandon(call)
        elif not self._ids.made(task_id):
            self._tombstones.add(task_id)
        return call

    def expire(self, now: float) -> list[Call]:
        """Settle and return the calls whose deadline is past, and drop what is parked for too long."""
        self._out_of_band.evict(now)
        expired = self._wheel.expire(now)
        for call in expired:
            call.phase = Phase.SETTLED
            self.pending.pop(call.task_id, None)
            if call.sending is Sending.NOT_OURS:
                if call.backlog is not None:
                    self.park(call.backlog.states, now)  # the wait is over, the task may not be
                continue
            self._unanswered.add(call.task_id)
            if call.foreign:
                self._tombstones.add(call.task_id)
        return expired

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to do at the earliest."""
        call, parked = self._wheel.next_deadline(), self._out_of_band.next_expiry()
        if call is None or parked is None:
            return parked if call is None else call
        return min(call, parked)

    def _receive_unawaited(self, message: StateMessage, now: float) -> None:
        task_id = message.task_id
        if task_id in self._tombstones or self._ids.made(task_id):
            self.duplicates += 1
            if task_id in self._unanswered:
                self.late += 1
                if is_terminal(message.name):
                    self._unanswered.discard(task_id)
            return
        self.parked += 1
        if is_terminal(message.name):
            self.orphaned += 1
        self._out_of_band.put(message, now)

    def _remove(self, call: Call) -> None:
        self.pending.pop(call.task_id, None)
        if call.deadline is not None:
            self._wheel.discard(call.slot, call)
        if call.foreign:
            self._tombstones.add(call.task_id)
