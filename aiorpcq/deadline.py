"""Deadlines: how long a call has, what it inherits from the call it is made in, and what a worker may believe of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["CLOCK_TOLERANCE", "RETURN_GRACE", "Lineage", "check_timeout", "current_lineage", "run_deadline"]

RETURN_GRACE = 0.1  # not Final, whose value compiled modules would hold: tests give a busy machine more
"""Seconds a caller waits past the expiration it sent, so that a request that expired in the broker comes back as not
run before the caller's own timer says that nothing is known."""

CLOCK_TOLERANCE: Final = 60.0
"""Seconds by which the clocks of caller and worker may differ."""

MAXIMUM_TIMEOUT: Final = 4_000_000.0
"""Seconds, about 46 days: RabbitMQ refuses an expiration above 2^32 - 1 milliseconds."""


class Lineage:
    """What a call made inside a method inherits: the time left, and the ids that tie the two together.

    *deadline* is on the monotonic clock of the event loop, None where the outer call has none. A plain slotted class,
    since one is made for every request.
    """

    __slots__ = ("deadline", "root_id", "task_id")

    def __init__(self, deadline: float | None, task_id: str, root_id: str) -> None:
        self.deadline = deadline
        self.task_id = task_id
        self.root_id = root_id


current_lineage: ContextVar[Lineage | None] = ContextVar("aiorpcq_lineage", default=None)


def check_timeout(timeout: object, option: str = "timeout") -> float | None:
    """Return *timeout*, which may be anything, in seconds; None is no timeout.

    Raises:
        ValueError: it is neither None nor a number of seconds in range; the text names *option*.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ValueError(f"{option}: {timeout!r} is not a number of seconds or None")
    if not 0 <= timeout <= MAXIMUM_TIMEOUT:  # NaN fails both comparisons
        raise ValueError(f"{option}: {timeout!r} is not between 0 and {MAXIMUM_TIMEOUT:.0f} seconds")
    return float(timeout)


def run_deadline(
    expiration: float | None, deadline: float | None, received_at: float, wall_clock: float
) -> float | None:
    """Return when a worker must stop a run, on the clock of *received_at*; None for never.

    The smaller of *expiration* counted from receipt, and the absolute *deadline* against the worker's own wall clock
    plus the tolerated skew; never more than `MAXIMUM_TIMEOUT`. The first is blind to the time spent in the queue, the
    second to clocks that differ.
    """
    budget = MAXIMUM_TIMEOUT if expiration is None else expiration
    if deadline is not None:
        until_deadline = deadline - wall_clock + CLOCK_TOLERANCE
        budget = min(budget, until_deadline)
    elif expiration is None:
        return None
    return received_at + (budget if budget < MAXIMUM_TIMEOUT else MAXIMUM_TIMEOUT)
