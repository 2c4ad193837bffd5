"""The judge: from what was recorded of a run, whether every promise was kept. Pure.

The invariants are those of the guarantees page. What that page excuses is counted apart, and is no breach.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from .mix import Verb
from .records import Call, Disturbance, History, MemorySample, Result, Run, Settlement, answer_to

__all__ = ["Breach", "Invariant", "Verdict", "check"]

SETTLE_BOUND = 3.0
"""Seconds past its deadline that a call may be settled; much for a library, little for a machine that is overloaded."""

DETECTION = 15.0
"""Seconds after a disturbance in which its consequences can still begin: silence is noticed late, on both sides."""

GROWTH_RATIO = 1.10
GROWTH_BYTES = 8 * 1024 * 1024
"""What the callers' memory may grow by in the second half of a run, together, and count as flat."""

_MAY_HAVE_BEGUN = frozenset({"DeadlineExceeded", "Overloaded", "Rejected"})
"""Errors by which a request comes back from its queue; the guarantees say when "not executed" is not certain there."""


class Invariant(Enum):
    """What must not happen; the value is its name in the report."""

    LOST = "lost"
    HUNG = "hung"
    SETTLED_TWICE = "settled twice"
    LEAKED = "leaked"
    MEMORY_GREW = "memory grew"
    WRONG_VALUE = "wrong values"
    UNTYPED_ERROR = "untyped errors"
    FALSE_CERTAINTY = 'run although "not executed"'
    RUN_AGAIN = "run again against the mode"
    TOO_MANY_ATTEMPTS = "run more than max_attempts times"
    RUN_TWICE_IN_ONE_WORKER = "attempts run twice in one worker"
    UNASKED = "runs that nobody asked for"
    WITHOUT_CAUSE = "errors without a cause"


@dataclass(frozen=True, slots=True)
class Breach:
    """An invariant that was broken; *token* says by which call, where one did it."""

    invariant: Invariant
    token: str
    text: str


@dataclass(slots=True)
class Verdict:
    """What came of it all.

    Attributes:
        calls: calls made.
        results: how they ended, as their callers saw it.
        errors: the errors among them by class.
        unknown: errors that say the method may have run.
        not_run: errors that say it did not.
        excused: of those, the ones whose method had begun, as the guarantees page allows.
        runs: runs of methods that were begun.
        run_again: runs that were not the first of their call.
        latest: seconds past its deadline of the call that was settled the latest.
        memory: bytes of the callers in the middle of the run and at its end; None where they were not measured.
        breaches: what must not be.
    """

    calls: int = 0
    results: Counter[Result] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    not_run: int = 0
    excused: int = 0
    runs: int = 0
    run_again: int = 0
    latest: float = 0.0
    memory: tuple[float, float] | None = None
    breaches: list[Breach] = field(default_factory=list)

    @property
    def broken(self) -> Counter[Invariant]:
        """How often each invariant was broken."""
        return Counter(breach.invariant for breach in self.breaches)


def check(history: History) -> Verdict:
    """Judge a run."""
    settlements: defaultdict[str, list[Settlement]] = defaultdict(list)
    for settlement in history.settlements:
        settlements[settlement.token].append(settlement)
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for run in history.runs:
        runs[run.token].append(run)
    verdict = Verdict(calls=len(history.calls), runs=len(history.runs))
    for call in history.calls:
        ends, begun = settlements.pop(call.token, []), runs.pop(call.token, [])
        verdict.run_again += max(0, len(begun) - 1)
        verdict.breaches += _judge_settlements(call, ends)
        for end in ends:
            _count(verdict, call, end)
            verdict.breaches += _judge_value(call, end, begun)
            verdict.breaches += _judge_cause(call, end, history.disturbances)
        for end in ends[:1]:
            verdict.breaches += _judge_certainty(call, end, begun, history.disturbances, verdict)
        verdict.breaches += _judge_runs(call, begun, history.max_attempts)
    for token in [*settlements, *runs]:
        verdict.breaches.append(Breach(Invariant.UNASKED, token, "there is no such call"))
    for leftover in history.leftovers:
        if leftover.count:
            text = f"{leftover.owner} still held {leftover.count} {leftover.what} at the end"
            verdict.breaches.append(Breach(Invariant.LEAKED, "", text))
    verdict.memory = compare_memory(history.memory)
    if verdict.memory is not None and verdict.memory[1] > verdict.memory[0] * GROWTH_RATIO + GROWTH_BYTES:
        middle, end_size = verdict.memory
        text = f"{middle / 2**20:.1f} MiB in the middle of the run, {end_size / 2**20:.1f} MiB at its end"
        verdict.breaches.append(Breach(Invariant.MEMORY_GREW, "", text))
    if not history.finished:
        verdict.breaches.append(Breach(Invariant.HUNG, "", "the callers did not come to their end"))
    return verdict


def compare_memory(samples: Sequence[MemorySample]) -> tuple[float, float] | None:
    """Return the memory in the middle of the run and at its end, None where one of them was not measured."""
    middle = [sample.size for sample in samples if 0.4 <= sample.share <= 0.6]
    end = [sample.size for sample in samples if sample.share >= 1]
    return (median(middle), median(end)) if middle and end else None


def _count(verdict: Verdict, call: Call, end: Settlement) -> None:
    verdict.results[end.result] += 1
    verdict.latest = max(verdict.latest, end.at - call.started - call.timeout)
    if end.result is Result.ERROR:
        verdict.errors[end.error] += 1
        verdict.unknown += end.maybe_executed
        verdict.not_run += not end.maybe_executed


def _judge_settlements(call: Call, ends: Sequence[Settlement]) -> Iterator[Breach]:
    if not ends:
        yield Breach(Invariant.LOST, call.token, "nothing is known of its end")
    if len(ends) > 1:
        yield Breach(Invariant.SETTLED_TWICE, call.token, f"it was settled {len(ends)} times")
    late = max((end.at - call.started - call.timeout for end in ends), default=0.0)
    if late > SETTLE_BOUND or any(end.result is Result.HUNG for end in ends):
        yield Breach(Invariant.HUNG, call.token, f"it was settled {late:.2f} s past its deadline")


def _judge_value(call: Call, end: Settlement, begun: Sequence[Run]) -> Iterator[Breach]:
    """Judge whether an outcome is one that this call can have."""
    if end.result is Result.UNTYPED:
        yield Breach(Invariant.UNTYPED_ERROR, call.token, f"{end.error}: {end.value}")
    elif end.result is Result.VALUE:
        if call.method == "fail" or end.value != answer_to(call.token):
            yield Breach(Invariant.WRONG_VALUE, call.token, f"the value is {end.value!r:.200}")
        elif not begun:
            yield Breach(Invariant.WRONG_VALUE, call.token, "there is a value, and no worker has run it")
    elif end.error == "RemoteError" and (call.method != "fail" or end.value != answer_to(call.token)):
        yield Breach(Invariant.WRONG_VALUE, call.token, f"the method is said to have raised {end.value!r:.200}")


def _judge_cause(call: Call, end: Settlement, disturbances: Sequence[Disturbance]) -> Iterator[Breach]:
    """Judge whether something was wrong that an error can have come from, in the time of the call or before it."""
    if end.result is not Result.ERROR or end.error == "RemoteError":
        return
    if end.error == "TaskRevoked" and call.verb == Verb.SUBMIT_AND_CANCEL.value:
        return
    if not any(each.started <= end.at and each.ended + DETECTION >= call.started for each in disturbances):
        yield Breach(Invariant.WITHOUT_CAUSE, call.token, f"{end.error} ({end.value}), and nothing was broken")


def _judge_certainty(
    call: Call, end: Settlement, begun: Sequence[Run], disturbances: Sequence[Disturbance], verdict: Verdict
) -> Iterator[Breach]:
    """Judge an error that says the method was not run; one that the guarantees excuse is counted."""
    if end.result is not Result.ERROR or end.maybe_executed or not begun:
        return
    # A request that was begun goes back to its queue when its worker is lost, and can expire there before another
    # takes it. The broker says nothing of the first delivery then.
    excused = (
        end.error in _MAY_HAVE_BEGUN
        and call.mode != "at_most_once"
        and all(any(_explains(disturbance, run, end.at) for disturbance in disturbances) for run in begun)
    )
    if excused:
        verdict.excused += 1
    else:
        text = f"{end.error} ({end.value}) says it was not executed, {len(begun)} runs were begun"
        yield Breach(Invariant.FALSE_CERTAINTY, call.token, text)


def _explains(disturbance: Disturbance, run: Run, until: float) -> bool:
    """Whether a disturbance can have taken the request from its worker between the run's begin and *until*."""
    return (
        disturbance.worker in (None, run.worker)
        and disturbance.started <= until
        and disturbance.ended + DETECTION >= run.started
    )


def _judge_runs(call: Call, begun: Sequence[Run], max_attempts: int) -> Iterator[Breach]:
    """Judge how often a call was run, and where.

    An idempotent call may be published again under the same attempt, and so be run by two workers; that is what the
    word is for.
    """
    if call.mode != "at_least_once" and not call.idempotent and len(begun) > 1:
        yield Breach(Invariant.RUN_AGAIN, call.token, f"{call.mode}, and {len(begun)} runs were begun")
    tasks: defaultdict[str, list[Run]] = defaultdict(list)
    for run in begun:
        tasks[run.task_id].append(run)
    for task_id, of_task in tasks.items():
        number = max(run.attempt for run in of_task) if call.idempotent else len(of_task)
        if number > max_attempts:
            yield Breach(Invariant.TOO_MANY_ATTEMPTS, call.token, f"task {task_id} was run {number} times")
        for (worker, attempt), times in Counter((run.worker, run.attempt) for run in of_task).items():
            if times > 1:
                text = f"attempt {attempt} of task {task_id} was run {times} times by worker {worker}"
                yield Breach(Invariant.RUN_TWICE_IN_ONE_WORKER, call.token, text)
