"""The chaos runner: its schedule, its judge on histories that are good and that are broken, and one short run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.history import DETECTION, SETTLE_BOUND, Invariant, check
from tests.chaos.journal import Journal, read_history
from tests.chaos.mix import MODES, plan_call
from tests.chaos.records import Call, Disturbance, History, Leftover, MemorySample, Result, Run, Settlement, answer_to
from tests.chaos.report import make_tables, write_breaches
from tests.chaos.run import Outcome, Plan, run_chaos
from tests.chaos.schedule import FIRST, LAST, Kind, make_schedule

_MIB = 1024 * 1024


def _call(token: str = "a", method: str = "answer", **fields: object) -> Call:
    call = Call(token, "call", method, MODES[method], idempotent=False, started=100.0, timeout=5.0)
    return replace(call, **fields)  # type: ignore[arg-type]  # mypy cannot see the fields through a mapping


def _value(token: str = "a", at: float = 101.0) -> Settlement:
    return Settlement(token, at, Result.VALUE, answer_to(token))


def _error(error: str, *, maybe_executed: bool, token: str = "a", at: float = 101.0) -> Settlement:
    return Settlement(token, at, Result.ERROR, "text", error, maybe_executed)


def _run(token: str = "a", task_id: str = "t", attempt: int = 1, worker: str = "0.1", started: float = 100.5) -> Run:
    return Run(token, task_id, attempt, worker, started, started + 0.1)


def _broken(history: History) -> list[Invariant]:
    return [breach.invariant for breach in check(history).breaches]


# --- the schedule


@given(
    seed=st.integers(),
    faults=st.integers(0, 300),
    workers=st.integers(1, 10),
    kinds=st.lists(st.sampled_from(Kind), min_size=1, unique=True),
)
def test_the_same_seed_gives_the_same_schedule(seed: int, faults: int, workers: int, kinds: list[Kind]) -> None:
    schedule = make_schedule(seed, faults=faults, workers=workers, kinds=kinds)
    assert schedule == make_schedule(seed, faults=faults, workers=workers, kinds=kinds)
    assert len(schedule) == faults
    assert [fault.at for fault in schedule] == sorted(fault.at for fault in schedule)
    assert all(FIRST <= fault.at <= LAST for fault in schedule)
    assert {fault.kind for fault in schedule} <= set(kinds)
    assert all(-1 <= fault.worker < workers and fault.seconds >= 0 and fault.amount >= 0 for fault in schedule)


def test_another_process_gets_the_same_schedule() -> None:
    program = "from tests.chaos.schedule import make_schedule; print(make_schedule(7, faults=50, workers=3))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(make_schedule(7, faults=50, workers=3))


def test_other_seeds_give_other_schedules() -> None:
    assert len({make_schedule(seed, faults=20, workers=3) for seed in range(50)}) == 50


@given(seed=st.integers())
def test_as_many_faults_as_there_are_kinds_are_one_of_each(seed: int) -> None:
    assert {fault.kind for fault in make_schedule(seed, faults=len(Kind), workers=3)} == set(Kind)


@given(seed=st.integers())
def test_restarts_of_the_broker_are_rarer_than_the_rest(seed: int) -> None:
    kinds = [fault.kind for fault in make_schedule(seed, faults=200, workers=3)]
    assert kinds.count(Kind.BROKER_RESTARTED) < kinds.count(Kind.WORKER_KILLED)


@pytest.mark.parametrize(("option", "value"), [("faults", -1), ("workers", 0), ("kinds", [])])
def test_a_schedule_that_cannot_be_is_refused_by_name(option: str, value: object) -> None:
    options = {"faults": 1, "workers": 1, "kinds": list(Kind)} | {option: value}
    with pytest.raises(ValueError, match=option):
        make_schedule(1, **options)  # type: ignore[arg-type]  # that is what is tested


@given(seed=st.integers())
def test_the_same_seed_gives_the_same_calls(seed: int) -> None:
    first, second = Random(seed), Random(seed)
    plans = [plan_call(first) for _ in range(20)]
    assert plans == [plan_call(second) for _ in range(20)]
    assert all(plan.method in MODES and plan.timeout > 0 for plan in plans)


# --- the judge


@st.composite
def _good_histories(draw: st.DrawFn) -> History:
    history = History()
    for number in range(draw(st.integers(0, 20))):
        token = f"c{number}"
        method = draw(st.sampled_from(sorted(set(MODES) - {"fail", "poison"})))
        call = _call(token, method, timeout=draw(st.floats(1, 10)), idempotent=draw(st.booleans()))
        history.calls.append(call)
        runs = draw(st.integers(1, 4 if call.mode == "at_least_once" else 1))
        at = call.started + draw(st.floats(0, call.timeout))
        error = draw(st.sampled_from([None, "DeadlineExceeded", "ConnectionLost", "WorkerLost"]))
        maybe_executed = draw(st.booleans())
        if error is None:
            history.settlements.append(_value(token, at))
        else:
            history.settlements.append(_error(error, maybe_executed=maybe_executed, token=token, at=at))
        if error is None or maybe_executed:
            history.runs += [_run(token, f"t{number}", attempt + 1, f"{attempt}.1") for attempt in range(runs)]
    history.disturbances.append(Disturbance("broker-restarted", 100.0, 103.0))
    draw(st.randoms(use_true_random=False)).shuffle(history.runs)
    return history


@given(history=_good_histories())
def test_a_history_that_keeps_every_promise_passes(history: History) -> None:
    verdict = check(history)
    assert verdict.breaches == []
    assert verdict.calls == verdict.results.total() == len(history.calls)
    assert verdict.unknown + verdict.not_run == verdict.errors.total() == verdict.results[Result.ERROR]


@given(history=_good_histories().filter(lambda history: history.settlements), data=st.data())
def test_a_settlement_too_few_or_too_many_is_found_whatever_the_rest(history: History, data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(history.settlements))
    history.settlements.append(end)
    assert _broken(history) == [Invariant.SETTLED_TWICE]
    history.settlements = [other for other in history.settlements if other.token != end.token]
    assert _broken(history) == [Invariant.LOST]


def test_a_call_that_is_settled_past_its_deadline_and_the_bound_is_hung() -> None:
    deadline = 105.0
    history = History([_call()], [_value(at=deadline + SETTLE_BOUND - 0.1)], [_run()])
    assert _broken(history) == []
    history.settlements = [_value(at=deadline + SETTLE_BOUND + 0.1)]
    assert _broken(history) == [Invariant.HUNG]


def test_a_call_that_its_caller_gave_up_is_hung() -> None:
    assert _broken(History([_call()], [Settlement("a", 101.0, Result.HUNG)])) == [Invariant.HUNG]


def test_callers_that_do_not_come_to_their_end_are_hung() -> None:
    assert _broken(History(finished=False)) == [Invariant.HUNG]


def test_the_value_of_another_call_is_wrong() -> None:
    history = History([_call()], [Settlement("a", 101.0, Result.VALUE, answer_to("b"))], [_run()])
    assert _broken(history) == [Invariant.WRONG_VALUE]


def test_a_value_that_nobody_computed_is_wrong() -> None:
    assert _broken(History([_call()], [_value()])) == [Invariant.WRONG_VALUE]


def test_what_a_method_raises_has_to_be_its_own() -> None:
    raised = Settlement("a", 101.0, Result.ERROR, answer_to("a"), "RemoteError", True)
    assert _broken(History([_call(method="fail")], [raised], [_run()])) == []
    assert _broken(History([_call(method="fail")], [replace(raised, value=answer_to("b"))], [_run()])) == [
        Invariant.WRONG_VALUE
    ]
    assert _broken(History([_call()], [raised], [_run()])) == [Invariant.WRONG_VALUE]
    assert _broken(History([_call(method="fail")], [_value()], [_run()])) == [Invariant.WRONG_VALUE]


def test_an_error_that_is_not_the_library_s_is_found() -> None:
    untyped = Settlement("a", 101.0, Result.UNTYPED, "text", "KeyError")
    assert _broken(History([_call()], [untyped])) == [Invariant.UNTYPED_ERROR]


def test_what_is_said_not_to_have_run_must_not_have_run() -> None:
    refused = _error("DeadlineExceeded", maybe_executed=False)
    elsewhere = [Disturbance("worker-killed", 99.0, 99.1, "1.1")]
    assert _broken(History([_call()], [refused], [], elsewhere)) == []
    assert _broken(History([_call()], [refused], [_run()], elsewhere)) == [Invariant.FALSE_CERTAINTY]


def test_an_error_has_to_have_a_cause() -> None:
    history = History([_call()], [_error("DeadlineExceeded", maybe_executed=True)], [_run()])
    assert _broken(history) == [Invariant.WITHOUT_CAUSE]
    history.disturbances = [
        Disturbance("too early", 1.0, 100.0 - DETECTION - 0.1),
        Disturbance("too late", 101.1, 102.0),
    ]
    assert _broken(history) == [Invariant.WITHOUT_CAUSE]
    history.disturbances = [Disturbance("in time", 1.0, 100.0 - DETECTION + 0.1)]
    assert _broken(history) == []


def test_a_task_that_its_caller_cancelled_may_be_revoked_and_no_other() -> None:
    revoked = _error("TaskRevoked", maybe_executed=True)
    assert _broken(History([_call(verb="submit and cancel")], [revoked])) == []
    assert _broken(History([_call(verb="submit")], [revoked])) == [Invariant.WITHOUT_CAUSE]


def test_a_request_that_went_back_to_its_queue_is_excused_where_its_worker_was_disturbed() -> None:
    history = History([_call()], [_error("DeadlineExceeded", maybe_executed=False)], [_run(worker="0.1")])
    history.disturbances = [Disturbance("worker-killed", 100.6, 100.7, "0.1")]
    verdict = check(history)
    assert (verdict.breaches, verdict.excused) == ([], 1)


@pytest.mark.parametrize(
    "disturbance",
    [
        Disturbance("another worker", 100.6, 100.7, "1.1"),
        Disturbance("too early", 50.0, 100.5 - DETECTION - 0.1),
    ],
    ids=lambda disturbance: disturbance.kind,
)
def test_a_disturbance_that_cannot_have_done_it_excuses_nothing(disturbance: Disturbance) -> None:
    history = History([_call()], [_error("DeadlineExceeded", maybe_executed=False)], [_run(worker="0.1")])
    history.disturbances = [disturbance]
    assert _broken(history) == [Invariant.FALSE_CERTAINTY]


@pytest.mark.parametrize(("method", "error"), [("swift", "DeadlineExceeded"), ("answer", "ConnectionLost")])
def test_what_the_guarantees_do_not_excuse_no_disturbance_does(method: str, error: str) -> None:
    history = History([_call(method=method)], [_error(error, maybe_executed=False)], [_run()])
    history.disturbances = [Disturbance("broker-killed", 100.6, 100.7)]
    assert _broken(history) == [Invariant.FALSE_CERTAINTY]


@pytest.mark.parametrize("method", ["once", "swift"])
def test_a_second_run_breaks_the_modes_that_have_none(method: str) -> None:
    history = History([_call(method=method)], [_value()], [_run(), _run(attempt=2, worker="1.1")])
    assert _broken(history) == [Invariant.RUN_AGAIN]
    history.calls = [_call(method=method, idempotent=True)]
    assert _broken(history) == []


def test_more_runs_than_max_attempts_are_found() -> None:
    runs = [_run(attempt=attempt, worker=f"{attempt}.1") for attempt in range(1, 6)]
    history = History([_call()], [_value()], runs, max_attempts=5)
    assert _broken(history) == []
    history.max_attempts = 4
    assert _broken(history) == [Invariant.TOO_MANY_ATTEMPTS]


def test_an_attempt_that_one_worker_runs_twice_is_found_and_on_two_workers_it_is_not() -> None:
    assert _broken(History([_call()], [_value()], [_run(), _run(started=100.7)])) == [Invariant.RUN_TWICE_IN_ONE_WORKER]
    assert _broken(History([_call()], [_value()], [_run(), _run(worker="1.1")])) == []


def test_a_run_that_nobody_asked_for_is_found() -> None:
    assert _broken(History([], [], [_run()])) == [Invariant.UNASKED]


def test_what_is_left_over_is_leaked() -> None:
    assert _broken(History(leftovers=[Leftover("the client", "pending calls", 0)])) == []
    assert _broken(History(leftovers=[Leftover("the client", "pending calls", 1)])) == [Invariant.LEAKED]


def test_memory_that_grows_in_the_second_half_is_found() -> None:
    def history(end: int) -> History:
        return History(memory=[MemorySample(0.1, 0), MemorySample(0.5, 100 * _MIB), MemorySample(1.0, end * _MIB)])

    assert _broken(history(110)) == []
    assert _broken(history(130)) == [Invariant.MEMORY_GREW]
    assert check(History(memory=[MemorySample(0.5, 1)])).memory is None


# --- the journals


def test_a_journal_gives_back_what_was_written_up_to_a_cut_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    call, end, run = _call(), _value(), _run()
    journal.call(call)
    journal.settled(end)
    journal.run(replace(run, ended=None))
    journal.ran(run, run.ended or 0.0)
    journal.disturbance(Disturbance("latency", 1.0, 2.0, None))
    journal.memory(MemorySample(0.5, 7))
    journal.leftover(Leftover("the client", "pending calls", 0))
    journal.counted("duplicates", 2)
    journal.counted("duplicates", 3)
    journal.close()
    with (tmp_path / "b.jsonl").open("w") as killed:
        killed.write('["run","b","u",1,"1.1",5.0]\n["ran","u",1,"1.')
    history, counted = read_history(tmp_path, max_attempts=4)
    assert history.calls == [call]
    assert history.settlements == [end]
    assert history.runs == [run, Run("b", "u", 1, "1.1", 5.0, None)]
    assert history.disturbances == [Disturbance("latency", 1.0, 2.0, None)]
    assert history.memory == [MemorySample(0.5, 7)]
    assert history.leftovers == [Leftover("the client", "pending calls", 0)]
    assert (history.max_attempts, history.finished) == (4, False)
    assert counted == {"duplicates": 5}


# --- all of it


async def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    kinds = (
        Kind.WORKER_KILLED,
        Kind.WORKER_RESET,
        Kind.CALLER_RESET,
        Kind.CALLS_CANCELLED,
        Kind.WORKER_DRAINED,
    )
    schedule = make_schedule(7, faults=len(kinds), workers=2, kinds=kinds)
    plan = Plan(schedule, seed=7, calls=2_000, seconds=None, workers=2, callers=50, rate=600.0)
    told: list[str] = []
    outcome = await run_chaos(plan, told.append)
    report = tmp_path / "breaches.txt"
    write_breaches(outcome, report)
    assert outcome.verdict.breaches == [], report.read_text()
    assert outcome.verdict.calls == 2_000
    assert set(outcome.faults) == set(kinds)
    assert told
    assert any("faults injected" in table.as_text() for table in make_tables(outcome))


def test_a_report_of_breaches_tells_the_history_of_the_call(tmp_path: Path) -> None:
    disturbance = Disturbance("latency", 100.1, 100.2, "0.1")
    history = History([_call(), _call("b")], [_value(), _value(), _value("b")], [_run(), _run("b")], [disturbance])
    outcome = Outcome(check(history), history, Counter({Kind.LATENCY: 1}), {}, 1.0, "3.10.8", "printed")
    write_breaches(outcome, tmp_path / "report")
    text = (tmp_path / "report").read_text()
    assert "settled twice: a: it was settled 2 times" in text
    assert repr(_run()) in text
    assert "latency of 0.1" in text
    assert repr(_run("b")) not in text


def test_the_tables_count_each_invariant() -> None:
    history = History([_call()], [_value(), _value()], [_run()])
    outcome = Outcome(check(history), history, Counter({Kind.LATENCY: 1}), {}, 1.0, "3.10.8", "")
    rows = {row[0]: row[1] for table in make_tables(outcome) for row in table.rows}
    assert (rows["lost"], rows["settled twice"], rows["latency"]) == ("0", "1", "1")
