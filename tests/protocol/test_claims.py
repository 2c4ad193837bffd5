"""Which calls are claimed, when, and when a call without a deadline is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiorpcq.errors import ConnectionLost
from aiorpcq.protocol.calls import Call, CallTable, Sending, TaskIds
from aiorpcq.protocol.claims import ClaimTable
from aiorpcq.protocol.control import CLAIM_LIMIT, Claim
from aiorpcq.protocol.messages import StateMessage
from aiorpcq.protocol.outofband import OutOfBandLimits

from .references import watch_references


def make_call(task_id: str = "t", origin: str = "x", deadline: float | None = 30.0) -> Call:
    call = Call(task_id, None, deadline)
    call.origin = origin
    return call


def settle(call: Call, *, answered: bool = True) -> None:
    table = CallTable(TaskIds("p"), OutOfBandLimits())
    table.add(call)
    if answered:
        table.receive(StateMessage(call.task_id, "SUCCESS", b"", ""), 0.0)
    else:
        table.fail(call, ConnectionLost())


def take(table: ClaimTable, now: float = 0.0, jitter: float = 0.0) -> list[Claim]:
    return table.take("y", now, jitter, "id")


def rounds(table: ClaimTable, count: int) -> None:
    for _ in range(count):
        take(table)


def test_nothing_is_due_before_there_is_a_connection() -> None:
    table = ClaimTable()
    table.add(make_call())
    assert table.due is None
    table.start(5.0)
    assert table.due == 5.0


def test_without_calls_there_is_nothing_to_do() -> None:
    table = ClaimTable()
    table.start(0.0)
    assert table.due is None
    assert take(table) == []


def test_a_claim_names_the_old_queue_the_present_one_and_the_calls() -> None:
    table = ClaimTable()
    table.add(make_call("a", deadline=20.0))
    table.add(make_call("b", deadline=10.0))
    table.add(make_call("c", origin="w", deadline=15.0))
    table.start(5.0)
    assert take(table, 5.0) == [Claim("x", "y", ("a", "b"), 15.0), Claim("w", "y", ("c",), 10.0)]


def test_a_call_keeps_its_origin_over_several_connections() -> None:
    table = ClaimTable()
    table.add(make_call("a"))
    table.start(0.0)
    assert table.take("y", 0.0, 0.0, "id")[0].reply_to == "y"
    table.stop()
    table.add(make_call("b", origin="y"))
    table.start(1.0)
    claims = table.take("z", 1.0, 0.0, "id")
    assert [(claim.origin, claim.reply_to, claim.task_ids) for claim in claims] == [
        ("x", "z", ("a",)),
        ("y", "z", ("b",)),
    ]


def test_claims_are_repeated_until_the_calls_are_settled_at_longer_and_longer_intervals() -> None:
    table, call = ClaimTable(), make_call(deadline=1e6)
    table.add(call)
    table.start(0.0)
    due, pauses = 0.0, []
    for _ in range(9):
        assert take(table, due)
        assert table.due is not None
        pauses.append(table.due - due)
        due = table.due
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    settle(call)
    assert take(table, due) == []
    assert table.due is None


def test_jitter_shortens_a_pause_by_half_at_the_most() -> None:
    table = ClaimTable()
    table.add(make_call())
    table.start(0.0)
    take(table, jitter=1.0)
    assert table.due == 0.125


def test_a_call_that_is_added_while_a_connection_stands_is_claimed_soon() -> None:
    table = ClaimTable()
    table.start(0.0)
    for now in (1.0, 1.1, 1.2):
        table.add(make_call(str(now)))
        table.hasten(now)
    assert table.due == 1.25
    assert [claim.task_ids for claim in take(table, 1.25)] == [("1.0", "1.1", "1.2")]
    assert table.due == 1.5


def test_a_new_connection_begins_the_rounds_anew() -> None:
    table = ClaimTable()
    table.add(make_call())
    table.start(0.0)
    for _ in range(5):
        take(table)
    table.stop()
    assert table.due is None
    table.start(100.0)
    assert table.due == 100.0
    take(table, 100.0)
    assert table.due == 100.25


@given(st.integers(1, 3 * CLAIM_LIMIT + 1))
def test_a_claim_names_a_bounded_number_of_calls_and_none_is_left_out(count: int) -> None:
    table = ClaimTable()
    for number in range(count):
        table.add(make_call(str(number)))
    table.start(0.0)
    claims = take(table)
    assert all(len(claim.task_ids) <= CLAIM_LIMIT for claim in claims)
    assert [task_id for claim in claims for task_id in claim.task_ids] == [str(number) for number in range(count)]


@pytest.mark.parametrize(("deadline", "expires"), [(None, 3600.0), (1e6, 3600.0), (10.0, 10.0), (0.0, 1.0)])
def test_a_claim_is_remembered_for_as_long_as_the_calls_may_last(deadline: float | None, expires: float) -> None:
    table = ClaimTable()
    table.add(make_call(deadline=deadline))
    table.start(0.0)
    assert [claim.expires for claim in take(table)] == [expires]


def test_only_calls_without_a_deadline_are_asked_after() -> None:
    table = ClaimTable()
    table.add(make_call("a"))
    table.add(make_call("b", deadline=None))
    table.start(0.0)
    assert [(claim.task_ids, claim.id) for claim in take(table)] == [(("a",), None), (("b",), "id")]
    assert [call.task_id for call in table.unbounded] == ["b"]


def test_a_call_that_the_broker_may_not_have_is_asked_after_and_never_silent() -> None:
    table, call = ClaimTable(), make_call("a")
    call.sending = Sending.LOST
    table.add(call)
    table.start(0.0)
    assert [(claim.task_ids, claim.id) for claim in take(table)] == [(("a",), "id")]
    assert "a" not in table
    rounds(table, 4)
    assert table.silent(1e6, 30.0) == []


def test_what_nobody_speaks_for_is_silent_after_a_while() -> None:
    table = ClaimTable()
    calls = [make_call("a", deadline=None), make_call("b", deadline=None), make_call("c", deadline=5.0)]
    for call in calls:
        table.add(call)
    table.start(0.0)
    rounds(table, 3)
    assert table.silent(29.0, 30.0) == []
    table.heard(["a", "c", "unknown"], 10.0)
    assert table.silent(30.0, 30.0) == [calls[1]]
    rounds(table, 3)
    assert table.silent(40.0, 30.0) == calls[:2]


def test_answers_have_the_time_of_two_rounds_to_come() -> None:
    table, call = ClaimTable(), make_call(deadline=None)
    table.add(call)
    table.start(0.0)
    table.heard(["t"], 0.0)
    rounds(table, 2)
    assert table.silent(1e6, 30.0) == []
    rounds(table, 1)
    assert table.silent(1e6, 30.0) == [call]


def test_what_was_heard_of_for_long_is_silent_as_soon_although_calls_were_added() -> None:
    table, call = ClaimTable(), make_call(deadline=None)
    table.add(call)
    table.start(0.0)
    for _ in range(100):
        take(table)
        table.heard(["t"], 1_000.0)
    table.hasten(1_000.0)
    rounds(table, 2)
    assert table.silent(1_030.0, 30.0) == []
    rounds(table, 1)
    assert table.silent(1_030.0, 30.0) == [call]


def test_calls_that_are_added_in_every_round_keep_nobody_from_being_silent() -> None:
    table, call = ClaimTable(), make_call(deadline=None)
    table.add(call)
    table.start(0.0)
    for _ in range(3):
        table.hasten(0.0)
        take(table)
    assert table.silent(30.0, 30.0) == [call]


def test_time_without_a_connection_is_no_silence() -> None:
    table, call = ClaimTable(), make_call(deadline=None)
    table.add(call)
    table.start(0.0)
    table.stop()
    table.start(100.0)
    rounds(table, 3)
    assert table.silent(129.0, 30.0) == []
    assert table.silent(130.0, 30.0) == [call]


def test_a_call_that_is_added_while_claims_go_out_has_its_full_time() -> None:
    table, call = ClaimTable(), make_call(deadline=None)
    table.start(0.0)
    table.add(call)
    assert table.silent(100.0, 30.0) == []
    rounds(table, 3)
    assert table.silent(130.0, 30.0) == [call]


def test_what_was_answered_after_all_is_counted_and_what_failed_is_not() -> None:
    table = ClaimTable()
    calls = [make_call("a"), make_call("b"), make_call("c")]
    for call in calls:
        table.add(call)
    table.start(0.0)
    settle(calls[0])
    settle(calls[1], answered=False)
    assert [claim.task_ids for claim in take(table)] == [("c",)]
    assert (table.resumed, len(table)) == (1, 1)


def test_nothing_refers_to_a_settled_call_after_the_next_round() -> None:
    table, call = ClaimTable(), make_call(deadline=None)
    is_referenced = watch_references(call)
    table.add(call)
    table.start(0.0)
    settle(call)
    take(table)
    del call
    assert not is_referenced()
    assert table.silent(1e6, 0.0) == []
