"""From what was measured to what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contestants import AIO_PIKA, AIORPCQ, MEMORY
from .memory import Memory
from .rounds import Entry, Rounds
from .table import Table

__all__ = ["COMPARED_AT", "Results", "make_tables"]

COMPARED_AT = 64
"""The number of concurrent calls that most targets are about."""

_CALL_BYTES = 2048
_NOTHING_BYTES = 8.0
"""Bytes a call up to which a growth is none: whatever a call leaves behind takes a pointer at least."""

_PROCESSES = ("caller", "worker", "broker")
_FIGURES = ("calls_per_second", "p50", "p99", *(f"{process}_cpu" for process in _PROCESSES))
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured; None is what was not asked for."""

    throughput: Rounds | None = None
    memory_transport: Rounds | None = None
    memory: Memory | None = None


def make_tables(results: Results, concurrency: Sequence[int]) -> list[Table]:
    """Return what to print; last the targets, those that were measured."""
    tables = []
    if results.throughput is not None:
        tables.append(_throughput(results.throughput, concurrency))
    if results.memory_transport is not None:
        tables.append(_memory_transport(results.memory_transport, concurrency))
    if results.memory is not None:
        tables.append(_memory(results.memory))
    targets = _targets(results)
    return [*tables, targets] if targets.rows else tables


def _throughput(rounds: Rounds, concurrency: Sequence[int]) -> Table:
    rows = []
    for number in concurrency:
        for name in (AIORPCQ, AIO_PIKA):
            entry = (name, number)
            rows.append(
                [
                    str(number),
                    name,
                    _count(rounds.median(entry, "calls_per_second")),
                    _milliseconds(rounds.median(entry, "p50")),
                    _milliseconds(rounds.median(entry, "p99")),
                    *(_microseconds(rounds.median(entry, f"{process}_cpu")) for process in _PROCESSES),
                ]
            )
        ratios = [_ratio(rounds.ratio((AIORPCQ, number), (AIO_PIKA, number), figure)) for figure in _FIGURES]
        rows.append([str(number), "ratio", *ratios])
    columns = ["at once", "library", "calls/s", "p50 ms", "p99 ms"]
    title = "add(a, b), caller and worker in two processes; CPU in µs a call"
    return Table(title, [*columns, *(f"{process} CPU" for process in _PROCESSES)], rows, words=2)


def _memory_transport(rounds: Rounds, concurrency: Sequence[int]) -> Table:
    rows = []
    for number in concurrency:
        entry = (MEMORY, number)
        ratio = rounds.ratio(entry, (AIO_PIKA, number), "calls_per_second") if (AIO_PIKA, number) in rounds else None
        rows.append(
            [
                str(number),
                _count(rounds.median(entry, "calls_per_second")),
                _milliseconds(rounds.median(entry, "p50")),
                _milliseconds(rounds.median(entry, "p99")),
                _microseconds(rounds.median(entry, "caller_cpu")),
                _ratio(ratio),
            ]
        )
    title = f"add(a, b) over memory://, client and worker in one process, beside {AIO_PIKA} over the broker"
    return Table(title, ["at once", "calls/s", "p50 ms", "p99 ms", "CPU µs a call", f"to {AIO_PIKA}"], rows)


def _memory(memory: Memory) -> Table:
    rows = [
        [f"one of {memory.calls:,} pending calls", f"{memory.call:,.0f}"],
        ["the caller's own task around it, not counted above", f"{memory.task:,.0f}"],
        [f"everything, after {memory.calls:,} calls have timed out", f"{memory.first:,.0f}"],
        [f"everything, after {memory.calls:,} more have timed out", f"{memory.second:,.0f}"],
    ]
    return Table("Memory of the client, by tracemalloc", ["what", "bytes"], rows)


def _targets(results: Results) -> Table:
    memory = results.memory
    bound = (AIORPCQ, COMPARED_AT), (AIO_PIKA, COMPARED_AT)
    rate = _ratio_of(results.throughput, *bound, "calls_per_second")
    single = _ratio_of(results.throughput, (AIORPCQ, 1), (AIO_PIKA, 1), "calls_per_second")
    cpu = _ratio_of(results.throughput, *bound, "worker_cpu")
    in_memory = _ratio_of(results.memory_transport, (MEMORY, COMPARED_AT), (AIO_PIKA, COMPARED_AT), "calls_per_second")
    call = None if memory is None else memory.call
    growth = None if memory is None else memory.growth
    rows = [
        _target(f"calls/s at {COMPARED_AT}, to {AIO_PIKA}", "at least 7 x", _ratio(rate), _at_least(rate, 7)),
        _target(f"calls/s at 1, to {AIO_PIKA}", "at least 2.2 x", _ratio(single), _at_least(single, 2.2)),
        _target(f"worker CPU at {COMPARED_AT}, to {AIO_PIKA}", "at most 0.1 x", _ratio(cpu), _at_most(cpu, 0.1)),
        _target(
            f"calls/s of memory:// at {COMPARED_AT}, to {AIO_PIKA}",
            "at least 8 x",
            _ratio(in_memory),
            _at_least(in_memory, 8),
        ),
        _target("a pending call", f"at most {_CALL_BYTES:,} bytes", _bytes(call), _at_most(call, _CALL_BYTES)),
        _target(
            "each call of the second 100,000, timed out",
            "adds nothing",
            _bytes(growth),
            _at_most(growth, _NOTHING_BYTES),
        ),
    ]
    return Table(
        "Targets", ["what", "target", "measured", "result"], [row for row in rows if row[2] != _UNKNOWN], words=2
    )


def _ratio_of(rounds: Rounds | None, entry: Entry, other: Entry, figure: str) -> float | None:
    if rounds is None or entry not in rounds or other not in rounds:
        return None
    return rounds.ratio(entry, other, figure)


def _target(what: str, target: str, measured: str, reached: bool) -> list[str]:
    return [what, target, measured, "reached" if reached else "missed"]


def _at_least(measured: float | None, bound: float) -> bool:
    return measured is not None and measured >= bound


def _at_most(measured: float | None, bound: float) -> bool:
    return measured is not None and measured <= bound


def _count(figure: float | None) -> str:
    return _UNKNOWN if figure is None else f"{figure:,.0f}"


def _bytes(figure: float | None) -> str:
    if figure is None:
        return _UNKNOWN
    return f"{figure:,.0f} bytes" if abs(figure) >= 10 else f"{figure:.2f} bytes"


def _milliseconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds * 1e3:,.2f}"


def _microseconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds * 1e6:,.1f}"


def _ratio(figure: float | None) -> str:
    """Two digits after the point, three below one: 0.104 must not read as the 0.1 it misses."""
    if figure is None:
        return _UNKNOWN
    return f"{figure:.2f} x" if figure >= 1 else f"{figure:.3f} x"
