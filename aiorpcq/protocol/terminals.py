"""The worker's cache of terminal states: what answers a request that comes again, and a caller that reconnects."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from ..limits import EVICTION_DELAY, STATE_OVERHEAD
from .messages import StateMessage

__all__ = ["CacheLimits", "TerminalCache"]

_KEPT_ENVELOPES: Final = 1_000
_TIME_STEP: Final = 0.05  # seconds that entries share their time for
_LARGE: Final = 1024 * 1024
_PORTION: Final = 32 * 1024

# Name, content type, content encoding, sequence, attempt, first reply queue: the same for nearly all states of one
# caller, and shared.
_Envelope = tuple[str, str, str | None, int, int, str | None]

# Body, envelope, since when. A tuple of plain values, which the garbage collector does not visit, and as few objects as
# will do: with 64 MiB of them in the way of every call, each costs as much as a message on its way through the lane.
_Entry = tuple[bytes, _Envelope, float]


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Bounds of the cache of terminal states: bytes (with 500 for each state), and seconds."""

    size: int = 64 * 1024 * 1024
    age: float = 120.0

    def __post_init__(self) -> None:
        for name in ("size", "age"):
            if not getattr(self, name) > 0:
                raise ValueError(f"cache.{name}: {getattr(self, name)!r} is not above 0")


class TerminalCache:
    """Terminal states by the keys of their executions, oldest first.

    States whose caller is gone (`mark_returned`) are evicted after all others: a caller that reconnects asks for those.
    *size* is in bytes as the bound counts them; *evicted* only grows.
    """

    __slots__ = ("_delivered", "_envelopes", "_limits", "_now", "_returned", "evicted", "size")

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._delivered: OrderedDict[str, _Entry] = OrderedDict()
        self._returned: OrderedDict[str, _Entry] = OrderedDict()
        self._envelopes: dict[_Envelope, _Envelope] = {}
        self._now = 0.0
        self.size = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._delivered) + len(self._returned)

    def put(self, key: str, message: StateMessage, origin: str | None, now: float) -> None:
        """Enter a terminal state of the caller that first sent its request with the reply queue *origin*.

        It takes the place of an earlier attempt's, or of another caller's who chose the same id.
        """
        if key in self._delivered or key in self._returned:
            self._discard(key)
        envelope = (
            message.name,
            message.content_type,
            message.content_encoding,
            message.sequence,
            message.attempt,
            origin,
        )
        shared = self._envelopes.get(envelope)
        if shared is None:
            if len(self._envelopes) >= _KEPT_ENVELOPES:
                self._envelopes.clear()
            shared = self._envelopes[envelope] = envelope
        if now - self._now > _TIME_STEP:
            self._now = now
        self._delivered[key] = (message.body, shared, self._now)
        self.size += len(message.body) + STATE_OVERHEAD
        if self.size > self._limits.size:
            self.evict(now)

    def get(self, key: str, task_id: str, origin: str | None, attempt: int = 1) -> StateMessage | None:
        """Return the terminal state that was entered for a caller, of *attempt* or a later one."""
        entry = self._delivered.get(key)
        if entry is None:
            if not self._returned:
                return None
            entry = self._returned.get(key)
        if entry is None:
            return None
        body, (name, content_type, content_encoding, sequence, ended, entered_for), _ = entry
        if entered_for != origin or ended < attempt:
            return None
        return StateMessage(task_id, name, body, content_type, content_encoding, ended, sequence)

    def _discard(self, key: str) -> None:
        entry = self._delivered.pop(key, None) or self._returned.pop(key, None)
        if entry is not None:
            self.size -= len(entry[0]) + STATE_OVERHEAD

    def mark_returned(self, key: str) -> None:
        """Keep an entry longer than others: its caller was not there."""
        entry = self._delivered.pop(key, None)
        if entry is not None:
            self._returned[key] = entry

    def next_expiry(self, now: float) -> float:
        """Return when the oldest entry is past its age by a second; as if entered now where there is none."""
        oldest = now
        for entries in (self._delivered, self._returned):
            if entries:
                oldest = min(oldest, next(iter(entries.values()))[2])
        return oldest + self._limits.age + EVICTION_DELAY

    def evict(self, now: float) -> None:
        """Drop what is too old or too much; from a large cache in portions, which costs less an entry."""
        limits, size = self._limits, self._limits.size
        if self.size > size > _LARGE:
            size -= _PORTION
        for entries in (self._delivered, self._returned):
            while entries:
                key, entry = next(iter(entries.items()))
                if self.size <= size and entry[2] + limits.age > now:
                    break
                del entries[key]
                self.size -= len(entry[0]) + STATE_OVERHEAD
                self.evicted += 1
