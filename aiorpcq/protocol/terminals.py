"""The worker's cache of terminal states: what answers a request that comes again, and a caller that reconnects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from struct import Struct
from typing import Final

from ..limits import EVICTION_DELAY, STATE_OVERHEAD
from .messages import StateMessage

__all__ = ["CacheLimits", "TerminalCache"]

_KEPT_HEADS: Final = 1_000
_TIME_STEP: Final = 0.05  # seconds that entries share their time for
_LARGE: Final = 1024 * 1024
_PORTION: Final = 64  # what an overflow makes room for, as a part of the whole

_HEAD: Final = Struct(">dI")  # since when, and where the body begins

# Name, content type, content encoding, sequence, attempt, first reply queue: the same for nearly all states of one
# caller.
_Envelope = tuple[str, str, str | None, int, int, str | None]


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

    An entry is one `bytes`: when it was entered, its envelope in JSON, its body. A dict of texts and bytes is none of
    the garbage collector's business; with an object for each of a hundred thousand states in its way, a full collection
    took 22 ms, and all of them together a twelfth of a busy worker's CPU (RabbitMQ 3.10, CPython 3.11, 64 calls at
    once).
    """

    __slots__ = ("_delivered", "_heads", "_limits", "_now", "_returned", "evicted", "size")

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._delivered: dict[str, bytes] = {}
        self._returned: dict[str, bytes] = {}
        self._heads: dict[_Envelope, bytes] = {}  # those of the time step
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
        if now - self._now > _TIME_STEP:
            self._now = now
            self._heads.clear()
        head = self._heads.get(envelope)
        if head is None:
            head = self._head(envelope)
        self._delivered[key] = head + message.body
        self.size += len(message.body) + STATE_OVERHEAD
        if self.size > self._limits.size:
            self.evict(now)

    def _head(self, envelope: _Envelope) -> bytes:
        text = json.dumps(envelope).encode()
        if len(self._heads) >= _KEPT_HEADS:
            self._heads.clear()
        head = self._heads[envelope] = _HEAD.pack(self._now, _HEAD.size + len(text)) + text
        return head

    def get(self, key: str, task_id: str, origin: str | None, attempt: int = 1) -> StateMessage | None:
        """Return the terminal state that was entered for a caller, of *attempt* or a later one."""
        entry = self._delivered.get(key)
        if entry is None:
            if not self._returned:
                return None
            entry = self._returned.get(key)
        if entry is None:
            return None
        start = _HEAD.unpack_from(entry)[1]
        name, content_type, content_encoding, sequence, ended, entered_for = json.loads(entry[_HEAD.size : start])
        if entered_for != origin or ended < attempt:
            return None
        return StateMessage(task_id, name, entry[start:], content_type, content_encoding, ended, sequence)

    def _discard(self, key: str) -> None:
        entry = self._delivered.pop(key, None) or self._returned.pop(key, None)
        if entry is not None:
            self.size -= _cost(entry)

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
                oldest = min(oldest, _HEAD.unpack_from(next(iter(entries.values())))[0])
        return oldest + self._limits.age + EVICTION_DELAY

    def evict(self, now: float) -> None:
        """Drop what is too old or too much; from a large cache in portions, since to find the oldest entry of a dict
        costs the more, the more have gone before it.
        """
        limits, size = self._limits, self._limits.size
        if self.size > size > _LARGE:
            size -= size // _PORTION
        for entries in (self._delivered, self._returned):
            gone: list[str] = []
            for key, entry in entries.items():
                if self.size <= size and _HEAD.unpack_from(entry)[0] + limits.age > now:
                    break
                gone.append(key)
                self.size -= _cost(entry)
            for key in gone:
                del entries[key]
            self.evicted += len(gone)


def _cost(entry: bytes) -> int:
    """Return what *entry* counts in the bound."""
    start: int = _HEAD.unpack_from(entry)[1]
    return len(entry) - start + STATE_OVERHEAD
