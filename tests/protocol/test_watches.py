"""Which calls without a deadline are asked after while their connection stands, and when one is given up."""

from __future__ import annotations

from types import SimpleNamespace

from aiorpcq.protocol.calls import Call, Sending
from aiorpcq.protocol.control import CLAIM_LIMIT, Claim
from aiorpcq.protocol.watches import WatchTable

from .references import watch_references

PATIENCE = 30.0


def make_call(task_id: str = "t", sending: Sending = Sending.CONFIRMED) -> Call:
    call = Call(task_id, None, None)
    call.origin, call.sending = "x", sending
    call.route = SimpleNamespace(service="s")
    return call


def take(table: WatchTable, calls: list[Call], now: float, jitter: float = 0.0) -> list[Claim]:
    return table.take(calls, "x", now, PATIENCE, jitter, "id")


def test_nothing_is_due_until_there_is_a_call() -> None:
    table = WatchTable()
    assert table.due is None
    table.start(5.0, PATIENCE)
    table.start(9.0, PATIENCE)
    assert table.due == 15.0
    take(table, [make_call()], 15.0)
    assert table.due == 25.0
    take(table, [], 25.0)
    assert table.due is None


def test_a_short_patience_and_jitter_make_the_rounds_shorter() -> None:
    table = WatchTable()
    table.start(0.0, 1.0)
    assert table.due == 1.0
    table.take([make_call()], "x", 1.0, 1.0, 1.0, "id")
    assert table.due == 1.5


def test_more_calls_make_the_rounds_longer() -> None:
    table = WatchTable()
    take(table, [make_call(str(number)) for number in range(3 * CLAIM_LIMIT)], 0.0)
    assert table.due == 40.0


def test_a_call_is_asked_after_once_it_is_old_by_a_claim_that_moves_nothing() -> None:
    table, old, young = WatchTable(), make_call("old"), make_call("young")
    assert take(table, [old], 0.0) == []
    assert take(table, [old], 20.0) == []
    assert take(table, [old, young], 30.0) == [Claim("x", "x", ("old",), 3600.0, "id")]
    assert table.asked == [old]


def test_only_what_the_broker_has_confirmed_is_asked_after() -> None:
    table, strange = WatchTable(), make_call("strange")
    strange.route = None
    calls = [make_call("sent", Sending.SENT), make_call("unsent", Sending.UNSENT), strange]
    for now in (0.0, 30.0):
        assert take(table, calls, now) == []
    assert table.due is not None


def test_what_nobody_speaks_for_is_silent_after_four_times_the_patience() -> None:
    table, calls = WatchTable(), [make_call("a"), make_call("b")]
    for now in range(0, 110, 10):
        take(table, calls, float(now))
    table.heard(["a", "unknown"], 100.0)
    assert table.silent(119.0, PATIENCE) == []
    assert table.silent(120.0, PATIENCE) == [calls[1]]
    for now in range(110, 150, 10):
        take(table, calls, float(now))
    assert table.silent(219.0, PATIENCE) == [calls[1]]
    assert table.silent(220.0, PATIENCE) == calls


def test_answers_have_the_time_of_three_rounds_to_come() -> None:
    table, call = WatchTable(), make_call()
    take(table, [call], 0.0)
    for number in range(1, 4):
        take(table, [call], number * 1e4)
        assert table.silent(number * 1e4, PATIENCE) == []
    take(table, [call], 4e4)
    assert table.silent(4e4, PATIENCE) == [call]


def test_time_without_a_connection_is_no_silence() -> None:
    table, call = WatchTable(), make_call()
    for number in range(6):
        take(table, [call], number * 1e4)
    table.stop()
    assert (table.due, table.asked) == (None, [])
    take(table, [call], 1e6)
    assert table.silent(1e6, PATIENCE) == []


def test_nothing_refers_to_a_call_after_the_round_that_it_is_gone_in() -> None:
    table, call = WatchTable(), make_call()
    is_referenced = watch_references(call)
    take(table, [call], 0.0)
    take(table, [], 10.0)
    del call
    assert not is_referenced()
