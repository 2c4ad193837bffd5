"""What arrives for tasks that nobody here waits for, yet or any more: kept for a while, within bounds."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass

from ..errors import RPCError
from ..limits import EVICTION_DELAY, STATE_OVERHEAD, check_age, check_integer
from ..states import is_terminal
from .messages import StateMessage

__all__ = ["OutOfBandBuffer", "OutOfBandLimits", "TombstoneRing"]


@dataclass(frozen=True, slots=True)
class OutOfBandLimits:
    """Bounds of the out-of-band buffer: tasks, bytes (with 500 for each state), and seconds since a task's last
    state.

    Raises:
        ValueError: *tasks* or *size* is not a whole number from 1, or *age* not a number above 0.
    """

    tasks: int = 10_000
    size: int = 16 * 1024 * 1024
    age: float = 120.0

    def __post_init__(self) -> None:
        check_integer(self.tasks, "out_of_band.tasks", 1, sys.maxsize)
        check_integer(self.size, "out_of_band.size", 1, sys.maxsize)
        check_age(self.age, "out_of_band.age")


class _Parked:
    __slots__ = ("error", "messages", "read", "size", "touched")

    def __init__(self) -> None:
        self.messages: list[StateMessage] = []
        self.read = 0
        self.error: RPCError | None = None
        self.size = 0
        self.touched = 0.0


class OutOfBandBuffer:
    """States by task id, least recently touched first.

    What passes a bound goes, oldest first; *evicted* counts the states that went before anybody had read them.
    """

    __slots__ = ("_limits", "_size", "_tasks", "evicted")

    def __init__(self, limits: OutOfBandLimits) -> None:
        self._limits = limits
        self._tasks: OrderedDict[str, _Parked] = OrderedDict()
        self._size = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._tasks

    @property
    def size(self) -> int:
        """Bytes it holds, as its bound counts them."""
        return self._size

    def put(self, message: StateMessage, now: float) -> None:
        """Park *message* with what is there of its task."""
        parked = self._touch(message.task_id, now)
        size = len(message.body) + STATE_OVERHEAD
        parked.messages.append(message)
        parked.size += size
        self._size += size
        self.evict(now)

    def put_error(self, task_id: str, error: RPCError, now: float) -> None:
        """Park the error that settled a task here, for readers that come later."""
        parked = self._touch(task_id, now)
        parked.error = error
        parked.size += STATE_OVERHEAD
        self._size += STATE_OVERHEAD
        self.evict(now)

    def error(self, task_id: str) -> RPCError | None:
        """Return the error that is parked of a task."""
        parked = self._tasks.get(task_id)
        return None if parked is None else parked.error

    def has_ended(self, task_id: str) -> bool:
        """Tell whether what is parked of a task ends it."""
        parked = self._tasks.get(task_id)
        if parked is None:
            return False
        return parked.error is not None or any(is_terminal(message.name) for message in parked.messages)

    def _touch(self, task_id: str, now: float) -> _Parked:
        parked = self._tasks.get(task_id)
        if parked is None:
            parked = self._tasks[task_id] = _Parked()
        else:
            self._tasks.move_to_end(task_id)
        parked.touched = now
        return parked

    def read(self, task_id: str) -> list[StateMessage]:
        """Return what is parked of a task, in the order of arrival, and keep it."""
        parked = self._tasks.get(task_id)
        if parked is None:
            return []
        parked.read = len(parked.messages)
        return parked.messages

    def take(self, task_id: str) -> list[StateMessage]:
        """Remove and return what is parked of a task, in the order of arrival."""
        parked = self._tasks.pop(task_id, None)
        if parked is None:
            return []
        self._size -= parked.size
        return parked.messages

    def next_expiry(self) -> float | None:
        """Return when the oldest is too old by a second, None where nothing is parked."""
        if not self._tasks:
            return None
        return next(iter(self._tasks.values())).touched + self._limits.age + EVICTION_DELAY

    def evict(self, now: float) -> None:
        """Drop what is too old or too much."""
        limits, tasks = self._limits, self._tasks
        while tasks:
            oldest = next(iter(tasks.values()))
            if len(tasks) <= limits.tasks and self._size <= limits.size and oldest.touched + limits.age > now:
                return
            tasks.popitem(last=False)
            self._size -= oldest.size
            self.evicted += len(oldest.messages) - oldest.read


class TombstoneRing:
    """The ids of the last *limit* tasks that are settled; a late state of one of them is never parked."""

    __slots__ = ("_ids", "_limit")

    def __init__(self, limit: int) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._ids

    def add(self, task_id: str) -> None:
        """Remember *task_id*, forgetting the oldest past the limit."""
        self._ids[task_id] = None
        self._ids.move_to_end(task_id)
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)

    def discard(self, task_id: str) -> None:
        """Forget *task_id*: it is awaited again."""
        self._ids.pop(task_id, None)
