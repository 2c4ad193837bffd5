"""When many things end by themselves: deadlines in buckets, one timer of the event loop for all of them.

A timer of the loop for each call would cost more than the rest of the table, and a heap of calls would keep those that
ended early until their time came.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, TypeVar

__all__ = ["DeadlineWheel"]

T = TypeVar("T")

GRANULARITY: Final = 0.01
"""Seconds by which an expiry may be late, at the most."""

_STALE_SLOTS: Final = 256


class DeadlineWheel(Generic[T]):
    """Items by their deadlines, in buckets of `GRANULARITY`; adding and discarding do not depend on how many there are.

    Memory is that of the items: a bucket goes with its last item.
    """

    __slots__ = ("_buckets", "_slots")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[T, None]] = {}
        self._slots: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, deadline: float, item: T) -> int:
        """Add *item*; return the slot that `discard` wants."""
        slot = int(deadline / GRANULARITY) + 1
        bucket = self._buckets.get(slot)
        if bucket is None:
            self._buckets[slot] = {item: None}
            heapq.heappush(self._slots, slot)
        else:
            bucket[item] = None
        return slot

    def discard(self, slot: int, item: T) -> None:
        """Remove *item*, if it is there."""
        bucket = self._buckets.get(slot)
        if bucket is None:
            return
        bucket.pop(item, None)
        if not bucket:
            del self._buckets[slot]
            if len(self._slots) > 2 * len(self._buckets) + _STALE_SLOTS:
                self._slots = sorted(self._buckets)

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to give at the earliest, None where there is nothing."""
        slots = self._slots
        while slots and slots[0] not in self._buckets:
            heapq.heappop(slots)
        return slots[0] * GRANULARITY if slots else None

    def expire(self, now: float) -> list[T]:
        """Remove and return all whose deadline is past, earliest first."""
        expired: list[T] = []
        slots = self._slots
        while slots and slots[0] * GRANULARITY <= now:
            bucket = self._buckets.pop(heapq.heappop(slots), None)
            if bucket is not None:
                expired.extend(bucket)
        return expired
