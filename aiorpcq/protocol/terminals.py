"""The worker's cache of terminal states: what answers a request that comes again, and a caller that reconnects."""

from __future__ import annotations

import marshal
from struct import Struct
from typing import Final

from ..limits import EVICTION_DELAY, STATE_OVERHEAD, CacheLimits
from .messages import StateMessage

__all__ = ["TerminalCache"]

_KEPT_HEADS: Final = 1_000
_TIME_STEP: Final = 0.05  # seconds that entries share their time for
_LARGE: Final = 1024 * 1024
_PORTION: Final = 64  # what an overflow makes room for, as a part of the whole

_SINCE: Final = Struct(">d")

# Name, content type, content encoding, sequence, attempt, first reply queue: the same for nearly all states of one
# caller.
_Envelope = tuple[str, str, str | None, int, int, str | None]


class TerminalCache:
    """Terminal states by the keys of their executions, oldest first.

    States whose caller is gone (`mark_returned`) are evicted after all others: a caller that reconnects asks for those.
    *size* is in bytes as the bound counts them; *evicted* only grows.

    An entry is two `bytes`: a head that many share, which says since when it is there and what its envelope is, and the
    body. Such dicts are none of the garbage collector's business (up to CPython 3.13; later ones visit the dict, and
    still no entry). With a tuple for each of a hundred thousand states in its way, a full collection took 22 ms, and
    all of them together a fifteenth of a busy worker's CPU (RabbitMQ 3.10, CPython 3.11, 64 calls at once).
    """

    __slots__ = ("_bodies", "_delivered", "_heads", "_limits", "_now", "_returned", "evicted", "size")

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._delivered: dict[str, bytes] = {}  # heads, as in `_returned`
        self._returned: dict[str, bytes] = {}
        self._bodies: dict[str, bytes] = {}
        self._heads: dict[_Envelope, bytes] = {}  # those of the time step
        self._now = 0.0
        self.size = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def put(self, key: str, message: StateMessage, origin: str | None, now: float) -> None:
        """Enter a terminal state of the caller that first sent its request with the reply queue *origin*.

        It takes the place of what is there under *key*, which may be another caller's who chose the same id.
        """
        if key in self._bodies:
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
        body = message.body
        self._delivered[key] = head
        self._bodies[key] = body
        self.size += len(body) + STATE_OVERHEAD
        if self.size > self._limits.size:
            self.evict(now)

    def _head(self, envelope: _Envelope) -> bytes:
        if len(self._heads) >= _KEPT_HEADS:
            self._heads.clear()
        # What marshal writes only this process reads, and it takes every text and integer that a message may hold.
        head = self._heads[envelope] = _SINCE.pack(self._now) + marshal.dumps(envelope)
        return head

    def get(self, key: str, task_id: str, origin: str | None) -> StateMessage | None:
        """Return the terminal state that was entered for a caller, whichever attempt it is of."""
        body = self._bodies.get(key)
        if body is None:
            return None
        head = self._delivered.get(key) or self._returned[key]
        name, content_type, content_encoding, sequence, ended, entered_for = marshal.loads(head[_SINCE.size :])
        if entered_for != origin:
            return None
        return StateMessage(task_id, name, body, content_type, content_encoding, ended, sequence)

    def _discard(self, key: str) -> None:
        self.size -= len(self._bodies.pop(key)) + STATE_OVERHEAD
        if self._delivered.pop(key, None) is None:
            del self._returned[key]

    def mark_returned(self, key: str) -> None:
        """Keep an entry longer than others: its caller was not there."""
        head = self._delivered.pop(key, None)
        if head is not None:
            self._returned[key] = head

    def next_expiry(self, now: float) -> float:
        """Return when the oldest entry is past its age by a second; as if entered now where there is none."""
        oldest = now
        for heads in (self._delivered, self._returned):
            if heads:
                oldest = min(oldest, _since(next(iter(heads.values()))))
        return oldest + self._limits.age + EVICTION_DELAY

    def evict(self, now: float) -> None:
        """Drop what is too old or too much; from a large cache in portions, since to find the oldest entry of a dict
        costs the more, the more have gone before it.
        """
        limits, size = self._limits, self._limits.size
        if self.size > size > _LARGE:
            size -= min(size // _PORTION, _LARGE)
        for heads in (self._delivered, self._returned):
            gone: list[str] = []
            for key, head in heads.items():
                if self.size <= size and _since(head) + limits.age > now:
                    break
                gone.append(key)
                self.size -= len(self._bodies.pop(key)) + STATE_OVERHEAD
            for key in gone:
                del heads[key]
            self.evicted += len(gone)


def _since(head: bytes) -> float:
    since: float = _SINCE.unpack_from(head)[0]
    return since
