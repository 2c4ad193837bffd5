"""A closed-loop load: so many callers, each making its next call when the last one is answered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from .contestants import Call

__all__ = ["Sample", "run_load"]


class WrongAnswer(Exception):
    """A call returned something else than the sum."""


class NoAnswer(Exception):
    """No call was answered in the time that is measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one load measured.

    Attributes:
        calls_per_second: calls answered in the measured time, by its length.
        p50: median latency of these calls, in seconds.
        p99: the latency that 99 in 100 of them did not pass, in seconds.
        calls: all calls of the load, those before and after the measured time included.
        cpu: seconds of CPU that this process spent on all of them.
    """

    calls_per_second: float
    p50: float
    p99: float
    calls: int
    cpu: float


async def run_load(call: Call, *, concurrency: int, lead_in: float, seconds: float) -> Sample:
    """Load for *lead_in* seconds without measuring, then measure for *seconds*, then let the last calls end.

    Rate and latency are taken while the load is steady, so neither its start nor its end counts. CPU is counted from
    rest to rest, which needs no clock that caller, worker and broker share.

    Raises:
        WrongAnswer, NoAnswer: as said there; what a call raises passes in an exception group.
    """
    latencies: list[float] = []
    running = True

    async def make_calls(b: int) -> None:
        answered, clock = latencies.append, time.perf_counter  # the loop's own clock has milliseconds in uvloop
        a = 0
        while running:
            a += 1
            begin = clock()
            value = await call(a, b)
            answered(clock() - begin)
            if value != a + b:
                raise WrongAnswer(f"add({a}, {b}) returned {value!r}")

    cpu = time.process_time()
    async with asyncio.TaskGroup() as group:
        for number in range(concurrency):
            group.create_task(make_calls(number))
        await asyncio.sleep(lead_in)
        first, begin = len(latencies), time.perf_counter()
        await asyncio.sleep(seconds)
        last, end = len(latencies), time.perf_counter()
        running = False
    cpu = time.process_time() - cpu
    measured = sorted(latencies[first:last])
    if not measured:
        raise NoAnswer(f"none of {concurrency} concurrent calls was answered within {seconds:g} s")
    return Sample(
        calls_per_second=len(measured) / (end - begin),
        p50=_percentile(measured, 50),
        p99=_percentile(measured, 99),
        calls=len(latencies),
        cpu=cpu,
    )


def _percentile(values: list[float], percent: int) -> float:
    """Return the smallest of the sorted *values* that *percent* of them do not pass (nearest rank)."""
    return values[-(-len(values) * percent // 100) - 1]
