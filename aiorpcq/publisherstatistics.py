"""PublisherStatistics: what the outgoing side of a worker has counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PublisherStatistics"]


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What a publisher has done so far.

    Attributes:
        succeeded: terminal states published that are SUCCESS.
        failed: terminal states published that are not.
        updates: states published that are not terminal.
        returned: terminal states that found no reply queue: the caller is gone.
        refused: terminal states that the broker refused.
        lost: terminal states whose link was lost before their confirm; the redelivered request gets them again.
        moved: terminal states that were returned and sent again, to where their caller had moved.
        resent: terminal states that were sent again because their caller asked for them.
        unconfirmed: terminal states that wait for their confirm now.
    """

    succeeded: int
    failed: int
    updates: int
    returned: int
    refused: int
    lost: int
    moved: int
    resent: int
    unconfirmed: int
