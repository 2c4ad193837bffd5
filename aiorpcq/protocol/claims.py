"""The reply queues of former connections that calls still wait on, and when to claim those calls again.

Whoever lost a connection says to the workers "what was to go to X goes to Y", and says it again until every call that
was sent with X is settled: a claim is lost as easily as an answer, and a worker may come back later than its caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .calls import Call, Phase, Sending
from .control import CLAIM_LIMIT, Claim

__all__ = ["ClaimTable", "claims_for"]

_DELAYS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
"""Seconds from one round of claims to the next; the last one for good."""

_LONGEST: Final = 3600.0
"""Seconds that workers are told to remember a claim at the most; it is repeated long before."""

_SHORTEST: Final = 1.0
_UNANSWERED: Final = 3


class ClaimTable:
    """Unsettled calls by the reply queue they were sent with, where that is not to be relied on any more.

    Calls that have been settled go at the next round, or with `drop_settled`. A call without a deadline is asked after:
    `heard` says that a worker holds it, or a queue may. *resumed* counts the calls that were answered after all.
    """

    __slots__ = ("_asked", "_calls", "_heard", "_round", "_unbounded", "due", "resumed")

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, Call]] = {}
        self._unbounded: dict[str, Call] = {}
        self._heard: dict[str, tuple[float, int]] = {}
        self._round = 0  # which decides about the pause before the next
        self._asked = 0  # all rounds since `start`
        self.due: float | None = None
        self.resumed = 0

    def __len__(self) -> int:
        return sum(map(len, self._calls.values()))

    def add(self, call: Call) -> None:
        """Have *call* claimed, from the next round on. It has an origin."""
        assert call.origin is not None
        self._calls.setdefault(call.origin, {})[call.task_id] = call
        if call.deadline is None:
            self._unbounded[call.task_id] = call

    def start(self, now: float) -> None:
        """Begin with the rounds: there is a connection, with a reply queue. The first is due at once."""
        self._round = self._asked = 0
        self.due = now if self._calls else None
        self._heard = dict.fromkeys(self._unbounded, (now, 0))

    def hasten(self, now: float) -> None:
        """Begin with the short pauses again for a call that was added; not at once, so that many make one round."""
        soon = now + _DELAYS[0]
        self._round = 0
        self.due = soon if self.due is None else min(self.due, soon)

    def stop(self) -> None:
        """End the rounds until `start`: there is no connection."""
        self.due = None

    def take(self, reply_to: str, now: float, jitter: float, inquiry: str) -> list[Claim]:
        """Return the claims of this round, and set `due` to the next one.

        What is left to be answered goes to *reply_to*. *jitter*, from 0 to 1, makes the pause that much of a half
        shorter, so that the clients of one broker do not all speak at once. *inquiry* is the id by which workers say
        what they hold of the calls without a deadline, and of those that the broker may not have.
        """
        self.drop_settled()
        if not self._calls:
            self.due = None
            return []
        pause = _DELAYS[min(self._round, len(_DELAYS) - 1)]
        self.due = now + pause * (1 - jitter / 2)
        self._round += 1
        self._asked += 1
        claims: list[Claim] = []
        for origin, calls in self._calls.items():
            known: list[Call] = []
            asked: list[Call] = []
            for call in calls.values():
                is_asked = call.deadline is None or call.sending is Sending.LOST
                (asked if is_asked else known).append(call)
            claims += claims_for(origin, reply_to, known, now, None)
            claims += claims_for(origin, reply_to, asked, now, inquiry)
        return claims

    def __contains__(self, task_id: object) -> bool:
        """Tell whether the call of that id, one without a deadline, is claimed."""
        return task_id in self._unbounded

    @property
    def unbounded(self) -> Iterable[Call]:
        """The calls without a deadline, as of the last round."""
        return self._unbounded.values()

    def heard(self, task_ids: Iterable[str], now: float) -> None:
        """Take in that a worker, or a queue, has these tasks."""
        for task_id in task_ids:
            if task_id in self._unbounded:
                self._heard[task_id] = now, self._asked

    def silent(self, now: float, patience: float) -> list[Call]:
        """Return the calls without a deadline that nobody has said to have for *patience* seconds.

        The answers to the last round are still on their way: two rounds before it have to be unanswered as well.
        """
        latest = now, self._asked
        silent: list[Call] = []
        for task_id, call in self._unbounded.items():
            heard, in_round = self._heard.setdefault(task_id, latest)
            if heard <= now - patience and in_round + _UNANSWERED <= self._asked:
                silent.append(call)
        return silent

    def drop_settled(self) -> None:
        """Let go of the calls that have been settled."""
        for origin, calls in list(self._calls.items()):
            ended = [call for call in calls.values() if call.phase is not Phase.PENDING]
            for call in ended:
                del calls[call.task_id]
                self._unbounded.pop(call.task_id, None)
                self._heard.pop(call.task_id, None)
                self.resumed += call.terminal is not None
            if not calls:
                del self._calls[origin]


def claims_for(origin: str, reply_to: str, calls: list[Call], now: float, inquiry: str | None) -> Iterable[Claim]:
    """Return *calls*, which were sent with *origin*, as claims for *reply_to*, of 2,000 calls at the most each."""
    for start in range(0, len(calls), CLAIM_LIMIT):
        claimed = calls[start : start + CLAIM_LIMIT]
        remaining = max(_LONGEST if call.deadline is None else call.deadline - now for call in claimed)
        expires = min(_LONGEST, max(_SHORTEST, remaining))
        yield Claim(origin, reply_to, tuple(call.task_id for call in claimed), expires, inquiry)
