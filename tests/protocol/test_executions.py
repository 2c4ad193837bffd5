"""The worker's table: no task runs again while its entry is held, and the cache keeps to its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiorpcq.limits import CacheLimits
from aiorpcq.protocol.executions import EndedAttempt, Execution, ExecutionPhase, ExecutionTable, Verdict
from aiorpcq.protocol.messages import History, Request, StateMessage
from aiorpcq.protocol.timers import GRANULARITY

OVERHEAD = 500
"""Bytes that the documented bound counts for a state besides its body."""

ROUNDING = 1e-6

ORIGINS = ("rpc.reply.1", "rpc.reply.2")
FOREVER = 3600.0

# Deliveries, as far as the table looks at them.
AGAIN = SimpleNamespace(redelivered=True)
ANEW = SimpleNamespace(redelivered=False)


def request(
    task_id: str = "t", attempt: int = 1, reply_to: str = "rpc.reply.1", history: History | None = None
) -> Request:
    return Request(task_id, "add", b"", "application/msgpack", reply_to=reply_to, attempt=attempt, history=history)


def success(task_id: str = "t", attempt: int = 1, size: int = 0) -> StateMessage:
    return StateMessage(task_id, "SUCCESS", b"x" * size, "application/msgpack", attempt=attempt)


def run(
    table: ExecutionTable, task_id: str = "t", *, size: int = 0, now: float = 0.0, returned: bool = False
) -> StateMessage:
    """Have *table* go through one whole run; return its terminal state."""
    verdict, execution = table.begin(request(task_id), "delivery", None, 0.0)
    assert verdict is Verdict.RUN
    terminal = success(task_id, size=size)
    table.answer(execution, terminal, now)
    table.end(execution, returned=returned)
    return terminal


def holds(table: ExecutionTable, task_id: str) -> bool:
    """Tell whether *table* answers a redelivery of *task_id* from its cache."""
    verdict, execution = table.begin(request(task_id), "redelivery", None, 0.0)
    if verdict is Verdict.RUN:
        table.abandon(execution)
    else:
        table.end(execution)
    return verdict is Verdict.ANSWERED


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("age", value) for value in (0, -1, float("nan"), True, "1", None)),
        *(("size", value) for value in (0, -1, float("nan"), float("inf"), 64e6, True, "1", None)),
    ],
)
def test_a_bound_that_bounds_nothing_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^cache\.{option}: "):
        CacheLimits(**{option: value})


def test_a_new_request_is_run() -> None:
    table = ExecutionTable(CacheLimits())
    verdict, execution = table.begin(request(), "delivery", 5.0, 0.0)
    assert verdict is Verdict.RUN
    assert (execution.phase, execution.delivery, execution.reply_to) == (
        ExecutionPhase.RUNNING,
        "delivery",
        "rpc.reply.1",
    )
    assert table.running["t"] is execution


def test_a_redelivery_of_what_runs_is_adopted_under_the_new_delivery() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    assert table.begin(request(), "second", None, 0.0) == (Verdict.ADOPTED, execution)
    assert table.adopt(execution, "second") == "first"
    assert (execution.delivery, table.adopted) == ("second", 1)


def test_a_redelivery_that_is_not_adopted_yet_changes_nothing() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    table.begin(request(), "second", None, 0.0)
    assert (execution.delivery, table.adopted) == ("first", 0)


def test_another_callers_task_of_the_same_id_is_refused_while_the_first_runs() -> None:
    table = ExecutionTable(CacheLimits())
    _, first = table.begin(request(), "first", None, 0.0)
    verdict, second = table.begin(request(reply_to="rpc.reply.2"), "second", None, 0.0)
    assert verdict is Verdict.REFUSED
    assert (second.delivery, second.reply_to) == ("second", "rpc.reply.2")
    assert table.running == {"t": first}


def test_another_callers_task_of_the_same_id_is_run_once_the_first_has_ended() -> None:
    table = ExecutionTable(CacheLimits())
    run(table, size=100)
    verdict, second = table.begin(request(reply_to="rpc.reply.2"), "second", None, 0.0)
    assert verdict is Verdict.RUN
    table.answer(second, success(size=10), 0.0)
    table.end(second)
    assert (len(table.cache), table.cache.size) == (1, OVERHEAD + 10)


def test_another_callers_answer_takes_the_place_of_one_that_was_returned() -> None:
    table = ExecutionTable(CacheLimits())
    run(table, size=100, returned=True)
    _, second = table.begin(request(reply_to="rpc.reply.2"), "second", None, 0.0)
    table.answer(second, success(size=10), 0.0)
    table.end(second, returned=True)
    assert (len(table.cache), table.cache.size) == (1, OVERHEAD + 10)


def test_a_redelivery_of_what_waits_for_its_confirm_is_adopted() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    table.answer(execution, success(), 0.0)
    assert table.begin(request(), "second", None, 0.0) == (Verdict.ADOPTED, execution)


def test_a_redelivery_of_what_has_ended_is_answered_with_the_same_state() -> None:
    table = ExecutionTable(CacheLimits())
    terminal = run(table)
    verdict, execution = table.begin(request(), "second", None, 0.0)
    assert verdict is Verdict.ANSWERED
    assert execution.terminal == terminal
    assert (execution.delivery, execution.phase) == ("second", ExecutionPhase.ANSWERING)
    assert table.answered == 1


def test_a_redelivery_is_answered_as_often_as_it_comes() -> None:
    table = ExecutionTable(CacheLimits())
    run(table)
    assert [holds(table, "t") for _ in range(3)] == [True] * 3
    assert (len(table.cache), table.cache.size) == (1, OVERHEAD)


def test_a_later_attempt_of_a_task_that_has_ended_is_answered() -> None:
    """Another worker took the run for lost, which was only cut off from the broker."""
    table = ExecutionTable(CacheLimits())
    terminal = run(table)
    verdict, execution = table.begin(request(attempt=2, history=History(losses=1)), "second", None, 0.0)
    assert (verdict, execution.terminal) == (Verdict.ANSWERED, terminal)


def test_an_abandoned_request_runs_when_it_comes_again() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", 5.0, 0.0)
    table.abandon(execution)
    assert (execution.phase, table.running) == (ExecutionPhase.ENDED, {})
    assert table.expire(6.0) == []
    verdict, _ = table.begin(request(), "second", None, 0.0)
    assert verdict is Verdict.RUN


def test_a_run_expires_at_its_deadline_and_can_still_be_answered() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "delivery", 5.0, 0.0)
    assert table.expire(5.0 - ROUNDING) == []
    assert table.expire(5.0 + GRANULARITY + ROUNDING) == [execution]
    assert execution.phase is ExecutionPhase.STOPPING
    assert table.running["t"] is execution
    table.answer(execution, success(), 6.0)
    table.end(execution)
    assert (execution.phase, table.running, len(table.cache)) == (ExecutionPhase.ENDED, {}, 1)


def test_what_is_answered_or_ended_does_not_expire() -> None:
    table = ExecutionTable(CacheLimits())
    _, answered = table.begin(request("a"), "delivery", 5.0, 0.0)
    _, ended = table.begin(request("b"), "delivery", 5.0, 0.0)
    table.answer(answered, success("a"), 0.0)
    table.answer(ended, success("b"), 0.0)
    table.end(ended)
    assert table.expire(10.0) == []


def test_the_next_deadline_is_that_of_a_run_or_of_a_cached_state_a_second_late() -> None:
    table = ExecutionTable(CacheLimits(age=10.0))
    assert table.next_deadline(100.0) == 111.0
    run(table, "returned", now=94.0, returned=True)
    assert table.next_deadline(100.0) == 105.0
    run(table, now=95.0)
    assert table.next_deadline(100.0) == 105.0
    table.begin(request("late"), "delivery", 200.0, 0.0)
    assert table.next_deadline(100.0) == 105.0
    table.begin(request("soon"), "delivery", 101.0, 0.0)
    assert table.next_deadline(100.0) == pytest.approx(101.0, abs=GRANULARITY + ROUNDING)


def test_the_cache_drops_the_oldest_past_its_bytes() -> None:
    table = ExecutionTable(CacheLimits(size=3_000))
    for task_id in "abcd":
        run(table, task_id, size=500)
    assert table.cache.size == 3_000
    assert table.cache.evicted == 1
    assert [holds(table, task_id) for task_id in "abcd"] == [False, True, True, True]


def test_a_state_larger_than_the_cache_is_not_kept() -> None:
    table = ExecutionTable(CacheLimits(size=1_000))
    run(table, size=1_000)
    assert (len(table.cache), table.cache.size, table.cache.evicted) == (0, 0, 1)


def test_a_run_whose_cached_state_was_evicted_is_adopted_until_it_ends() -> None:
    table = ExecutionTable(CacheLimits(size=1_000))
    _, execution = table.begin(request(), "first", None, 0.0)
    table.answer(execution, success(size=1_000), 0.0)
    assert table.begin(request(), "second", None, 0.0) == (Verdict.ADOPTED, execution)


def test_the_cache_drops_what_is_too_old() -> None:
    table = ExecutionTable(CacheLimits(age=10.0))
    run(table, "old", now=0.0)
    run(table, "young", now=1.0)
    table.expire(10.0)
    assert (holds(table, "old"), holds(table, "young")) == (False, True)


def test_returned_states_are_evicted_last() -> None:
    table = ExecutionTable(CacheLimits(size=3_000))
    run(table, "returned", size=500, returned=True)
    for task_id in "abcd":
        run(table, task_id, size=500)
    assert [holds(table, task_id) for task_id in ("returned", *"abcd")] == [True, False, False, True, True]


def test_returned_states_keep_to_the_bound_of_bytes_and_outlast_newer_ones() -> None:
    table = ExecutionTable(CacheLimits(size=3_000))
    for task_id in "abcd":
        run(table, task_id, size=500, returned=True)
    assert table.cache.size == 3_000
    assert [holds(table, task_id) for task_id in "abcd"] == [True, True, True, False]


def test_returned_states_keep_to_the_bound_of_age() -> None:
    table = ExecutionTable(CacheLimits(age=10.0))
    run(table, returned=True)
    table.expire(10.0)
    assert (len(table.cache), table.cache.size) == (0, 0)


def test_a_later_attempt_of_what_runs_is_adopted() -> None:
    """Another worker has published it again, since it took this one for dead."""
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    assert table.begin(request(attempt=2), "second", None, 0.0) == (Verdict.ADOPTED, execution)


@pytest.mark.parametrize(
    ("again", "overtaken"),
    [
        (request(), False),
        (request(attempt=2), True),
        (request(history=History(losses=1)), True),
    ],
)
def test_what_a_later_attempt_comes_for_is_known_to_have_run_elsewhere(again: Request, overtaken: bool) -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    table.begin(again, "second", None, 0.0)
    table.begin(request(), "third", None, 0.0)
    assert execution.overtaken is overtaken


@dataclass
class Given:
    """What a table may ask a delivery."""

    redelivered: bool = False
    is_void: bool = False


@pytest.mark.parametrize(
    ("again", "delivery", "may_have_run"),
    [
        (request(), Given(), False),
        (request(history=History(republished=True)), Given(), False),
        (request(), Given(redelivered=True), True),
        (request(), Given(is_void=True), True),
        (request(attempt=2), Given(), True),
        (request(history=History(losses=1)), Given(), True),
        (request(history=History(origin="rpc.reply.0")), Given(), True),
    ],
)
def test_a_request_may_have_run_before_or_elsewhere(again: Request, delivery: Given, may_have_run: bool) -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(again, delivery, None, 0.0)
    assert execution.may_have_run is may_have_run


def test_an_earlier_attempt_than_the_one_that_has_ended_is_answered() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(attempt=2), "first", None, 0.0)
    table.answer(execution, success(attempt=2), 0.0)
    table.end(execution)
    verdict, again = table.begin(request(attempt=1), "second", None, 0.0)
    assert (verdict, again.terminal) == (Verdict.ANSWERED, success(attempt=2))


def test_a_request_that_names_where_it_was_first_sent_from_is_the_same_callers() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    moved = request(reply_to="rpc.reply.2", history=History("rpc.reply.1"))
    assert table.begin(moved, "second", None, 0.0) == (Verdict.ADOPTED, execution)
    assert (execution.origin, execution.reply_to) == ("rpc.reply.1", "rpc.reply.2")
    table.answer(execution, success(), 0.0)
    table.end(execution)
    verdict, again = table.begin(moved, "third", None, 0.0)
    assert (verdict, again.reply_to) == (Verdict.ANSWERED, "rpc.reply.2")


def test_what_a_request_has_lost_comes_with_it() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(attempt=4, history=History(losses=3)), "first", None, 0.0)
    assert (execution.attempt, execution.losses, execution.origin) == (4, 3, "rpc.reply.1")


def test_a_replay_runs_although_its_task_has_ended_and_is_itself_run_once() -> None:
    table = ExecutionTable(CacheLimits())
    run(table)
    verdict, replay = table.begin(request(history=History(replay="letter")), "second", None, 0.0)
    assert (verdict, replay.task_id) == (Verdict.RUN, "t")
    assert table.begin(request(history=History(replay="letter")), "third", None, 0.0) == (Verdict.ADOPTED, replay)
    verdict, _ = table.begin(request(history=History(replay="another")), "fourth", None, 0.0)
    assert verdict is Verdict.RUN


def test_answers_go_to_where_their_caller_has_moved() -> None:
    table = ExecutionTable(CacheLimits())
    _, running = table.begin(request("running"), "first", None, 0.0)
    _, foreign = table.begin(request("foreign", reply_to="rpc.reply.2"), "second", None, 0.0)
    table.move("rpc.reply.1", "rpc.reply.3", 60.0, 0.0)
    _, later = table.begin(request("later"), "third", None, 1.0)
    _, latest = table.begin(request("latest"), "fourth", None, 61.0)
    assert [execution.reply_to for execution in (running, foreign, later, latest)] == [
        "rpc.reply.3",
        "rpc.reply.2",
        "rpc.reply.3",
        "rpc.reply.1",
    ]


def test_a_task_is_held_for_the_caller_who_can_name_its_reply_queue_until_it_ends() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", None, 0.0)
    assert table.held("t", "rpc.reply.1") is execution
    assert table.held("t", "rpc.reply.2") is None
    assert table.held("other", "rpc.reply.1") is None
    table.answer(execution, success(), 0.0)
    assert table.held("t", "rpc.reply.1") is execution
    table.end(execution)
    assert table.held("t", "rpc.reply.1") is None


def test_a_revoked_task_is_registered_to_be_answered_so() -> None:
    table = ExecutionTable(CacheLimits())
    table.revocations.put("t", "rpc.reply.1", 60.0, 0.0)
    verdict, execution = table.begin(request(), "first", 5.0, 1.0)
    assert (verdict, table.running) == (Verdict.REVOKED, {"t": execution})
    table.answer(execution, success(), 1.0)
    table.end(execution)
    assert table.expire(10.0) == []


def test_a_task_that_another_caller_has_revoked_is_run() -> None:
    table = ExecutionTable(CacheLimits())
    table.revocations.put("t", "rpc.reply.2", 60.0, 0.0)
    verdict, _ = table.begin(request(), "first", None, 1.0)
    assert verdict is Verdict.RUN


def test_a_request_that_was_published_again_before_its_caller_moved_on_does_not_set_the_caller_back() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(reply_to="rpc.reply.1"), "first", None, 0.0)
    table.move("rpc.reply.1", "rpc.reply.1.3", FOREVER, 0.0)
    again = request(reply_to="rpc.reply.1.2", history=History("rpc.reply.1"))
    assert table.begin(again, "second", None, 1.0) == (Verdict.ADOPTED, execution)
    assert execution.reply_to == "rpc.reply.1.3"


def test_what_is_detained_does_not_expire() -> None:
    table = ExecutionTable(CacheLimits())
    _, execution = table.begin(request(), "first", 1.0, 0.0)
    table.detain(execution)
    assert table.expire(2.0 + GRANULARITY) == []
    assert (execution.phase, table.running) == (ExecutionPhase.STOPPING, {"t": execution})
    table.abandon(execution)
    assert table.running == {}


def test_an_attempt_that_ended_with_another_to_be_made_does_not_run_again() -> None:
    table = ExecutionTable(CacheLimits())
    ended = retried(table, attempt=2)
    for attempt in (1, 2):
        assert table.begin(request(attempt=attempt), AGAIN, None, 1.0)[0] is Verdict.SUPERSEDED
        copy = request(attempt=attempt, history=History(republished=True))
        assert table.begin(copy, ANEW, None, 1.0)[0] is Verdict.SUPERSEDED
    assert (table.running, ended.is_out) == ({}, False)
    assert table.begin(request(attempt=3), ANEW, None, 1.0)[0] is Verdict.RUN


def test_another_call_with_the_id_of_an_attempt_that_has_ended_is_run() -> None:
    """Nothing tells it of the first call's end, which may have come elsewhere."""
    table = ExecutionTable(CacheLimits())
    retried(table)
    assert table.begin(request(), ANEW, None, 1.0)[0] is Verdict.RUN


def test_a_task_whose_next_attempt_has_ended_here_is_answered_and_then_unknown() -> None:
    """As it is without any retry: an id may be used again."""
    table = ExecutionTable(CacheLimits(age=5.0))
    retried(table)
    _, execution = table.begin(request(attempt=2), ANEW, None, 1.0)
    terminal = success(attempt=2)
    table.answer(execution, terminal, 1.0)
    table.end(execution)
    verdict, again = table.begin(request(attempt=1), "again", None, 2.0)
    assert (verdict, again.terminal) == (Verdict.ANSWERED, terminal)
    table.end(again)
    table.expire(20.0)
    assert table.begin(request(attempt=1), AGAIN, None, 20.0)[0] is Verdict.RUN


def test_a_task_whose_next_attempt_went_elsewhere_is_known_for_as_long_as_an_answer_would_be() -> None:
    table = ExecutionTable(CacheLimits(age=5.0))
    retried(table)
    assert table.begin(request(), AGAIN, None, 4.9)[0] is Verdict.SUPERSEDED
    assert table.begin(request(), AGAIN, None, 5.0)[0] is Verdict.RUN


def test_another_callers_task_of_an_id_whose_attempt_has_ended_is_run() -> None:
    table = ExecutionTable(CacheLimits())
    retried(table)
    assert table.begin(request(reply_to="rpc.reply.2"), AGAIN, None, 1.0)[0] is Verdict.RUN


def test_no_more_than_so_many_ended_attempts_are_known() -> None:
    table = ExecutionTable(CacheLimits())
    for number in range(10_001):
        retried(table, str(number))
    assert len(table.retries) == 10_000
    assert table.begin(request("0"), AGAIN, None, 1.0)[0] is Verdict.RUN
    assert table.begin(request("1"), AGAIN, None, 1.0)[0] is Verdict.SUPERSEDED


def retried(table: ExecutionTable, task_id: str = "t", *, attempt: int = 1) -> EndedAttempt:
    """Have *table* go through one run that is to be made again."""
    verdict, execution = table.begin(request(task_id, attempt), "delivery", None, 0.0)
    assert verdict is Verdict.RUN
    return table.retry(execution, 0.0)


class ExecutionMachine(RuleBasedStateMachine):
    """Does to a table what a worker and its publisher do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = CacheLimits(size=4_000, age=10.0)
        self.table = ExecutionTable(self.limits)
        self.now = 0.0
        self.deliveries = 0
        self.running: dict[str, Execution] = {}
        self.answers: dict[str, tuple[StateMessage, str]] = {}
        self.moved: dict[str, str] = {}
        self.revoked: set[tuple[str, str]] = set()
        self.run_again = self.adopted = self.answered = 0

    @rule(
        task_id=st.sampled_from("abc"),
        attempt=st.integers(1, 3),
        timeout=st.none() | st.floats(0, 5),
        origin=st.sampled_from(ORIGINS),
    )
    def begin(self, task_id: str, attempt: int, timeout: float | None, origin: str) -> None:
        self.deliveries += 1
        deadline = None if timeout is None else self.now + timeout
        verdict, execution = self.table.begin(request(task_id, attempt, origin), self.deliveries, deadline, self.now)
        running = self.running.get(task_id)
        if running is not None:
            if running.origin != origin:
                assert verdict is Verdict.REFUSED
                return
            assert verdict is Verdict.ADOPTED
            assert execution is running
            superseded = execution.delivery
            assert self.table.adopt(execution, self.deliveries) == superseded != self.deliveries
            self.adopted += 1
            assert execution.delivery == self.deliveries
            return
        assert execution.delivery == self.deliveries
        self.running[task_id] = execution
        answer = self.answers.get(task_id)
        known = answer is not None and answer[1] == origin
        if verdict is Verdict.ANSWERED:
            assert known
            assert answer is not None
            assert execution.terminal == answer[0]
            self.answered += 1
            return
        assert verdict is (Verdict.REVOKED if (task_id, origin) in self.revoked else Verdict.RUN)
        if known:
            del self.answers[task_id]
            self.run_again += 1
        if verdict is Verdict.REVOKED:
            self.table.answer(execution, success(task_id, attempt), self.now)

    @rule(task_id=st.sampled_from("abc"), origin=st.sampled_from(ORIGINS))
    def revoke(self, task_id: str, origin: str) -> None:
        self.table.revocations.put(task_id, origin, FOREVER, self.now)
        self.revoked.add((task_id, origin))

    @rule(origin=st.sampled_from(ORIGINS), generation=st.integers(1, 3))
    def move(self, origin: str, generation: int) -> None:
        self.moved[origin] = f"{origin}.{generation}"
        self.table.move(origin, self.moved[origin], FOREVER, self.now)

    def draw(self, data: st.DataObject, *phases: ExecutionPhase) -> Execution | None:
        found = [execution for execution in self.running.values() if execution.phase in phases]
        return data.draw(st.sampled_from(found)) if found else None

    @precondition(lambda self: self.running)
    @rule(data=st.data(), size=st.integers(0, 4_000))
    def answer(self, data: st.DataObject, size: int) -> None:
        execution = self.draw(data, ExecutionPhase.RUNNING, ExecutionPhase.STOPPING)
        if execution is not None:
            terminal = success(execution.task_id, execution.attempt, size)
            self.table.answer(execution, terminal, self.now)
            assert execution.phase is ExecutionPhase.ANSWERING

    @precondition(lambda self: self.running)
    @rule(data=st.data(), returned=st.booleans())
    def end(self, data: st.DataObject, returned: bool) -> None:
        execution = self.draw(data, ExecutionPhase.ANSWERING)
        if execution is not None:
            self.table.end(execution, returned=returned)
            del self.running[execution.task_id]
            assert execution.terminal is not None
            assert execution.origin is not None
            self.answers[execution.task_id] = execution.terminal, execution.origin
            assert execution.phase is ExecutionPhase.ENDED

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        execution = self.draw(data, ExecutionPhase.RUNNING, ExecutionPhase.STOPPING)
        if execution is not None:
            self.table.abandon(execution)
            del self.running[execution.task_id]
            assert execution.phase is ExecutionPhase.ENDED

    @rule(passed=st.floats(0, 6))
    def expire(self, passed: float) -> None:
        self.now += passed
        due = {
            key
            for key, execution in self.running.items()
            if execution.phase is ExecutionPhase.RUNNING
            and execution.deadline is not None
            and execution.deadline + GRANULARITY + ROUNDING <= self.now
        }
        expired = self.table.expire(self.now)
        for execution in expired:
            assert execution.phase is ExecutionPhase.STOPPING
            assert execution.deadline is not None
            assert execution.deadline <= self.now + ROUNDING
        assert due <= {execution.task_id for execution in expired}

    @rule()
    def expire_at_the_next_deadline(self) -> None:
        """It has something to do then, or nothing is held that could expire."""
        held = len(self.table.cache)
        self.now = max(self.now, self.table.next_deadline(self.now))
        expired = self.table.expire(self.now)
        assert expired or len(self.table.cache) < held or held == 0

    @invariant()
    def a_task_runs_again_only_after_its_entry_was_evicted(self) -> None:
        assert self.run_again <= self.table.cache.evicted

    @invariant()
    def the_cache_keeps_to_its_bytes(self) -> None:
        assert self.table.cache.size <= self.limits.size
        assert self.table.cache.size >= len(self.table.cache) * OVERHEAD

    @invariant()
    def the_table_holds_what_runs(self) -> None:
        assert self.table.running == self.running

    @invariant()
    def every_answer_goes_to_where_its_caller_is(self) -> None:
        for execution in self.running.values():
            assert execution.origin is not None
            assert execution.reply_to == self.moved.get(execution.origin, execution.origin)

    @invariant()
    def every_verdict_is_counted(self) -> None:
        assert (self.table.adopted, self.table.answered) == (self.adopted, self.answered)

    def teardown(self) -> None:
        for execution in list(self.running.values()):
            if execution.phase is ExecutionPhase.ANSWERING:
                self.table.end(execution)
            else:
                self.table.abandon(execution)
        self.table.expire(self.now + self.limits.age)
        assert self.table.running == {}
        assert (len(self.table.cache), self.table.cache.size) == (0, 0)


TestExecutions = ExecutionMachine.TestCase
TestExecutions.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)


def test_a_state_that_was_sent_again_keeps_its_age() -> None:
    table = ExecutionTable(CacheLimits(age=10.0))
    run(table, now=100.0)
    _, again = table.begin(request(), "second", None, 0.0)
    table.end(again)
    table.cache.evict(109.0)
    assert len(table.cache) == 1
    table.cache.evict(110.5)
    assert len(table.cache) == 0
