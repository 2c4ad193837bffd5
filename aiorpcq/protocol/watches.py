"""The calls without a deadline on a connection that stands: when to ask workers for them, and when nobody has them.

Nothing else would end such a call where its request is lost: its queue was deleted, or its worker took it for good and
died.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .calls import Call, Sending
from .claims import claims_for
from .control import CLAIM_LIMIT, Claim

__all__ = ["WatchTable"]

_PAUSE: Final = 10.0
"""Seconds from one round of questions to the next, for each 2,000 calls that are watched."""

_SILENCE: Final = 4
"""How many times its patience a call is without a word before it is given up: with 30 s, longer than a broker takes to
notice that a worker is gone whose host died (two heartbeats of 60 s at the most), and to deliver its requests again."""

_UNANSWERED: Final = 3


class _Watch:
    """A call, when it was seen first, when it was heard of last, and how often it was asked for since."""

    __slots__ = ("asked", "call", "heard", "since")

    def __init__(self, call: Call, now: float) -> None:
        self.call = call
        self.since = self.heard = now
        self.asked = 0


class WatchTable:
    """Confirmed calls without a deadline, and whether anybody has them.

    A call is asked after once it was seen *patience* seconds ago; most never are. `heard` says that a worker holds it,
    or a queue may. Calls that are claimed are not to be given here as well.
    """

    __slots__ = ("_watches", "due")

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}
        self.due: float | None = None

    def start(self, now: float, patience: float) -> None:
        """Begin with the rounds, unless they have begun: there is a call without a deadline."""
        if self.due is None:
            self.due = now + min(_PAUSE, patience)

    def stop(self) -> None:
        """End the rounds until `start`: there is no connection."""
        self.due = None
        self._watches.clear()

    def take(
        self, unbounded: list[Call], origin: str, now: float, patience: float, jitter: float, inquiry: str
    ) -> list[Claim]:
        """Return the questions of this round, as claims that move nothing, and set `due` to the next one.

        *unbounded* are the calls without a deadline that there are, *origin* is the reply queue that they were sent
        with, *jitter*, from 0 to 1, makes the pause that much of a half shorter, *inquiry* is the id of the answers.
        """
        known, self._watches = self._watches, {}
        for call in unbounded:
            if call.sending is Sending.CONFIRMED and call.route is not None:
                self._watches[call.task_id] = known.get(call.task_id) or _Watch(call, now)
        pause = min(_PAUSE, patience) * (1 + len(self._watches) // CLAIM_LIMIT)
        self.due = now + pause * (1 - jitter / 2) if unbounded else None
        asked = [watch for watch in self._watches.values() if watch.since <= now - patience]
        for watch in asked:
            watch.asked += 1
        return list(claims_for(origin, origin, [watch.call for watch in asked], now, inquiry))

    @property
    def asked(self) -> list[Call]:
        """The calls that were asked after."""
        return [watch.call for watch in self._watches.values() if watch.asked]

    def heard(self, task_ids: Iterable[str], now: float) -> None:
        """Take in that a worker, or a queue, has these tasks."""
        for task_id in task_ids:
            watch = self._watches.get(task_id)
            if watch is not None:
                watch.heard, watch.asked = now, 0

    def silent(self, now: float, patience: float) -> list[Call]:
        """Return the calls that nobody has said to have for four times *patience* seconds.

        The answers to the last round are still on their way: three rounds before it have to be unanswered as well.
        """
        return [
            watch.call
            for watch in self._watches.values()
            if watch.heard <= now - _SILENCE * patience and watch.asked > _UNANSWERED
        ]
