"""The tasks that were cancelled here, for as long as a worker may still come to run them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from .control import Cancel

__all__ = ["CancelRing"]

_LIMIT: Final = 16_384


class CancelRing:
    """The last 16,384 cancels, by task id, until they expire.

    A request that is queued while no worker is up, or in the hands of one that dies, is delivered to a worker that has
    not heard of the cancel. That worker says STARTED for it, and is told then.
    """

    __slots__ = ("_limit", "cancels")

    def __init__(self, limit: int = _LIMIT) -> None:
        self.cancels: OrderedDict[str, tuple[Cancel, float]] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self.cancels)

    def add(self, cancel: Cancel, now: float) -> None:
        """Remember *cancel* until it expires; the oldest goes past the limit, and with it those that have expired."""
        cancels = self.cancels
        cancels[cancel.task_id] = cancel, now + cancel.expires
        cancels.move_to_end(cancel.task_id)
        while cancels and (len(cancels) > self._limit or next(iter(cancels.values()))[1] <= now):
            cancels.popitem(last=False)

    def find(self, task_id: str, now: float) -> Cancel | None:
        """Return the cancel of a task as it is to be said *now*; None where there is none any more."""
        entry = self.cancels.get(task_id)
        if entry is None:
            return None
        cancel, until = entry
        if until <= now:
            del self.cancels[task_id]
            return None
        return replace(cancel, expires=until - now)
