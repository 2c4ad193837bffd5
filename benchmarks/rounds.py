"""Rounds of loads: every contestant in every round, in turns, so that all share what the machine is like just then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .contestants import WORKERS, Setup
from .load import Sample
from .processes import BrokerClock, Peer, open_peer

__all__ = ["Entry", "Measurement", "Plan", "Rounds", "run_rounds"]

_WARM_UP_SECONDS = 0.5
_LEAD_IN = 0.25
_ANSWER_SECONDS = 60.0

Entry = tuple[str, int]
"""A contestant and its number of concurrent calls."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and where.

    Attributes:
        rounds: how often everything is measured.
        seconds: how long each measurement takes.
        uvloop: whether every process runs on uvloop.
        setup: what the processes agree on.
        broker: the CPU time of the broker.
        tell: takes a line about the progress.
    """

    rounds: int
    seconds: float
    uvloop: bool
    setup: Setup
    broker: BrokerClock
    tell: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load of one contestant. Latencies are in seconds, CPU in seconds a call; None is not known."""

    calls_per_second: float
    p50: float
    p99: float
    caller_cpu: float
    worker_cpu: float | None
    broker_cpu: float | None


class Rounds:
    """What the rounds have measured. The figures are medians over the rounds.

    A figure is named by its field of `Measurement`; it is None where it is not known.
    """

    def __init__(self) -> None:
        self._measured: dict[Entry, list[Measurement]] = {}

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._measured

    def add(self, entry: Entry, measurement: Measurement) -> None:
        self._measured.setdefault(entry, []).append(measurement)

    def median(self, entry: Entry, figure: str) -> float | None:
        return _median(self._figures(entry, figure))

    def ratio(self, entry: Entry, other: Entry, figure: str) -> float | None:
        """Return the median of the rounds' ratios of *entry* to *other*."""
        pairs = zip(self._figures(entry, figure), self._figures(other, figure), strict=True)
        return _median([one / two if one is not None and two else None for one, two in pairs])

    def _figures(self, entry: Entry, figure: str) -> list[float | None]:
        return [getattr(measurement, figure) for measurement in self._measured[entry]]


def _median(figures: list[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return median(known) if len(known) == len(figures) and known else None


@dataclass(frozen=True, slots=True)
class _Contestant:
    """The processes of one contestant; without a worker where the caller has its own."""

    caller: Peer
    worker: Peer | None

    async def measure(self, concurrency: int, seconds: float, broker: BrokerClock) -> Measurement:
        worker_before, broker_before = await self._worker_cpu(), broker.read()
        sample = await self._load(concurrency, seconds * _LEAD_IN, seconds)
        worker_after, broker_after = await self._worker_cpu(), broker.read()
        return Measurement(
            sample.calls_per_second,
            sample.p50,
            sample.p99,
            sample.cpu / sample.calls,
            _per_call(worker_before, worker_after, sample.calls),
            _per_call(broker_before, broker_after, sample.calls) if self.worker is not None else None,
        )

    async def warm_up(self, concurrency: int) -> None:
        await self._load(concurrency, 0.0, _WARM_UP_SECONDS)

    async def _load(self, concurrency: int, lead_in: float, seconds: float) -> Sample:
        answer = await self.caller.ask(
            "load",
            within=lead_in + seconds + _ANSWER_SECONDS,
            concurrency=concurrency,
            lead_in=lead_in,
            seconds=seconds,
        )
        return Sample(**answer)

    async def _worker_cpu(self) -> float | None:
        if self.worker is None:
            return None
        answer = await self.worker.ask("cpu", within=_ANSWER_SECONDS)
        return float(answer["cpu"])


def _per_call(before: float | None, after: float | None, calls: int) -> float | None:
    return None if before is None or after is None else (after - before) / calls


async def run_rounds(plan: Plan, entries: Sequence[Entry]) -> Rounds:
    """Measure *entries*, in this order, in every round.

    Every round has processes of its own, idle between their loads: how one comes to lie in memory, and its connection
    on the broker's threads, is worth up to a tenth of a call made alone, for as long as it lives.

    Raises:
        PeerError: a process failed.
    """
    rounds = Rounds()
    for number in range(1, plan.rounds + 1):
        async with contextlib.AsyncExitStack() as stack:
            contestants: dict[str, _Contestant] = {}
            for name in dict.fromkeys(name for name, _ in entries):
                contestants[name] = await _start(stack, name, plan)
            for name, concurrency in entries:
                await contestants[name].warm_up(concurrency)
            for name, concurrency in entries:
                measurement = await contestants[name].measure(concurrency, plan.seconds, plan.broker)
                rounds.add((name, concurrency), measurement)
                plan.tell(
                    f"round {number} of {plan.rounds}, {concurrency:>3} concurrent, {name:<9}"
                    f" {measurement.calls_per_second:>9,.0f} calls/s"
                )
    return rounds


async def _start(stack: contextlib.AsyncExitStack, name: str, plan: Plan) -> _Contestant:
    worker = None
    if name in WORKERS:
        worker = await stack.enter_async_context(open_peer("worker", name, plan.setup, uvloop=plan.uvloop))
    caller = await stack.enter_async_context(open_peer("caller", name, plan.setup, uvloop=plan.uvloop))
    return _Contestant(caller, worker)
