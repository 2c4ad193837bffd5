"""What a broker tells about itself: snapshots, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BrokerStatistics", "QueueStatistics"]


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A queue at one moment: *depth* messages ready, *unsettled* ones delivered and neither acked nor given back."""

    depth: int
    unsettled: int
    consumers: int


@dataclass(frozen=True, slots=True)
class BrokerStatistics:
    """A broker at one moment, and what it has counted since it was made.

    A message is *dropped* where it leaves a queue other than by a consumer and no dead-letter exchange takes it.
    """

    links: int
    exchanges: int
    queues: Mapping[str, QueueStatistics]
    blocked: bool
    published: int
    unroutable: int
    refused: int
    delivered: int
    dead_lettered: int
    dropped: int
