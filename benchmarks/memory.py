"""Memory of pending calls: starts the processes that `pending` is about, and asks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .contestants import AIORPCQ, Setup
from .processes import open_peer

__all__ = ["PENDING_CALLS", "Memory", "measure_memory"]

PENDING_CALLS = 100_000

_WEIGH_SECONDS = 600.0
_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What pending calls hold, in bytes.

    Attributes:
        calls: how many were pending at once.
        call: one pending call, without the caller's own task.
        task: that task, as it was taken off.
        first: all that is held once so many calls have timed out.
        second: all that is held once as many again have.
    """

    calls: int
    call: float
    task: float
    first: float
    second: float

    @property
    def growth(self) -> float:
        """What each of the second calls has left behind."""
        return (self.second - self.first) / self.calls


async def measure_memory(setup: Setup, *, uvloop: bool, tell: Callable[[str], None]) -> Memory:
    """Let 100,000 calls be pending, then twice let as many time out, and return what was held.

    Raises:
        PeerError: a process failed.
    """
    calls = PENDING_CALLS
    async with (
        open_peer("silent worker", AIORPCQ, setup, uvloop=uvloop),
        open_peer("pending", AIORPCQ, setup, uvloop=uvloop) as caller,
    ):
        tell(f"making {calls:,} calls that stay pending")
        weight = await caller.ask("weigh", within=_WEIGH_SECONDS, calls=calls)
        # As long as it takes to have them all pending, and something over.
        timeout = 1.5 * weight["seconds"] + _MARGIN_SECONDS
        tell(f"that took {weight['seconds']:.0f} s; each of the next two steps takes about twice as long")
        held = []
        for ordinal in ("a first", "a second"):
            tell(f"letting {ordinal} {calls:,} calls time out")
            answer = await caller.ask("time_out", within=timeout + _WEIGH_SECONDS, calls=calls, timeout=timeout)
            held.append(answer["held"])
    return Memory(calls, weight["call"], weight["task"], held[0], held[1])
