"""What breaks when: the same faults for the same seed, every time.

When a fault strikes is said as a share of the calls that are made, so a slow machine gets the same schedule as a fast
one. The last part of a run is left in peace, so that what is judged at its end has had time to mend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

__all__ = ["Fault", "Kind", "make_schedule"]

FIRST = 0.02
"""The share of the calls that is made before the first fault."""

LAST = 0.95
"""The share of the calls after which nothing breaks any more."""


class Kind(Enum):
    """Something that breaks; the value is its name on the command line and in the report."""

    WORKER_KILLED = "worker-killed"
    WORKER_FROZEN = "worker-frozen"
    WORKER_DRAINED = "worker-drained"
    WORKER_LATE = "worker-late"
    POISON_REQUEST = "poison-request"
    CALLER_RESET = "caller-reset"
    CALLER_BLACKHOLE = "caller-blackhole"
    CALLER_CUT = "caller-cut"
    WORKER_RESET = "worker-reset"
    WORKER_BLACKHOLE = "worker-blackhole"
    WORKER_CUT = "worker-cut"
    WORKER_REFUSED = "worker-refused"
    LATENCY = "latency"
    BANDWIDTH = "bandwidth"
    SLICED = "sliced"
    CONNECTIONS_CLOSED = "connections-closed"
    CHANNELS_CLOSED = "channels-closed"
    SERVICE_QUEUE_DELETED = "service-queue-deleted"
    REPLY_QUEUE_DELETED = "reply-queue-deleted"
    CONSUMER_TIMEOUT = "consumer-timeout"
    MEMORY_ALARM = "memory-alarm"
    CALLS_CANCELLED = "calls-cancelled"
    BROKER_FROZEN = "broker-frozen"
    BROKER_RESTARTED = "broker-restarted"
    BROKER_KILLED = "broker-killed"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at: when it strikes, as a share of the calls of the run.
        kind: what breaks.
        worker: number of the worker it strikes, where it strikes one; where it strikes a link that can be anybody's,
            -1 is the callers'.
        seconds: how long it lasts, where it lasts.
        amount: how much of it: bytes after which a link is cut, milliseconds of latency, bytes a second, calls that are
            cancelled; elsewhere it chooses between the ways in which the fault can be made.
    """

    at: float
    kind: Kind
    worker: int
    seconds: float
    amount: int


# Seconds, shortest and longest; what is not here is over at once.
_SECONDS: dict[Kind, tuple[float, float]] = {
    Kind.WORKER_KILLED: (0.0, 2.0),  # until another takes its place
    Kind.WORKER_FROZEN: (0.5, 9.0),  # past two heartbeats, and not
    Kind.WORKER_DRAINED: (0.0, 1.0),
    Kind.WORKER_LATE: (2.0, 8.0),
    Kind.CALLER_BLACKHOLE: (1.0, 6.0),
    Kind.WORKER_BLACKHOLE: (1.0, 8.0),
    Kind.WORKER_REFUSED: (0.5, 3.0),
    Kind.LATENCY: (1.0, 4.0),
    Kind.BANDWIDTH: (1.0, 3.0),
    Kind.SLICED: (0.5, 2.0),
    Kind.MEMORY_ALARM: (0.2, 3.0),
    Kind.BROKER_FROZEN: (0.5, 5.0),
    Kind.BROKER_RESTARTED: (0.0, 0.5),
    Kind.BROKER_KILLED: (0.0, 0.5),
}

_AMOUNT: dict[Kind, tuple[int, int]] = {
    Kind.CALLER_CUT: (1, 3_000),
    Kind.WORKER_CUT: (1, 3_000),
    Kind.LATENCY: (10, 500),
    Kind.BANDWIDTH: (4_000, 40_000),
    Kind.CALLS_CANCELLED: (10, 100),
    Kind.CONNECTIONS_CLOSED: (0, 1),
    Kind.CHANNELS_CLOSED: (0, 3),
    Kind.WORKER_BLACKHOLE: (0, 2),
    Kind.CALLER_BLACKHOLE: (0, 2),
}

_ANY_LINK = frozenset({Kind.LATENCY, Kind.BANDWIDTH, Kind.SLICED})

# What stops everybody is rarer than the rest: each counts once in a deck, the others three times.
_RARE = frozenset({Kind.BROKER_RESTARTED, Kind.BROKER_KILLED, Kind.BROKER_FROZEN, Kind.POISON_REQUEST})
_OFTEN = 3


def make_schedule(seed: int, *, faults: int, workers: int, kinds: Sequence[Kind] = tuple(Kind)) -> tuple[Fault, ...]:
    """Return *faults* faults in order, drawn from nothing but the arguments.

    They are dealt from shuffled decks in which every kind is, so as many faults as a deck has cards are of all kinds;
    the first cards of the first deck are of kinds that differ.

    Raises:
        ValueError: *faults* is negative, there is no worker, or no kind.
    """
    if faults < 0:
        raise ValueError(f"faults: {faults} is negative")
    if workers < 1:
        raise ValueError(f"workers: {workers} is not above 0")
    if not kinds:
        raise ValueError("kinds: there is none")
    random = Random(f"aiorpcq chaos {seed}")
    cards: list[Kind] = []
    while len(cards) < faults:
        cards += _deck(random, kinds)
    share = (LAST - FIRST) / max(1, faults)
    return tuple(
        _draw(random, FIRST + share * (number + random.random()), kind, workers)
        for number, kind in enumerate(cards[:faults])
    )


def _deck(random: Random, kinds: Sequence[Kind]) -> list[Kind]:
    """Each kind once, shuffled; then, shuffled again, the rest of those that are not rare."""
    first = list(dict.fromkeys(kinds))
    rest = [kind for kind in first if kind not in _RARE for _ in range(_OFTEN - 1)]
    random.shuffle(first)
    random.shuffle(rest)
    return first + rest


def _draw(random: Random, at: float, kind: Kind, workers: int) -> Fault:
    # As many draws for each kind, so that a change to one leaves the others of a seed as they were.
    place, duration, amount = random.random(), random.random(), random.random()
    worker = int(place * (workers + 1)) - 1 if kind in _ANY_LINK else int(place * workers)
    shortest, longest = _SECONDS.get(kind, (0.0, 0.0))
    least, most = _AMOUNT.get(kind, (0, 0))
    return Fault(
        at=round(at, 6),
        kind=kind,
        worker=worker,
        seconds=round(shortest + (longest - shortest) * duration, 3),
        amount=least + int((most - least + 1) * amount),
    )
