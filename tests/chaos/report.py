"""What a chaos run prints at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Table

from .history import GROWTH_BYTES, GROWTH_RATIO, SETTLE_BOUND, Breach, Invariant
from .records import History, Result
from .run import Outcome

__all__ = ["make_tables", "write_breaches"]

_SHOWN = 20
"""Histories of broken calls that are written out."""

_LINES = 60
"""Lines of one such history."""

_DUPLICATES = "client: duplicates"


def make_tables(outcome: Outcome) -> list[Table]:
    """Return the tables: what was made and came of it, the errors, the faults, the invariants."""
    verdict = outcome.verdict
    return [
        Table("What came of the calls", ["", "count"], list(_figures(outcome))),
        Table(
            "Typed errors",
            ["error", "calls"],
            [[name, f"{count:,}"] for name, count in verdict.errors.most_common()],
        ),
        Table(
            "Faults injected",
            ["fault", "times"],
            [
                [kind.value, f"{count:,}"]
                for kind, count in sorted(outcome.faults.items(), key=lambda item: item[0].value)
            ],
        ),
        Table("What must not be", ["invariant", "broken"], list(_invariants(outcome))),
        Table("Counted", ["", "count"], [[name, f"{count:,}"] for name, count in sorted(outcome.counted.items())]),
    ]


def _figures(outcome: Outcome) -> Iterator[list[str]]:
    verdict = outcome.verdict
    results = verdict.results
    seconds = max(outcome.seconds, 0.001)
    yield ["calls made", f"{verdict.calls:,}"]
    yield ["calls a second, outages included", f"{verdict.calls / seconds:,.0f}"]
    yield ["faults injected", f"{outcome.faults.total():,}"]
    yield ["kinds of faults", f"{len(outcome.faults):,}"]
    yield ["values", f"{results[Result.VALUE]:,}"]
    yield ["casts confirmed", f"{results[Result.CONFIRMED]:,}"]
    yield ["waits cancelled by the caller", f"{results[Result.CANCELLED]:,}"]
    yield ["typed errors", f"{results[Result.ERROR]:,}"]
    yield ["of them unknown outcomes (maybe executed)", f"{verdict.unknown:,}"]
    yield ["of them provably not executed", f"{verdict.not_run:,}"]
    yield ["of those begun and excused, see the guarantees", f"{verdict.excused:,}"]
    yield ["runs of methods", f"{verdict.runs:,}"]
    yield ["of them not the first of their call", f"{verdict.run_again:,}"]
    yield ["duplicates absorbed by the client", f"{outcome.counted.get(_DUPLICATES, 0):,}"]
    yield ["latest settlement, seconds past its deadline", f"{max(0.0, verdict.latest):.2f}"]
    if verdict.memory is not None:
        middle, end = verdict.memory
        yield ["memory of the callers, middle of the run", f"{middle / 2**20:.1f} MiB"]
        yield ["memory of the callers, end", f"{end / 2**20:.1f} MiB"]


def _invariants(outcome: Outcome) -> Iterator[list[str]]:
    broken = outcome.verdict.broken
    for invariant in Invariant:
        if invariant is not Invariant.MEMORY_GREW:
            yield [_NAMES.get(invariant, invariant.value), f"{broken[invariant]:,}"]
        elif outcome.verdict.memory is None:
            yield [invariant.value, "not measured"]
        else:
            yield [_NAMES[invariant], "yes" if broken[invariant] else "no"]


_NAMES = {
    Invariant.HUNG: f"hung (settled {SETTLE_BOUND:g} s past the deadline, or never)",
    Invariant.MEMORY_GREW: f"memory grew (over {GROWTH_RATIO - 1:.0%} and {GROWTH_BYTES // 2**20} MiB)",
}


def write_breaches(outcome: Outcome, path: Path) -> None:
    """Write the first broken calls with all that is known of them, and what the processes printed."""
    history = outcome.history
    blocks = [_tell_of(breach, history) for breach in _first(outcome.verdict.breaches)]
    faults = sorted(history.disturbances, key=lambda fault: fault.started)
    blocks.append("\n".join(["Disturbances", *map(repr, faults)]))
    blocks.append(f"What the processes printed\n{outcome.log}")
    path.write_text("\n\n".join(blocks) + "\n")


def _first(breaches: list[Breach]) -> Iterator[Breach]:
    """The first of each invariant, then the first of all, no more than are shown."""
    chosen = {breach.invariant: breach for breach in reversed(breaches)}
    first = list(chosen.values())
    yield from (first + [breach for breach in breaches if breach not in first])[:_SHOWN]


def _tell_of(breach: Breach, history: History) -> str:
    lines = [f"{breach.invariant.value}: {breach.token or '-'}: {breach.text}"]
    if breach.token:
        events = [
            *((call.started, call) for call in history.calls if call.token == breach.token),
            *((run.started, run) for run in history.runs if run.token == breach.token),
            *((end.at, end) for end in history.settlements if end.token == breach.token),
        ]
        lines += [f"  {at:.3f} {event!r}" for at, event in sorted(events, key=lambda pair: pair[0])]
        if events:
            first, last = min(at for at, _ in events), max(at for at, _ in events)
            lines += [
                f"  {fault.started:.3f} to {fault.ended:.3f} {fault.kind} of {fault.worker or 'all'}"
                for fault in history.disturbances
                if fault.started <= last and fault.ended >= first - 5
            ]
    if len(lines) > _LINES:
        lines[_LINES:] = [f"  and {len(lines) - _LINES} more"]
    return "\n".join(lines)
