"""RouterStatistics: what a router holds and has counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RouterStatistics"]


@dataclass(frozen=True, slots=True)
class RouterStatistics:
    """What a router holds now, and what it has counted.

    Attributes:
        generation: how many connections there were; the number of the present or last one.
        pending: calls that are not settled.
        waiting: calls that wait for room, where `when_full` is "wait".
        out_of_band: tasks whose states are parked.
        out_of_band_size: bytes of those states.
        duplicates: states of tasks that were settled already.
        late: those of them whose task had ended here without an answer: at its deadline, by an error or a cancel.
        stale: states that an earlier one outdated.
        parked: states of tasks that nobody awaited.
        orphaned: those of them that were terminal, and answers of workers that nobody waited for.
        evicted: parked states that a bound pushed out before anybody read them.
        returned: requests that came back from a queue: expired, rejected, over a limit.
        malformed: messages on the reply queue that were no states.
        claims: claims that were sent for calls whose connection or channel was lost.
        resumed: calls that were answered after the connection or channel they were sent on was lost.
        republished: requests that were sent again, being idempotent and perhaps lost.
        cancelled: tasks that workers were told to stop.
        retried: calls that were made again.
    """

    generation: int
    pending: int
    waiting: int
    out_of_band: int
    out_of_band_size: int
    duplicates: int
    late: int
    stale: int
    parked: int
    orphaned: int
    evicted: int
    returned: int
    malformed: int
    claims: int
    resumed: int
    republished: int
    cancelled: int
    retried: int
