"""What the callers call: method, options and how they wait, drawn for each call. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import get_args

from aiorpcq.protocol.control import CancelMode

from .records import Mode

__all__ = ["MODES", "SERVICE", "Plan", "Verb", "plan_call"]

SERVICE = "chaos"

MODES: dict[str, Mode] = {
    "answer": "at_least_once",
    "thread": "at_least_once",
    "steps": "at_least_once",
    "fail": "at_least_once",
    "poison": "at_least_once",
    "once": "no_rerun",
    "swift": "at_most_once",
}
"""The methods of the workers, and how each is delivered."""


class Verb(Enum):
    """How a caller calls, and what it does then."""

    CALL = "call"
    CALL_AND_LEAVE = "call and leave"  # the wait is cancelled
    STREAM = "stream"
    SUBMIT = "submit"
    SUBMIT_AND_CANCEL = "submit and cancel"
    CAST = "cast"


@dataclass(frozen=True, slots=True)
class Plan:
    """One call.

    Attributes:
        method: name of the method.
        verb: how it is called.
        idempotent: whether the call says so.
        timeout: its seconds.
        seconds: how long the method takes.
        patience: seconds until the caller leaves or cancels, where it does.
        cancel_mode: how it cancels.
    """

    method: str
    verb: Verb
    idempotent: bool
    timeout: float
    seconds: float
    patience: float
    cancel_mode: CancelMode


_METHODS = {"answer": 10, "once": 5, "swift": 3, "steps": 2, "fail": 1, "thread": 1}
_VERBS = {
    Verb.CALL: 70,
    Verb.SUBMIT: 10,
    Verb.STREAM: 10,
    Verb.CALL_AND_LEAVE: 4,
    Verb.SUBMIT_AND_CANCEL: 4,
    Verb.CAST: 2,
}
_SLOW = 0.1
"""The share of the calls whose method takes long."""


def plan_call(random: Random) -> Plan:
    """Draw a call."""
    (method,) = random.choices(tuple(_METHODS), tuple(_METHODS.values()))
    (verb,) = random.choices(tuple(_VERBS), tuple(_VERBS.values()))
    seconds = random.uniform(0.1, 1.5) if random.random() < _SLOW else random.uniform(0.0, 0.02)
    return Plan(
        method=method,
        verb=verb,
        idempotent=random.random() < 0.3,
        timeout=random.uniform(5.0, 15.0),
        seconds=seconds,
        patience=random.uniform(0.0, 1.3 * seconds),  # before it begins, while it runs, after it has ended
        cancel_mode=random.choice(get_args(CancelMode)),
    )
