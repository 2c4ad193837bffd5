"""What a worker knows of its callers: which have moved to another reply queue, and which tasks they have revoked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from operator import itemgetter
from typing import Final, TypeVar

__all__ = ["Moves", "Revocations"]

K = TypeVar("K")
V = TypeVar("V")

_MOST_MOVES: Final = 10_000
_MOST_REVOCATIONS: Final = 16_384
_LONGEST: Final = 24 * 3600.0  # seconds that either is kept, whatever a control message says


class Moves:
    """Where callers have moved: from the reply queue that their requests were sent with to the present one.

    Holds 10,000 of them, each for as long as its caller said; the oldest goes first.
    """

    __slots__ = ("entries", "evicted")

    def __init__(self) -> None:
        self.entries: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, origin: str, reply_to: str, expires: float, now: float) -> None:
        """Remember for *expires* seconds that what was to go to *origin* goes to *reply_to*."""
        self.entries[origin] = (reply_to, now + min(expires, _LONGEST))
        self.entries.move_to_end(origin)
        self.evicted += _evict(self.entries, _MOST_MOVES, now, itemgetter(1))

    def resolve(self, origin: str, reply_to: str | None, now: float) -> str | None:
        """Return where the answers to *origin* go to; *reply_to* where it is not known to have moved."""
        move = self.entries.get(origin)
        if move is None:
            return reply_to
        if move[1] < now:
            del self.entries[origin]
            return reply_to
        return move[0]


class Revocations:
    """Tasks that were revoked before their requests came, with the reply queues that prove it.

    Holds 16,384 of them, each for as long as its caller said; the oldest goes first.
    """

    __slots__ = ("entries", "evicted")

    def __init__(self) -> None:
        self.entries: OrderedDict[tuple[str, str], float] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, task_id: str, origin: str, expires: float, now: float) -> None:
        """Remember for *expires* seconds that the caller behind *origin* has revoked a task."""
        key = task_id, origin  # whoever names another queue changes nothing of what the caller has said
        self.entries[key] = now + min(expires, _LONGEST)
        self.entries.move_to_end(key)
        self.evicted += _evict(self.entries, _MOST_REVOCATIONS, now, float)

    def covers(self, task_id: str, origin: str | None, now: float) -> bool:
        """Tell whether the caller behind *origin* has revoked the task."""
        expires = None if origin is None else self.entries.get((task_id, origin))
        return expires is not None and expires >= now


def _evict(entries: OrderedDict[K, V], limit: int, now: float, expiry: Callable[[V], float]) -> int:
    """Drop the oldest where they are too many or past their time; return how many went that were not."""
    evicted = 0
    while entries:
        key, entry = next(iter(entries.items()))
        expires = expiry(entry)
        if expires >= now and len(entries) <= limit:
            break
        del entries[key]
        evicted += expires >= now
    return evicted
