"""What a delivery that comes again means: how often its runs were lost, and whether it may run once more.

A run is lost when its worker dies, or its link, before the answer is confirmed; the broker then delivers the request
again. A classic queue only says that it did so before, so the worker publishes the request again with the count in a
header, and runs it when that comes. A quorum queue counts by itself.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

__all__ = ["Decision", "DeliveryMode", "Suspects", "decide"]

DeliveryMode = Literal["at_least_once", "no_rerun", "at_most_once"]
"""What becomes of a request whose worker is lost.

"at_least_once" runs it again, elsewhere, up to `max_attempts` times. "no_rerun" answers `WorkerLost` where its run may
have begun. "at_most_once" acknowledges a request when its run starts, so that a lost worker loses it too, and confirms
nothing: the fastest.
"""

_COUNTED_LIMIT: Final = 10
"""Deliveries that a quorum queue may count before the request is published again, so that its own limit of 20 (RabbitMQ
4.0, "Quorum Queues") does not take what `max_attempts` is to decide about."""

_ALONE_FROM: Final = 2
"""Lost runs from which on a request runs with no other beside it that has lost one: the third run is the first such."""


class Decision(Enum):
    """What to do with a request that is neither running nor answered here."""

    RUN = "run"
    COUNT = "count"
    """Publish it again with one more lost run, and acknowledge this delivery."""
    LOST = "lost"
    """Answer `WorkerLost`."""
    POISONED = "poisoned"
    """Move it to the dead letters and answer `Poisoned`."""


def decide(
    mode: DeliveryMode, *, redelivered: bool, counted: int, losses: int, max_attempts: int
) -> tuple[Decision, int]:
    """Decide about a delivery; return how many of its runs were lost, too.

    *counted* is the quorum queue's count of earlier deliveries, 0 on a classic queue; *losses* is what the request
    itself says.
    """
    if redelivered:
        losses += counted or 1
        if mode != "at_least_once":
            return Decision.LOST, losses
    if losses >= max_attempts:
        return Decision.POISONED, losses
    if redelivered and (not counted or counted >= _COUNTED_LIMIT):
        return Decision.COUNT, losses
    return Decision.RUN, losses


class Suspects:
    """The running requests that have lost a run before: one of them may be what kills workers.

    From its third run on a request has no other of them beside it, so that a poisonous neighbour cannot condemn it.
    """

    __slots__ = ("_alone", "running")

    def __init__(self) -> None:
        self.running = 0
        self._alone = False

    def admits(self, losses: int) -> bool:
        """Tell whether a request with so many lost runs may start now."""
        if not losses:
            return True
        return not self._alone and (losses < _ALONE_FROM or not self.running)

    def start(self, losses: int) -> bool:
        """Count one that starts, and tell whether it runs alone; those without lost runs need not be counted."""
        self.running += 1
        self._alone = losses >= _ALONE_FROM
        return self._alone

    def end(self) -> None:
        """Count one that has ended."""
        self.running -= 1
        self._alone = False
